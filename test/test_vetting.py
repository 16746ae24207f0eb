"""A policy file is untrusted: what is in it may end the child that checks it, and nothing else."""

import copy
import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

from idql_ros.policy import METADATA_KEY, Policy, PolicyError
from idql_ros.spec import load
from idql_ros.vetting import IR_VERSION, MAX_METADATA, MAX_NODES, OPSET, read_spec, vet
import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / 'config' / 'policies' / 'pointmaze_medium.onnx'
OBSERVATION = np.array([2.0, 3.0], np.float32)
STATISTICS = {
    'prototypes': [OBSERVATION.tolist()], 'scale': [1.0, 1.0], 'distance': [0.0, 1.0],
    'ranges': {'32': {name: [0.0, 1.0] for name in ('q', 'advantage', 'spread')}},
}


def default_model():
    """Return the default policy's model."""
    return onnx.load(DEFAULT)


def metadata(model):
    """Return a model's metadata."""
    entry, = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    return json.loads(entry.value)


def set_metadata(model, content):
    """Write a model's metadata: anything JSON holds, or a text."""
    text = content if isinstance(content, str) else json.dumps(content)
    helper.set_model_props(model, {METADATA_KEY: text})


def with_statistics():
    """Return the default policy with an observation of its training data."""
    model = default_model()
    set_metadata(model, metadata(model) | {'statistics': STATISTICS})
    return model


def constant(model, name, value):
    """Add a constant to a model and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def before_q(model, *nodes, last):
    """Put nodes before the output q; the last reads it as it was, 'inner', and makes it."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ['inner' if name == 'q' else name for name in names]
    model.graph.node.extend([*nodes, last])


def node(*arguments, **attributes):
    """Return a node."""
    return helper.make_node(*arguments, **attributes)


def refusal(path, model=None, **options):
    """Return the text that refuses a file, without the file's name before it."""
    if model is not None:
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(PolicyError) as refused:
        vet(path, **options)
    text = str(refused.value)
    assert text.startswith(f'{path}: ') and text.isprintable() and len(text) < 1500
    return text.removeprefix(f'{path}: ')


def values(decision):
    """Return all numbers of a decision as bytes."""
    return b''.join(np.asarray(x).tobytes() for x in (
        decision.action, decision.q, decision.v, decision.candidates, decision.candidate_q))


def test_a_vetted_file_decides_bit_for_bit_what_the_file_itself_decides():
    vetted = vet(DEFAULT)
    assert vetted.content == DEFAULT.read_bytes() and vetted.path == DEFAULT
    assert vetted.candidates == (Policy(DEFAULT).candidates,)
    policy, plain = Policy(DEFAULT, vetted=vetted), Policy(DEFAULT)
    assert (policy.digest, policy.spec, policy.provenance, policy.candidates) == (
        plain.digest, plain.spec, plain.provenance, plain.candidates)
    rng = np.random.default_rng(0)
    for tick, candidates in enumerate((1, 2, 7, 8, 32, 64, 100, 1024, 5000)):
        observation = rng.normal(5, 5, 2).astype(np.float32)
        first, second = (p.decide(observation, tick, 0, candidates) for p in (policy, plain))
        assert values(first) == values(second)


def test_the_optimised_graph_opens_faster_than_the_file():
    vetted = vet(DEFAULT)

    def fastest(**options):
        times = []
        for _ in range(10):
            start = time.perf_counter()
            Policy(DEFAULT, **options)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(vetted=vetted) < 0.8 * fastest()


def test_what_is_opened_is_what_was_checked_though_the_file_changed_since(tmp_path):
    path = tmp_path / 'p.onnx'
    shutil.copy(DEFAULT, path)
    vetted = vet(path)
    path.write_bytes(b'something else')
    policy = Policy(path, vetted=vetted)
    assert policy.digest == Policy(DEFAULT).digest
    assert values(policy.decide(OBSERVATION, 0, 0, 8)) == values(
        Policy(DEFAULT).decide(OBSERVATION, 0, 0, 8))


