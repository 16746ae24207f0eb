"""What a result was made with."""

from collections.abc import Mapping, Sequence
import hashlib
from pathlib import Path
import subprocess

# Characters of a text that goes with a policy; a robot refuses a provenance without bounds.
LONGEST_TEXT = 2**13


def code_version() -> str:
    """Return the commit of this code, '-dirty' where files differ from it; else 'unknown'."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name of each of several paths that does not tell where on this machine they lie.

    That is the last part, and as many folders before it as it takes to tell them apart.
    """
    parts = [path.resolve().parts[1:] for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ['/'.join(part[-depth:]) for part in parts]


def shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a dataset's metadata as a policy takes them along.

    Of a long text (the files of a thousand bags) its hash: what it says lies in the dataset.
    """
    return {key: text if len(text) <= LONGEST_TEXT else
            f'{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}'
            for key, text in metadata.items()}
