"""A replay as text and as a picture, also of a run whose critic knew nothing."""

import math

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from idql_ros.policy import default_path  # noqa: E402
from replayed import changed, write_bag  # noqa: E402
from training.replay import replay_bag  # noqa: E402
from training.replay_report import draw, text  # noqa: E402


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('unknown', [{}, {'q'}, {'q', 'v', 'q_mean', 'q_spread', 'distance'}])
def test_a_run_whose_values_are_no_numbers_has_a_picture(tmp_path, policy, records, unknown):
    records = [changed(r, candidates=8, **dict.fromkeys(unknown, math.nan)) for r in records]
    found = replay_bag(write_bag(tmp_path / 'bag', policy.spec, records), [default_path()])
    draw(found, tmp_path / 'values.png')
    assert (tmp_path / 'values.png').read_bytes().startswith(b'\x89PNG')
    assert ('q ' in text(found)) and found.decisions.count == len(records)
