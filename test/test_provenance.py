"""A result says what it was made with, and not where on whose machine."""

import hashlib
from pathlib import Path
import subprocess

import pytest
from training import provenance


def test_version_is_the_commit_of_this_code():
    found = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], cwd=provenance.__file__.rpartition('/')[0],
        capture_output=True, text=True)
    if found.returncode:
        pytest.skip('not a git checkout')
    assert found.stdout.strip()[:6] in provenance.code_version()


def test_code_outside_of_a_checkout_is_of_unknown_version(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'provenance.py'))
    assert provenance.code_version() == 'unknown'


@pytest.mark.parametrize(('paths', 'names'), [
    (['/home/someone/drive_0', '/data/drive_1'], ['drive_0', 'drive_1']),
    (['/home/someone/monday/run', '/home/someone/tuesday/run'], ['monday/run', 'tuesday/run']),
    (['/a/b/c', '/a/b/c'], ['c', 'c']),
    (['/a/c', '/c'], ['a/c', 'c']),
])
def test_names_tell_bags_apart_and_no_more_of_where_they_lie(paths, names):
    assert provenance.names_of([Path(path) for path in paths]) == names


def test_long_texts_are_told_by_their_hash():
    short, long = 'a' * provenance.LONGEST_TEXT, 'b' * (provenance.LONGEST_TEXT + 1)
    found = provenance.shortened({'bags': short, 'sources': long})
    assert found['bags'] == short
    assert hashlib.sha256(long.encode()).hexdigest() in found['sources']
    assert len(found['sources']) < 100
