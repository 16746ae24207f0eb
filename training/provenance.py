"""What a result was made with."""

from pathlib import Path
import subprocess


def code_version() -> str:
    """Return the commit of this code, '-dirty' where files differ from it; else 'unknown'."""
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
