"""A graph that cannot be opened is refused in words; one that can tells what it is."""

from pathlib import Path

from idql_ros.session import (
    CPU,
    CUDA,
    engine_folder,
    INPUTS,
    main,
    open_session,
    OUTPUTS,
    Session,
    SessionError,
    TENSORRT,
)
import numpy as np
import onnxruntime
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
    assert session.provider == CPU == 'CPUExecutionProvider'


def test_gpu_that_is_not_there_is_noted_and_the_cpu_used():
    if not {CUDA, TENSORRT}.isdisjoint(onnxruntime.get_available_providers()):
        pytest.skip('this onnxruntime has providers for GPUs')
    for device, missing in (('auto', [CUDA]), ('cuda', [CUDA]), ('tensorrt', [TENSORRT, CUDA])):
        session = open_session(DEFAULT_POLICY.read_bytes(), device=device)
        assert session.provider == CPU
        assert session.notes[0] == f'{CPU} of onnxruntime {onnxruntime.__version__}'
        assert [note.split(':')[0] for note in session.notes[1:]] == [
            f'not {provider}' for provider in missing]
        assert all('onnxruntime-gpu' in note for note in session.notes[1:])
    assert len(open_session(DEFAULT_POLICY.read_bytes(), device='cpu').notes) == 1


@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(),
                    reason='this onnxruntime has no CUDA')
def test_cuda_gives_the_cpus_answers_recorded_or_not():
    content = DEFAULT_POLICY.read_bytes()
    ours, theirs = (open_session(content, device=device) for device in ('cuda', 'cpu'))
    assert ours.provider == CUDA, ours.notes
    for batch, number in ((1, 64), (1, 8), (3, 8), (1, 64)):
        given = inputs(theirs, batch, number)
        for one, other in zip(ours.run(*given), theirs.run(*given), strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() < 2e-4 * max(1, np.abs(other).max())


def inputs(session, batch, number):
    """Return random observations and noise for a session."""
    generator = np.random.default_rng(0)
    observations, noise = (tensor.shape for tensor in session.tensors[:2])
    return (generator.standard_normal((batch, observations[1]), np.float32),
            generator.standard_normal((batch, noise[1], number, noise[3]), np.float32))


def test_graph_that_was_optimised_before_is_what_the_cpu_runs():
    content = DEFAULT_POLICY.read_bytes()
    session = open_session(content, optimised=content, device='cuda')
    given = inputs(session, 1, 4)
    for one, other in zip(session.run(*given), Session(content).run(*given), strict=True):
        assert np.abs(one - other).max() < 1e-5 * max(1, np.abs(other).max())
    if session.provider == CPU:  # a GPU needs the graph before it was made the CPU's
        with pytest.raises(SessionError, match='not an ONNX file'):
            open_session(content, optimised=b'', device='cuda')


@pytest.mark.parametrize('wrong', [{'device': 'gpu'}, {'backend': 'tensorflow'}])
def test_unknown_backend_or_device_is_refused_with_what_is_known(wrong):
    (name, value), = wrong.items()
    with pytest.raises(SessionError, match=f"{name}: expected .*, found '{value}'"):
        open_session(DEFAULT_POLICY.read_bytes(), **wrong)


def test_provider_that_a_build_lacks_is_not_replaced_in_silence():
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip('this onnxruntime has CUDA')
    with pytest.warns(UserWarning), pytest.raises(SessionError, match='CUDAExecutionProvider'):
        Session(DEFAULT_POLICY.read_bytes(), provider=CUDA)


def test_engines_lie_in_the_cache_by_the_files_digest(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    one, other = (engine_folder(content) for content in (b'1', b'2'))
    assert one != other and one.parent == other.parent == tmp_path / 'idql_ros' / 'tensorrt'


def test_only_candidates_that_engines_were_built_for_are_run():
    session = Session(DEFAULT_POLICY.read_bytes(), candidates=[1, 8])
    session.run(*inputs(session, 1, 8))
    for batch, number in ((1, 7), (2, 8)):
        with pytest.raises(SessionError, match=rf'built for \(1, 8\), found {batch} and {number}: '
                                               f'run python -m idql_ros.session FILE {number}'):
            session.run(*inputs(session, batch, number))


@pytest.mark.skipif(TENSORRT not in onnxruntime.get_available_providers(), reason='no TensorRT')
def test_engines_that_were_built_run_with_their_candidates_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    content = DEFAULT_POLICY.read_bytes()
    for number in (8, 16):
        main([str(DEFAULT_POLICY), str(number)])
    session = open_session(content, device='tensorrt')
    assert session.provider == TENSORRT, session.notes
    for number in (1, 8, 16):
        session.run(*inputs(session, 1, number))
    with pytest.raises(SessionError, match=r'built for \(1, 8, 16\)'):
        session.run(*inputs(session, 1, 32))


@pytest.mark.skipif(TENSORRT in onnxruntime.get_available_providers(), reason='there is TensorRT')
def test_engines_are_not_built_without_tensorrt(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(SystemExit, match='error: expected an onnxruntime with TensorRT'):
        main([str(DEFAULT_POLICY), '8'])
    with pytest.raises(SystemExit, match='error: .*No such file'):
        main([str(tmp_path / 'none.onnx')])
    assert not list(tmp_path.iterdir())
