"""A result says which code it was made with."""

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
