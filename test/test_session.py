"""A graph that cannot be opened is refused in words; one that can tells what it is."""

from pathlib import Path

from idql_ros.session import INPUTS, OUTPUTS, Session, SessionError
import pytest

DEFAULT_POLICY = Path(__file__).parents[1] / 'config' / 'policies' / 'pointmaze_medium.onnx'


@pytest.mark.parametrize('content', [b'', b'no graph', DEFAULT_POLICY.read_bytes()[:1000]])
def test_what_is_no_graph_is_refused_in_one_line(content):
    with pytest.raises(SessionError, match='not an ONNX file that onnxruntime') as refusal:
        Session(content)
    assert '\n' not in str(refusal.value)


def test_session_tells_its_tensors_metadata_and_provider():
    session = Session(DEFAULT_POLICY.read_bytes())
    assert [tensor.name for tensor in session.tensors] == [*INPUTS, *OUTPUTS]
    assert 'idql_ros' in session.metadata
    assert session.provider == 'CPUExecutionProvider'
