"""What is installed, and what package.xml, setup.py and the requirements say about it."""

import ast
from pathlib import Path
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

from idql_ros.parameters import PARAMETERS
import pytest
import yaml

ROOT = Path(__file__).parents[1]
MANIFEST = ElementTree.parse(ROOT / 'package.xml').getroot()
EXEC_DEPENDS = {element.text for element in MANIFEST.findall('exec_depend')}
SOURCES = [*sorted((ROOT / 'idql_ros').glob('*.py')), *sorted((ROOT / 'launch').glob('*.py'))]
REQUIREMENTS = ['requirements.txt', 'requirements-ros.txt', 'constraints.txt']
# Import name -> package.xml name, where the two differ.
APT_NAMES = {'numpy': 'python3-numpy', 'yaml': 'python3-yaml'}
# In no apt repository: imported when needed, and the error says how to install them.
PIP_ONLY = {'PIL', 'av', 'glfw', 'gymnasium', 'mujoco', 'ogbench', 'onnx', 'onnxruntime', 'torch'}


def imported(nodes):
    """Return the top-level names of the absolute imports among syntax tree nodes."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split('.')[0])
    return names


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Return the files, relative to the prefix, that the package installs from a copy of it."""
    source = tmp_path_factory.mktemp('source')
    for name in ('package.xml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    for name in ('idql_ros', 'training', 'test', 'launch', 'config', 'resource'):
        shutil.copytree(ROOT / name, source / name)
    root = tmp_path_factory.mktemp('root')
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'install', '--root', str(root), '--prefix', '/prefix',
         '--single-version-externally-managed'],
        cwd=source, check=True, capture_output=True, text=True)
    # Some systems put local/ between the prefix and the rest.
    return {
        path.relative_to(root / 'prefix').as_posix().removeprefix('local/')
        for path in root.rglob('*') if path.is_file() and '__pycache__' not in path.parts
    }


def test_version_is_written_once():
    version = MANIFEST.findtext('version')
    texts = [ROOT / 'setup.py', ROOT / 'setup.cfg', ROOT / 'pyproject.toml', *SOURCES]
    texts += (ROOT / 'training').glob('*.py')
    repeated = [p.name for p in texts if re.search(rf'(?<![\w.]){re.escape(version)}(?![\w.])',
                                                   p.read_text())]
    assert repeated == []


def test_setup_takes_what_package_xml_says():
    options = ['--name', '--version', '--description', '--maintainer', '--maintainer-email',
               '--license']
    found = subprocess.run([sys.executable, 'setup.py', *options], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.splitlines()
    maintainer = MANIFEST.find('maintainer')
    assert found[-len(options):] == [
        MANIFEST.findtext('name'), MANIFEST.findtext('version'), MANIFEST.findtext('description'),
        maintainer.text, maintainer.get('email'), MANIFEST.findtext('license')]


def test_every_import_is_an_exec_depend_or_lazy():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        names = imported(ast.walk(tree)) - set(sys.stdlib_module_names) - {'idql_ros'}
        missing = {APT_NAMES.get(name, name) for name in names - PIP_ONLY} - EXEC_DEPENDS
        assert not missing, f'{path.name} imports {missing}: no exec_depend in package.xml'
        eager = imported(tree.body) & PIP_ONLY
        assert not eager, f'{path.name} imports {eager} at its top: import them where needed'


def test_every_named_interface_is_an_exec_depend():
    named = {}
    for path in [*SOURCES, *(ROOT / 'config').rglob('*.yaml')]:
        for package in re.findall(r'\b(\w+)/(?:msg|srv|action)/\w+', path.read_text()):
            named.setdefault(package, path.name)
    assert {'nav_msgs', 'geometry_msgs'} <= set(named), 'the types of the demo are not found'
    for refused in ('tf2_msgs', 'stereo_msgs'):  # named in order to refuse them
        del named[refused]
    assert set(named) <= EXEC_DEPENDS, f'no exec_depend in package.xml for one of {named}'


def test_no_pip_package_or_ros_package_is_an_install_requirement(installed):
    """On a robot they come from apt; pip must not fetch namesakes of ROS packages."""
    metadata = [path for path in installed if path.endswith('egg-info/PKG-INFO')]
    assert len(metadata) == 1
    setup = ast.parse((ROOT / 'setup.py').read_text())
    keywords = {k.arg: k.value for node in ast.walk(setup) if isinstance(node, ast.Call)
                for k in node.keywords}
    assert ast.literal_eval(keywords['install_requires']) == ['setuptools']


def test_only_the_robot_side_is_installed(installed):
    modules = {path.split('site-packages/')[-1].split('dist-packages/')[-1]
               for path in installed if path.endswith('.py') and '/python3' in path}
    assert modules == {f'idql_ros/{path.name}' for path in (ROOT / 'idql_ros').glob('*.py')}
    assert not any('training' in Path(path).parts for path in installed)


def test_every_config_and_launch_file_is_installed(installed):
    for path in [*(ROOT / 'config').rglob('*'), *(ROOT / 'launch').glob('*.launch.py')]:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and not name.startswith('config/training/'):
            assert f'share/idql_ros/{name}' in installed


def test_ros_finds_the_package_and_its_programs(installed):
    assert {'share/ament_index/resource_index/packages/idql_ros', 'share/idql_ros/package.xml',
            'lib/idql_ros/policy_node', 'lib/idql_ros/sim_node',
            'lib/idql_ros/gazebo_reset_node'} <= installed


def test_parameter_file_holds_every_parameter_at_its_default():
    nodes = pytest.importorskip('idql_ros.policy_node', reason='rclpy is not importable here')
    import rclpy
    path = ROOT / 'config' / 'policy_node.yaml'
    stated = yaml.safe_load(path.read_text())['/**']['ros__parameters']
    # As text: nan is not equal to nan.
    assert str(stated) == str({p.name: p.default for p in PARAMETERS})
    rclpy.init(args=['--ros-args', '--params-file', str(path)])
    try:
        nodes.PolicyNode().destroy_node()  # which refuses values of another type
    finally:
        rclpy.shutdown()


def test_requirements_are_pinned_packages_by_name():
    for name in REQUIREMENTS:
        for line in (ROOT / name).read_text().splitlines():
            requirement = line.partition('#')[0].strip()
            assert not requirement or re.fullmatch(
                r'[\w.-]+(\[[\w,]+\])?==\d[\w.]*', requirement), f'{name}: {line}'


def test_licence_file_is_the_declared_one():
    assert MANIFEST.findtext('license') == 'Apache-2.0'
    head = (ROOT / 'LICENSE').read_text().split()[:5]
    assert head == ['Apache', 'License', 'Version', '2.0,', 'January']