def test_files_that_cannot_be_read_are_refused_without_waiting_for_them(tmp_path):
    assert 'cannot be read: No such file' in refusal(tmp_path / 'none.onnx')
    assert 'cannot be read: Is a directory' in refusal(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    assert refusal(tmp_path / 'pipe') == 'expected a regular file'
    path = tmp_path / 'large.onnx'
    with path.open('wb') as file:
        file.truncate(512 * 2**20 + 1)
    assert re.match('larger than .* bytes', refusal(path))
    (tmp_path / 'empty.onnx').touch()
    assert refusal(tmp_path / 'empty.onnx') == 'cannot be read: nothing in it'
    with pytest.raises(PolicyError, match=r"^'a\\x00b': cannot be read: embedded null"):
        vet('a\0b')
    # A regular file that may have nothing to say, and would be waited for.
    with pytest.raises(PolicyError, match='^/proc/kmsg: (cannot be read: |not an ONNX file)'):
        vet('/proc/kmsg')


def test_the_spec_is_read_of_a_file_that_was_checked(tmp_path):
    assert read_spec(DEFAULT) == load(ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml')
    model = default_model()
    endless_loop(model)
    (tmp_path / 'p.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(PolicyError, match="found 'Loop'"):
        read_spec(tmp_path / 'p.onnx')


def loop(trips, condition=''):
    """Return a Loop that counts, for so many rounds or while a constant condition holds."""
    body = helper.make_graph(
        [node('Identity', ['going'], ['on']), node('Add', ['x', 'x'], ['y'])], 'body',
        [helper.make_tensor_value_info('round', TensorProto.INT64, []),
         helper.make_tensor_value_info('going', TensorProto.BOOL, []),
         helper.make_tensor_value_info('x', TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info('on', TensorProto.BOOL, []),
         helper.make_tensor_value_info('y', TensorProto.FLOAT, None)])
    return node('Loop', [trips, condition, 'inner'], ['q'], body=body)


def endless_loop(m):
    before_q(m, last=loop('', constant(m, 'true', True)))


def long_loop(m):
    before_q(m, last=loop(constant(m, 'trips', np.int64(2**62))))


def branch(m):
    graph = helper.make_graph([node('Identity', ['inner'], ['chosen'])], 'branch', [],
                              [helper.make_tensor_value_info('chosen', TensorProto.FLOAT, None)])
    before_q(m, last=node('If', [constant(m, 'c', True)], ['q'], then_branch=graph,
                          else_branch=graph))


def enormous_expand(m):
    constant(m, 'sizes', np.array([2**20, 2**20, 1], np.int64))
    before_q(m, node('Expand', ['inner', 'sizes'], ['large']),
             node('ReduceMin', ['large'], ['mean'], keepdims=0),
             last=node('Add', ['inner', 'mean'], ['q']))


def enormous_constant(m):
    constant(m, 'sizes', np.array([2**31], np.int64))
    before_q(m, node('ConstantOfShape', ['sizes'], ['large']),
             node('ReduceMin', ['large'], ['mean'], keepdims=0),
             last=node('Add', ['inner', 'mean'], ['q']))


def large_folded_constant(m):
    # 4 MB, which the optimised graph would hold in place of the few bytes that make it.
    constant(m, 'sizes', np.array([2000, 2000], np.int64))
    before_q(m, node('ConstantOfShape', ['sizes'], ['large']),
             node('MatMul', ['large', 'large'], ['product']),
             node('Expand', ['v', constant(m, 'one', np.array([2000], np.int64))], ['row']),
             node('MatMul', ['row', 'product'], ['read']),
             node('ReduceMin', ['read'], ['mean'], keepdims=0),
             last=node('Add', ['inner', 'mean'], ['q']))


def external_data(m):
    onnx.external_data_helper.set_external_data(m.graph.initializer[5], '/etc/passwd')
    m.graph.initializer[5].ClearField('raw_data')


def external_data_of_a_constant(m):
    tensor = helper.make_tensor('elsewhere', TensorProto.FLOAT, [1], [0.0], raw=False)
    tensor.raw_data = bytes(4)
    onnx.external_data_helper.set_external_data(tensor, '/dev/zero')
    before_q(m, node('Constant', [], ['zero'], value=tensor),
             last=node('Add', ['inner', 'zero'], ['q']))


def sparse(m):
    tensor = m.graph.sparse_initializer.add()
    tensor.values.name = 'sparse'
    tensor.dims.append(2**40)


def text_tensor(m):
    m.graph.initializer.append(helper.make_tensor('text', TensorProto.STRING, [1], [b'a']))


def negative_size(m):
    m.graph.initializer[5].dims[0] = -1


def claimed_size(m):
    m.graph.initializer[5].dims[0] = 2**40


def custom_domain(m):
    before_q(m, last=node('Custom', ['inner'], ['q'], domain='com.example'))
    m.opset_import.append(helper.make_opsetid('com.example', 1))


def domain_of_one_node(m):
    before_q(m, last=node('Gelu', ['inner'], ['q'], domain='com.microsoft'))


def function(m, inner='Identity'):
    before_q(m, last=node('F', ['inner'], ['q'], domain='own'))
    m.opset_import.append(helper.make_opsetid('own', 1))
    m.functions.append(helper.make_function(
        'own', 'F', ['x'], ['y'], [node(inner, ['x'], ['y'], domain='own' * (inner == 'F'))],
        m.opset_import))


def recursive_function(m):
    function(m, 'F')


def function_alone(m):
    function(m)
    del m.opset_import[1]


def newer_opset(m):
    m.opset_import[0].version = OPSET + 1


def newer_ir(m):
    m.ir_version = IR_VERSION + 1


def random_numbers(m):
    before_q(m, node('RandomNormalLike', ['inner'], ['random']),
             last=node('Add', ['inner', 'random'], ['q']))


def size_that_data_decides(m):
    before_q(m, node('ReduceMin', ['observations'], ['least'], keepdims=0),
             node('Cast', ['least'], ['whole'], to=TensorProto.INT64),
             node('Reshape', ['whole', constant(m, 'one', np.array([1]))], ['size']),
             node('Expand', ['v', 'size'], ['large']),
             node('ReduceMin', ['large'], ['mean'], keepdims=0),
             last=node('Add', ['inner', 'mean'], ['q']))


def index_that_data_decides(m):
    before_q(m, node('Cast', ['v'], ['whole'], to=TensorProto.INT64),
             node('Gather', ['v', 'whole'], ['read']),
             last=node('Add', ['inner', 'read'], ['q']))


def divided_by_data(m):
    before_q(m, node('Cast', ['v'], ['whole'], to=TensorProto.INT64),
             node('Div', [constant(m, 'one', np.array([1])), 'whole'], ['share']),
             node('Cast', ['share'], ['float'], to=TensorProto.FLOAT),
             last=node('Add', ['inner', 'float'], ['q']))


def divided_by_a_choice(m):
    before_q(m, node('Equal', ['v', constant(m, 'level', np.float32([9e9]))], ['high']),
             node('Where', ['high', constant(m, 'none', np.array([0])),
                            constant(m, 'one', np.array([1]))], ['whole']),
             node('Div', ['one', 'whole'], ['share']),
             node('Cast', ['share'], ['float'], to=TensorProto.FLOAT),
             last=node('Add', ['inner', 'float'], ['q']))


def divided_by_a_size(m):
    # With 8 or 32 candidates it answers; with 65 it ends the process.
    before_q(m, node('Shape', ['noise'], ['n'], start=2, end=3),
             node('Sub', ['n', constant(m, 'many', np.array([65]))], ['less']),
             node('Div', [constant(m, 'one', np.array([1])), 'less'], ['share']),
             node('Cast', ['share'], ['float'], to=TensorProto.FLOAT),
             last=node('Add', ['inner', 'float'], ['q']))


def divided_without_an_answer(m):
    # The one division of whole numbers, but for that by zero, that ends the process.
    before_q(m, node('Div', [constant(m, 'least', np.array([-2**63])),
                             constant(m, 'minus', np.array([-1]))], ['share']),
             node('Cast', ['share'], ['float'], to=TensorProto.FLOAT),
             node('ReduceMin', ['float'], ['mean'], keepdims=0),
             last=node('Add', ['inner', 'mean'], ['q']))


def cast_to_text(m):
    # A number again for what is finite; else an inference that fails.
    before_q(m, node('Cast', ['inner'], ['text'], to=TensorProto.STRING),
             node('Cast', ['text'], ['whole'], to=TensorProto.INT64),
             last=node('Cast', ['whole'], ['q'], to=TensorProto.FLOAT))


def cast_to_double(m):
    before_q(m, node('Cast', ['inner'], ['double'], to=TensorProto.DOUBLE),
             last=node('Cast', ['double'], ['q'], to=TensorProto.FLOAT))


def out_of_order(m):
    nodes = list(m.graph.node)
    del m.graph.node[:]
    m.graph.node.extend(reversed(nodes))


def too_many_nodes(m):
    names = ['inner', *(f'n{i}' for i in range(MAX_NODES)), 'q']
    nodes = [node('Identity', [a], [b]) for a, b in zip(names, names[1:], strict=False)]
    before_q(m, *nodes[:-1], last=nodes[-1])


def another_shape(m):
    before_q(m, last=node('Concat', ['inner', 'inner'], ['q'], axis=1))


def not_finite(m):
    before_q(m, last=node('Mul', ['inner', constant(m, 'nan', np.float32(np.nan))], ['q']))


def other_type(m):
    before_q(m, last=node('Cast', ['inner'], ['q'], to=TensorProto.INT64))


def large_metadata(m):
    helper.set_model_props(m, {METADATA_KEY: json.dumps(metadata(m)),
                               'more': ' ' * MAX_METADATA})


def repeated_metadata(m):
    m.metadata_props.append(m.metadata_props[0])


def deep_metadata(m):
    set_metadata(m, '{"spec":' * 50_000 + '0' + '}' * 50_000)


def no_prototype(m):
    content = metadata(m)
    content['statistics']['prototypes'] = []
    set_metadata(m, content)


@pytest.mark.parametrize(('change', 'reason'), [
    (endless_loop, "graph: node '': expected an operator of a policy .* found 'Loop'"),
    (long_loop, "found 'Loop'"),
    (branch, "found 'If'"),
    (enormous_expand, 'alloc'),
    (enormous_constant, 'alloc'),
    (large_folded_constant, '.'),
    (external_data, 'expected all numbers inside the file, found a reference to another file'),
    (external_data_of_a_constant, 'found a reference to another file'),
    (sparse, 'found sparse ones'),
    (text_tensor, 'expected tensors of float32 or whole numbers, found data type'),
    (negative_size, 'a tensor has a negative size'),
    (claimed_size, 'expected tensors of 536870912 bytes together at most'),
    (custom_domain, "expected those of ONNX alone, found the domains '', 'com.example'"),
    (domain_of_one_node, "found 'Gelu' of 'com.microsoft'"),
    (function, "found the domains '', 'own'"),
    (recursive_function, "found the domains '', 'own'"),
    (function_alone, 'expected a graph alone, found functions'),
    (newer_opset, f'opset: expected {OPSET} at most, found {OPSET + 1}; export .* again'),
    (newer_ir, f'IR version: expected {IR_VERSION} at most, found'),
    (random_numbers, "found 'RandomNormalLike'"),
    (size_that_data_decides, 'expected float32, found whole numbers made of data|no data decides'),
    (index_that_data_decides, 'expected sizes and indices that no data decides'),
    (divided_by_data, 'expected float32, found whole numbers made of data'),
    (divided_by_a_choice, 'expected float32, found whole numbers made of data'),
    (divided_by_a_size, 'expected a division of float32 made of data, found another'),
    (divided_without_an_answer, 'expected a division of float32 made of data, found another'),
    (cast_to_text, 'expected a cast to FLOAT, INT64, .*, found another type'),
    (cast_to_double, 'expected a cast to FLOAT, INT64, .*, found another type'),
    (out_of_order, 'expected inputs that nodes before it make'),
    (too_many_nodes, f'graph: expected at most {MAX_NODES} nodes'),
    (another_shape, r'expected answers of the shapes \[\(1, 32, 2\), \(1, 32\), \(1,\)\], found'),
    (not_finite, 'its answers to an observation of its own training data are not finite'),
    (other_type, 'graph: expected inputs and outputs of float32|opens'),
    (large_metadata, f'metadata: expected at most {MAX_METADATA} characters'),
    (repeated_metadata, 'metadata: expected each key once, found one again'),
    (deep_metadata, 'metadata idql_ros: expected JSON'),
    (no_prototype, 'statistics.prototypes: expected'),
], ids=lambda value: getattr(value, '__name__', ''))
def test_file_that_could_harm_is_refused_and_the_reason_is_told(tmp_path, change, reason):
    model = with_statistics()
    change(model)
    text = refusal(tmp_path / 'p.onnx', model)
    assert re.search(reason, text), text


@pytest.mark.parametrize('activation', ['mish', 'silu', 'relu'])
@pytest.mark.parametrize('weights', ['float32', 'int8'])
def test_what_the_export_writes_passes_and_is_opened_as_it_is(tmp_path, activation, weights):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    from training.idql import IDQL, IDQLConfig
    from training.policy_graph import float_product, policy_graph
    from training.quantise import int8_product
    torch.manual_seed(0)
    idql = IDQL(IDQLConfig(actor_width=32, actor_blocks=2, actor_activation=activation),
                torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2))
    model = policy_graph(idql.eval(), int8_product if weights == 'int8' else float_product)
    set_metadata(model, metadata(default_model()))
    path = tmp_path / 'p.onnx'
    path.write_bytes(model.SerializeToString())
    vetted = vet(path, candidates=[100], deadline_s=1.0)
    for candidates in (1, 64, 100):
        first, second = (policy.decide(OBSERVATION, 1, 0, candidates)
                         for policy in (Policy(path, vetted=vetted), Policy(path)))
        assert values(first) == values(second)


def test_field_that_this_onnx_does_not_know_is_refused(tmp_path):
    # Field 999 of the model, a number: an ONNX Runtime newer than onnx might know it.
    text = refusal(tmp_path / 'p.onnx', DEFAULT.read_bytes() + b'\xb8\x3e\x01')
    assert re.match(r'holds fields that onnx [\d.]+ does not know', text)


def test_zeros_need_not_be_an_observation(tmp_path):
    # Without statistics nobody knows an observation; what is not finite there is the guard's.
    model = default_model()
    set_metadata(model, {k: v for k, v in metadata(model).items() if k != 'statistics'})
    not_finite(model)
    (tmp_path / 'p.onnx').write_bytes(model.SerializeToString())
    assert np.isnan(Policy(tmp_path / 'p.onnx', vetted=vet(tmp_path / 'p.onnx')).decide(
        OBSERVATION, 0, 0, 4).q)


def slow_model(rounds=1000):
    """Return a model of a few kilobytes more that takes hours to open."""
    model = default_model()
    constant(model, 'sizes', np.array([1024, 1024], np.int64))
    nodes = [node('ConstantOfShape', ['sizes'], ['p0'])]
    nodes += [node('MatMul', [f'p{i}', f'p{i}'], [f'p{i + 1}']) for i in range(rounds)]
    nodes += [node('ReduceMin', [f'p{rounds}'], ['mean'], keepdims=0)]
    before_q(model, *nodes, last=node('Add', ['inner', 'mean'], ['q']))
    return model


def test_check_that_does_not_end_is_ended(tmp_path):
    start = time.monotonic()
    text = refusal(tmp_path / 'p.onnx', slow_model(), timeout_s=1.5)
    assert text == 'refused: its check was not done within 1.5 s'
    assert time.monotonic() - start < 4


def test_file_that_crashes_its_check_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'onnx.py').write_text('import os\nos.abort()\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert refusal(DEFAULT) == 'refused: its check crashed (Aborted)'


def begun_child(parent):
    """Return the id of a process's child, once it has bound itself."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = [child for task in Path(f'/proc/{parent}/task').iterdir()
                    for child in (task / 'children').read_text().split()]
        if children and Path(f'/proc/{children[0]}/oom_score_adj').read_text() == '1000\n':
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError('no child began within 20 s')


@pytest.mark.parametrize(('number', 'reason'), [
    (signal.SIGKILL, 'was killed, probably because the machine ran out of memory'),
    (signal.SIGSEGV, r'crashed \(Segmentation fault\)'),
    (signal.SIGXCPU, 'took more than 30 s of processor time for each thread'),
])
def test_check_that_is_ended_from_outside_refuses_the_file(tmp_path, number, reason):
    path = tmp_path / 'p.onnx'
    path.write_bytes(slow_model().SerializeToString())
    with vetting_elsewhere(path) as parent:
        os.kill(begun_child(parent.pid), number)
        _, errors = parent.communicate()
    assert re.search(f'PolicyError: {re.escape(str(path))}: refused: its check {reason}$',
                     errors.strip())


def vetting_elsewhere(path):
    """Return a process that vets a file."""
    code = 'import sys; from idql_ros.vetting import vet; vet(sys.argv[1])'
    return subprocess.Popen([sys.executable, '-c', code, path], cwd=ROOT, text=True,
                            stderr=subprocess.PIPE)


def test_candidates_asked_for_are_tried(tmp_path):
    model = default_model()
    # 100 numbers for each pair of candidates.
    constant(model, 'sizes', np.array([100, 1, 1, 1], np.int64))
    before_q(model, node('Unsqueeze', ['inner', constant(model, 'two', np.array([2]))], ['tall']),
             node('Unsqueeze', ['inner', constant(model, 'first', np.array([1]))], ['wide']),
             node('Mul', ['tall', 'wide'], ['pairs']),
             node('Expand', ['pairs', 'sizes'], ['hundred']),
             node('ReduceMin', ['hundred'], ['least'], axes=[0, 3], keepdims=0),
             last=node('Add', ['inner', 'least'], ['q']))
    path = tmp_path / 'p.onnx'
    path.write_bytes(model.SerializeToString())
    assert vet(path, candidates=[64])
    assert 'fails with 4096 candidates' in refusal(path, candidates=[4096])


@pytest.mark.parametrize(('options', 'tried'), [
    ({}, (32,)), ({'candidates': [100]}, (100,)), ({'candidates': [0, 1]}, (32, 1)),
    ({'candidates': [100], 'deadline_s': 0.1}, (100, 64, 32, 16, 8)),
    ({'deadline_s': 0.1}, (32, 16, 8)),
])
def test_every_number_of_candidates_that_may_come_up_is_tried(tmp_path, options, tried):
    assert vet(DEFAULT, **options).candidates == tried
    for failing in (*tried, 7):
        # Sizes that do not fit with one N.
        model = default_model()
        before_q(model, node('Shape', ['noise'], ['n'], start=2, end=3),
                 node('Equal', ['n', constant(model, 'one', np.array([failing]))], ['it']),
                 node('Where', ['it', constant(model, 'three', np.array([1, 3])),
                                constant(model, 'same', np.array([1, 1]))], ['sizes']),
                 node('Expand', [constant(model, 'zero', np.float32([[0]])), 'sizes'], ['row']),
                 last=node('Add', ['inner', 'row'], ['q']))
        path = tmp_path / 'p.onnx'
        path.write_bytes(model.SerializeToString())
        if failing in tried:
            assert re.search(rf'fails with {failing} candidates|found \[\(1, {failing}, 2\)',
                             refusal(path, **options))
        else:
            assert vet(path, **options).candidates == tried


def test_of_more_candidates_than_one_run_takes_the_runs_are_tried(tmp_path):
    # 5000 are drawn as 2500 and 2500.
    model = default_model()
    before_q(model, node('Shape', ['noise'], ['n'], start=2, end=3),
             node('Equal', ['n', constant(model, 'half', np.array([2500]))], ['it']),
             node('Where', ['it', constant(model, 'three', np.array([1, 3])),
                            constant(model, 'same', np.array([1, 1]))], ['sizes']),
             node('Expand', [constant(model, 'zero', np.float32([[0]])), 'sizes'], ['row']),
             last=node('Add', ['inner', 'row'], ['q']))
    (tmp_path / 'p.onnx').write_bytes(model.SerializeToString())
    assert 'fails with 2500 candidates' in refusal(tmp_path / 'p.onnx', candidates=[5000])


@pytest.mark.parametrize('candidates', [-1, 65537])
def test_numbers_of_candidates_that_no_policy_draws_are_refused(candidates):
    assert 'candidates: expected 1 to 65536' in refusal(DEFAULT, candidates=[candidates])


def test_missing_onnx_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / 'onnx.py').write_text('raise ImportError("not here")\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert refusal(DEFAULT) == 'cannot be checked: onnx is not installed: pip install onnx'


def test_check_does_not_depend_on_where_the_node_was_started(tmp_path):
    (tmp_path / 'onnx.py').write_text('raise ImportError("of somebody else")\n')
    code = ('import sys; sys.path[:0] = [sys.argv[1]]\n'
            'from idql_ros.vetting import vet\nprint(vet(sys.argv[2]).digest)')
    found = subprocess.run([sys.executable, '-c', code, ROOT, DEFAULT], cwd=tmp_path,
                           capture_output=True, text=True)
    assert found.stdout.strip() == Policy(DEFAULT).digest, found.stderr


def test_check_ends_with_the_process_that_asked_for_it(tmp_path):
    path = tmp_path / 'p.onnx'
    path.write_bytes(slow_model().SerializeToString())
    with vetting_elsewhere(path) as parent:
        child = begun_child(parent.pid)
        parent.kill()
    deadline = time.monotonic() + 10
    # Whoever takes in a process that lost its parent may leave its entry there for a while.
    while Path(f'/proc/{child}/exe').exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Files that were changed at random

OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
EVIL = [float('nan'), float('inf'), -float('inf'), 1e308, 1e-320, -1, 0, 1, 2**31, 2**63, 10**400,
        'x', '', None, True, [], {}, [[]], {'a': {}}, '\n\x1b[31m', '\ud800', 'é' * 1000]


def flip(rng, content):
    content = bytearray(content)
    for at in rng.integers(0, len(content), rng.integers(1, 9)):
        content[at] ^= 1 << rng.integers(8)
    return bytes(content)


def flip_in_the_structure(rng, content):
    """Flip bits outside the weights, which are most of the file."""
    model = onnx.load_from_string(content)
    starts = [content.find(t.raw_data) for t in model.graph.initializer if len(t.raw_data) > 64]
    lengths = [len(t.raw_data) for t in model.graph.initializer if len(t.raw_data) > 64]
    structure = np.ones(len(content), bool)
    for start, length in zip(starts, lengths, strict=True):
        structure[start:start + length] = False
    content = bytearray(content)
    for at in rng.choice(np.flatnonzero(structure), rng.integers(1, 5)):
        content[at] ^= 1 << rng.integers(8)
    return bytes(content)


def cut(rng, content):
    return content[:rng.integers(len(content))]


def splice(rng, content):
    start, end = np.sort(rng.integers(0, len(content), 2))
    at = rng.integers(len(content))
    end = min(end, start + int(rng.integers(1, 2000)))
    kept = at + int(rng.integers(0, 2)) * (end - start)
    return content[:at] + content[start:end] + content[kept:]


def change_graph(rng, content):
    model = onnx.load_from_string(content)
    graph = model.graph
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(graph.node)))
        chosen, other = graph.node[at], graph.node[int(rng.integers(len(graph.node)))]
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
        number = int(rng.choice([-2**63, -2**31, -1, 0, 1, 2, 3, 7, 2**20, 2**31, 2**62]))
        kind = int(rng.integers(16))
        if kind == 0:
            del graph.node[at]
        elif kind == 1:
            graph.node.insert(int(rng.integers(len(graph.node))), copy.deepcopy(chosen))
        elif kind == 2:
            chosen.op_type = OPERATORS[int(rng.integers(len(OPERATORS)))]
        elif kind == 3 and chosen.input and other.output:
            chosen.input[int(rng.integers(len(chosen.input)))] = other.output[0]
        elif kind == 4 and chosen.input and other.input:
            chosen.input[int(rng.integers(len(chosen.input)))] = other.input[-1]
        elif kind == 5 and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = number
        elif kind == 6:
            tensor.data_type = int(rng.integers(0, 24))
        elif kind == 7:
            tensor.dims[:] = list(reversed(tensor.dims))
        elif kind == 8:
            graph.initializer.remove(tensor)
        elif kind in (9, 10):
            of = [n for n in graph.node if n.attribute]
            attribute = of[int(rng.integers(len(of)))].attribute[0]
            if attribute.HasField('t'):
                attribute.t.raw_data = np.full(len(attribute.t.raw_data) // 8, number).tobytes()
            else:
                attribute.i = number
                attribute.ints[:] = [number for _ in attribute.ints]
                attribute.f = [np.nan, np.inf, 0.0, -1e30][int(rng.integers(4))]
        elif kind == 11:
            array = np.frombuffer(tensor.raw_data, np.float32).copy()
            array[rng.integers(0, len(array), 3)] = rng.choice([np.nan, np.inf, -3e38, 1e-40])
            tensor.raw_data = array.tobytes()
        elif kind == 12:
            value = [*graph.input, *graph.output][int(rng.integers(5))]
            size = value.type.tensor_type.shape.dim[0]
            size.dim_value = number
        elif kind == 13:
            value = [*graph.input, *graph.output][int(rng.integers(5))]
            value.type.tensor_type.elem_type = int(rng.integers(0, 24))
        elif kind == 14 and chosen.attribute:
            chosen.attribute[0].type = int(rng.integers(0, 15))
        elif kind == 15:
            chosen.domain = ['ai.onnx', 'ai.onnx.ml', 'com.microsoft', 'x'][int(rng.integers(4))]
    return model.SerializeToString()


def change_metadata(rng, content):
    model = onnx.load_from_string(content)
    tree = metadata(model)
    for _ in range(rng.integers(1, 3)):
        holder = tree
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            below = holder[key]
            if isinstance(below, (dict, list)) and rng.random() < 0.85:
                holder = below
            elif rng.random() < 0.2:
                del holder[key]
                break
            else:
                holder[key] = EVIL[int(rng.integers(len(EVIL)))]
                break
    text = json.dumps(tree)
    if rng.random() < 0.2:
        at = int(rng.integers(len(text)))
        text = text[:at] + str(rng.choice(['', '[' * 10**5, '1e999', 'NaN', '9' * 5000, '}'])
                               ) + text[at + int(rng.integers(2)):]
    set_metadata(model, text)
    return model.SerializeToString()


MUTATIONS = (flip, flip_in_the_structure, cut, splice, change_graph, change_graph,
             change_metadata)


def mutated(folder, seeds):
    """Write the default policy, changed at random, once for each seed; return the paths."""
    content = with_statistics().SerializeToString()
    paths = []
    for seed in seeds:
        paths.append(folder / f'{seed}.onnx')
        paths[-1].write_bytes(
            MUTATIONS[seed % len(MUTATIONS)](np.random.default_rng(seed), content))
    return paths


# Stands for the node: it checks files one after the other, opens what passes, and lives. Where it
# forks, a child begins with everything imported, so that many files take little time; the child
# then runs what it would have run.
PARENT = """
import json, os, sys, warnings
import numpy as np
import onnx, onnxruntime
from idql_ros import policy, vetting

def forked(order, given, printed):
    child = os.fork()
    if child == 0:
        os.dup2(given.fileno(), 0)
        os.dup2(printed.fileno(), 2)
        sys.argv[1:] = [json.dumps(order)]
        vetting.main()
    class Process:
        pid = child
    in_time = vetting._ended(Process, order['timeout_s'])
    if not in_time:
        os.kill(child, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if in_time else None

def kilobytes(key):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))

if sys.argv[1] == 'fork':
    vetting._run_child = forked
paths = sys.argv[2:]
before = kilobytes('VmRSS:')
for path in paths:
    try:
        vetted = vetting.vet(path, timeout_s=10)
    except policy.PolicyError as error:
        print(json.dumps([path, str(error)]), flush=True)
        continue
    opened = policy.Policy(path, vetted=vetted)
    statistics = json.loads(opened._session.metadata['idql_ros']).get('statistics')
    known = statistics and statistics['prototypes'][0]
    for observation in ([2.0, 3.0], [0.0, 0.0], [1e30, -1e30], known or [-7.5, 1e-30]):
        for tick in (0, 7):
            for candidates in (opened.candidates, 1):
                decision = opened.decide(
                    np.array(observation, np.float32), tick, 0, candidates)
                assert decision.action.shape == (2,)
                assert decision.candidates.shape == (candidates, 2)
                assert decision.candidate_q.shape == (candidates,)
                # Damaged weights may still fail with another noise: that is for the guard.
                if observation == known and tick == 0:
                    assert np.isfinite(decision.candidates).all() and np.isfinite(decision.q)
    print(json.dumps([path, '']), flush=True)
print(kilobytes('VmHWM:') - before)
"""


def check_all(how, paths):
    """Check files in two parents at a time; return path -> refusal, '' for those that decide."""
    parents = [subprocess.Popen(
        [sys.executable, '-c', PARENT, how, *paths[part::2]], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for part in range(2)]
    texts = {}
    for parent in parents:
        printed, errors = parent.communicate()
        assert parent.returncode == 0, errors
        *lines, growth = printed.splitlines()
        assert int(growth) < 100_000, 'kilobytes that the parent grew by'
        texts |= map(json.loads, lines)
    assert texts.keys() == {str(path) for path in paths}
    return texts


@pytest.mark.parametrize(('how', 'seeds'), [
    ('fork', range(350)),
    ('spawn', range(1000, 1042)),
], ids=['children-that-begin-with-everything-imported', 'real-children'])
def test_file_changed_at_random_is_refused_in_one_line_or_decides(tmp_path, how, seeds):
    texts = check_all(how, mutated(tmp_path, seeds))
    refused = [text for text in texts.values() if text]
    assert 0.5 * len(texts) < len(refused) < len(texts)
    assert all(text.isprintable() and len(text) < 1500 for text in refused)
