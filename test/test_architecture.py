"""Who may import whom, what is nowhere used, and a test beside every module."""

import ast
from pathlib import Path
import re
import subprocess

import pytest

ROOT = Path(__file__).parents[1]
ROBOT = sorted((ROOT / 'idql_ros').glob('*.py'))
TRAINING = sorted((ROOT / 'training').glob('*.py'))
SOURCES = [*ROBOT, *TRAINING, *sorted((ROOT / 'launch').glob('*.py')), ROOT / 'setup.py']
WORKSTATION = {'torch', 'minari', 'rosbags', 'training', 'onnx', 'h5py', 'tyro', 'tqdm'}
ROS = {'rclpy', 'rcl_interfaces', 'lifecycle_msgs', 'diagnostic_msgs', 'rosgraph_msgs', 'std_msgs',
       'std_srvs', 'ros_gz_interfaces', 'geometry_msgs', 'nav_msgs', 'sensor_msgs',
       'visualization_msgs'}
# The nodes, and what one of them publishes.
SPEAKING_ROS = {'policy_node.py', 'sim_node.py', 'gazebo_reset_node.py', 'topics.py',
                'view.py'}
# Files that make or step an environment; datasets describes its arrays with gymnasium's spaces.
SIMULATING = {
    'datasets.py', 'evaluate.py', 'collect.py', 'drivers.py', 'finetune.py', 'demo.py'}


def name(path):
    """Return a path as the repository names it, for test ids."""
    return path.relative_to(ROOT).as_posix()


def imports(nodes):
    """Return the full names of the modules that syntax tree nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports are absolute'
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ('import_module', '__import__')) and isinstance(node.args[0], ast.Constant):
            names.add(node.args[0].value)
    return names


def top(names):
    """Return the first parts of module names."""
    return {module.split('.')[0] for module in names}


def everywhere(path):
    """Return the packages that a file imports anywhere."""
    return top(imports(ast.walk(ast.parse(path.read_text()))))


def at_import(path):
    """Return the packages that importing a file imports: all but those within functions."""
    nodes, found = [ast.parse(path.read_text())], []
    while nodes:
        node = nodes.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found.append(node)
            nodes += ast.iter_child_nodes(node)
    return top(imports(found))


def test_the_walk_sees_imports_of_every_form(tmp_path):
    path = tmp_path / 'module.py'
    path.write_text('import a.b as c\nfrom d.e import f\nif True:\n    import g\n'
                    'def h():\n    import i\n    importlib.import_module("j.k")\n')
    assert everywhere(path) == {'a', 'd', 'g', 'i', 'j'}
    assert at_import(path) == {'a', 'd', 'g'}
    assert len(ROBOT) > 5 and len(TRAINING) > 5


@pytest.mark.parametrize('path', ROBOT, ids=name)
def test_robot_side_imports_nothing_of_the_workstation(path):
    # A policy file is taken apart with onnx in a process of its own; in a node only for torch.
    allowed = {'vetting.py': {'onnx'}, 'torch_session.py': {'onnx', 'torch'}}
    assert not everywhere(path) & WORKSTATION - allowed.get(path.name, set())
    assert not at_import(path) & WORKSTATION


@pytest.mark.parametrize('path', [*ROBOT, *TRAINING], ids=name)
def test_ros_is_imported_by_nodes_and_their_topics_only(path):
    if path.name not in SPEAKING_ROS:
        assert not everywhere(path) & ROS


@pytest.mark.parametrize('path', TRAINING, ids=name)
def test_rosbags_is_imported_by_the_reader_and_where_bags_are_written_only(path):
    assert 'rosbags' not in everywhere(path) or path.name in (
        'storage.py', 'bag_files.py', 'definitions.py', 'demo.py', 'bag_bench.py')


@pytest.mark.parametrize('path', [*ROBOT, *TRAINING], ids=name)
def test_simulators_are_imported_where_environments_are_made_or_stepped_only(path):
    simulators = {'gymnasium', 'mujoco', 'ogbench'}
    if path in ROBOT:
        assert not at_import(path) & simulators
        assert path.name in ('environments.py', 'camera.py') or not everywhere(path) & simulators
    else:
        assert path.name in SIMULATING or not everywhere(path) & simulators


@pytest.mark.parametrize('path', [*ROBOT, *TRAINING], ids=name)
def test_imports_point_to_the_spec(path):
    own = {module.split('.')[1] for module in imports(ast.walk(ast.parse(path.read_text())))
           if module.startswith('idql_ros.')}
    if path.name in ('spec.py', 'urdf.py'):
        assert own <= ({'urdf'} if path.name == 'spec.py' else set())
    if path in ROBOT and path.name not in SPEAKING_ROS:
        assert not {module for module in own if f'{module}.py' in SPEAKING_ROS}


@pytest.mark.parametrize('path', SOURCES, ids=name)
def test_nothing_runs_what_a_file_of_somebody_else_says(path):
    tree = ast.parse(path.read_text())
    assert not top(imports(ast.walk(tree))) & {
        'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f'{name(path)}:{node.lineno}: {ast.unparse(node)}'
        assert called not in ('eval', 'exec', 'os.system', 'os.popen'), where
        assert not re.fullmatch(r'yaml\.(unsafe_|full_)?load(_all)?', called), where
        assert keywords.get('allow_pickle', 'False') == 'False', where
        assert keywords.get('shell', 'False') == 'False', where
        if called == 'torch.load':
            assert keywords.get('weights_only') == 'True', where


@pytest.mark.parametrize('path', SOURCES, ids=name)
def test_modules_are_named_for_what_they_do(path):
    assert not re.search(r'(^|_)(utils?|helpers?|common|base|managers?|misc)(_|$)', path.stem)


@pytest.mark.parametrize(
    'path', [path for path in [*ROBOT, *TRAINING] if path.stem != '__init__'], ids=name)
def test_every_module_has_a_test_of_its_own(path):
    # The demo is tested as the quick start that it is.
    tested = {'demo': 'quickstart'}.get(path.stem, path.stem)
    assert (ROOT / 'test' / f'test_{tested}.py').is_file()


def test_top_level_folders_are_those_of_the_design():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip('not a git checkout: other folders may lie here')
    folders = {line.split('/')[0] for line in listed.stdout.splitlines() if '/' in line}
    assert folders <= {'.ci', '.github', 'config', 'doc', 'idql_ros', 'launch', 'resource', 'test',
                       'training'}
