"""The files in config/ that speak of policy_node's topics, against a node that runs."""

import json
from pathlib import Path
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

harness = pytest.importorskip('harness', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from idql_ros import recorded  # noqa: E402
from idql_ros.camera import CameraError  # noqa: E402
from idql_ros.environments import SimulationError  # noqa: E402
from idql_ros.message import ros_class  # noqa: E402
from idql_ros.policy import Policy  # noqa: E402
from idql_ros.spec import load  # noqa: E402
from idql_ros.topics import LATCHED, VALUE_LABELS  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

CONFIG = Path(__file__).parents[1] / 'config'
SPECS = {'policy_node': 'pointmaze_medium', 'ur5e_cube': 'ur5e_cube'}
FOXGLOVE = {name: json.loads((CONFIG / f'{name}.foxglove.json').read_text()) for name in SPECS}
RVIZ = {name: yaml.safe_load((CONFIG / f'{name}.rviz').read_text())['Visualization Manager']
        for name in SPECS}
SROS2 = ElementTree.parse(
    CONFIG / 'policy_node.sros2.xml',
    ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))).getroot()
ENCLAVES = ('policy_node', 'operator', 'recorder')
# What any node of rclcpp or rclpy has for itself.
OF_EVERY_NODE = {'/rosout', '/parameter_events', '/clock'}


def offered(policy, folder):
    """Return what a node with all its topics offers and uses (name -> type), and what it tells."""
    with harness.robot() as robot, harness.running('idql_ros.policy_node', {
            'model': policy, 'autostart': True, 'publish_candidates': True, 'use_sim_time': True,
            'deadman_timeout': 1.0}, folder / 'node.log'):
        diagnostics, status = robot.listen(DiagnosticArray, '/diagnostics'), []
        robot.node.create_subscription(
            DiagnosticStatus, '/policy_node/status', status.append, LATCHED)
        robot.spin_until(lambda: diagnostics and status, 'what the node tells')

        def known(what):
            found = getattr(robot.node, f'get_{what}_names_and_types_by_node')('policy_node', '/')
            return {name: types[0] for name, types in found}

        # It subscribes before it tells, but the graph may be late.
        observed = {f'/{signal.topic}' for signal in Policy(policy).spec.observations}
        robot.spin_until(lambda: observed <= set(known('subscriber')), 'its subscriptions')
        return SimpleNamespace(
            publishes=known('publisher'), subscribes=known('subscriber'),
            serves=known('service'), calls=known('client'), status=status[0],
            diagnostics=diagnostics[0].status)


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
    """Return what the node offers with each robot's policy; by the name of its views."""
    return {name: offered(CONFIG / 'policies' / f'{robot}.onnx', tmp_path_factory.mktemp(name))
            for name, robot in SPECS.items()}


@pytest.fixture(scope='module')
def node(nodes):
    """Return what the node offers with the installed policy."""
    return nodes['policy_node']


@pytest.fixture(scope='module')
def simulations():
    """Return what sim_node publishes (name -> type) with all that can be looked at, by view."""
    sim_node = pytest.importorskip('idql_ros.sim_node', reason='no simulation here')
    found = {}
    with harness.robot() as robot:
        for name, spec in SPECS.items():
            try:
                node = sim_node.SimNode(context=robot.context, parameter_overrides=[
                    Parameter('spec', value=str(CONFIG / 'robots' / f'{spec}.yaml')),
                    Parameter('image_rate', value=1.0)])
            except (CameraError, SimulationError) as error:
                pytest.skip(str(error))
            found[name] = {
                topic: types[0] for topic, types in node.get_publisher_names_and_types_by_node(
                    'sim_node', '/')}
            node.destroy_node()
    return found


def permitted(enclave):
    """Return the names that a profile allows: publish, subscribe, request, reply -> set."""
    profile, = SROS2.iterfind(f"enclaves/enclave[@path='/idql_ros/{enclave}']/profiles/profile")
    node = profile.get('ns') + profile.get('node')
    allowed = {key: set() for key in ('publish', 'subscribe', 'request', 'reply')}
    for names in (*profile.iterfind('topics'), *profile.iterfind('services')):
        for verb, word in names.attrib.items():
            assert word == 'ALLOW'
            allowed[verb] |= {recorded.full_name(name.text, node) for name in names}
    return allowed


def test_permissions_of_the_node_are_what_it_offers_and_uses(node):
    allowed = permitted('policy_node')
    assert allowed['publish'] == set(node.publishes)
    assert allowed['subscribe'] == set(node.subscribes)
    # A service that ROS 2 Humble does not have yet.
    assert allowed['reply'] - {'/policy_node/get_type_description'} == (
        set(node.serves) - {'/policy_node/get_type_description'})
    assert allowed['request'] == set(node.calls) == set()


@pytest.mark.parametrize('enclave', ENCLAVES[1:])
def test_who_talks_to_the_node_is_allowed_only_what_it_has(node, enclave):
    allowed = permitted(enclave)
    topics = {*node.publishes, *node.subscribes}
    assert allowed['request'] <= set(node.serves)
    assert allowed['subscribe'] <= topics
    assert {name for name in allowed['publish'] if '*' not in name} <= (
        set(node.subscribes) | OF_EVERY_NODE)


def test_the_operator_reaches_every_service_that_stops_or_starts():
    assert permitted('operator')['request'] >= {
        f'/policy_node/{name}' for name in (
            'estop', 'pause', 'reload', 'reset', 'resume', 'change_state', 'set_parameters')}


def test_the_recorder_hears_all_that_a_replay_needs():
    spec = Policy(harness.DEFAULT_POLICY).spec
    assert permitted('recorder')['subscribe'] >= set(recorded.topics(spec, '/policy_node'))


def test_only_the_node_may_command_and_nobody_but_the_robot_may_observe_for_it():
    commands = {f'/{command.topic}' for command in Policy(harness.DEFAULT_POLICY).spec.actions}
    observed = {f'/{s.topic}' for s in Policy(harness.DEFAULT_POLICY).spec.observations}
    assert commands <= permitted('policy_node')['publish']
    for enclave in ENCLAVES:
        assert not observed & permitted(enclave)['publish']
        assert enclave == 'policy_node' or not commands & permitted(enclave)['publish']


def test_policy_is_of_the_version_and_shape_that_sros2_reads():
    assert (SROS2.tag, SROS2.get('version')) == ('policy', '0.2.0')
    enclaves, = SROS2.iterfind('enclaves')
    # `generate_artifacts` takes a comment there for an enclave.
    assert [child.tag for child in enclaves] == ['enclave'] * len(ENCLAVES)


def message_paths(layout):
    """Return every message path in a Foxglove layout."""
    found = []
    for panel in layout['configById'].values():
        found += [path['value'] for path in panel.get('paths', ())]
        found += [panel[key] for key in ('topicPath', 'topicToRender') if key in panel]
        found += panel.get('topics', ())
        found += panel.get('imageMode', {}).values()
    return found


def kind(type_name, path):
    """Return the type of a field of a message; '' is the message."""
    for name in filter(None, path.split('.')):
        fields = ros_class(type_name).get_fields_and_field_types()
        type_name = re.sub(r'^sequence<|>$|\[\d+\]$', '', fields[re.match(r'\w+', name)[0]])
        if '/' in type_name:
            type_name = '{}/msg/{}'.format(*type_name.split('/'))
    return type_name


@pytest.mark.parametrize('name', SPECS)
def test_foxglove_shows_topics_and_fields_that_there_are(nodes, simulations, name):
    node = nodes[name]
    topics = node.publishes | node.subscribes | simulations[name]
    paths = message_paths(FOXGLOVE[name])
    commands = load(CONFIG / 'robots' / f'{SPECS[name]}.yaml').actions
    assert {'/policy_node/candidates', '/sim_node/goal', '/sim_node/image/compressed',
            *(f'/{command.topic}' for command in commands)} <= {
        path.partition('.')[0] for path in paths}
    for path in paths:
        topic, _, fields = path.partition('.')
        assert kind(topics[topic], fields)
        for number in re.findall(r'value\.data\[(\d+)\]', path):
            assert int(number) < len(VALUE_LABELS)
        for number in re.findall(r'command_preview\.data\[(\d+)\]', path):
            assert int(number) < sum(command.size for command in commands)
        for key in re.findall(r'key=="(\w+)"', path):
            assert key in {value.key for value in node.status.values}


@pytest.mark.parametrize('name', SPECS)
def test_foxglove_names_the_values_as_the_node_does(name):
    labels = {path['value']: path['label'] for panel in FOXGLOVE[name]['configById'].values()
              for path in panel.get('paths', ()) if '/value.data' in path['value']}
    assert labels == {f'/policy_node/value.data[{i}]': label
                      for i, label in enumerate(VALUE_LABELS)}


@pytest.mark.parametrize('name', SPECS)
def test_foxglove_selects_diagnostics_that_there_are(nodes, name):
    told = {(status.hardware_id, status.name) for status in nodes[name].diagnostics}
    selected = {(panel['selectedHardwareId'], panel['selectedName'])
                for key, panel in FOXGLOVE[name]['configById'].items()
                if key.startswith('DiagnosticStatusPanel!')}
    assert selected and selected <= told


@pytest.mark.parametrize('name', SPECS)
def test_foxglove_lays_out_every_panel_once(name):
    def panels(part):
        return [part] if isinstance(part, str) else panels(part['first']) + panels(part['second'])
    assert sorted(panels(FOXGLOVE[name]['layout'])) == sorted(FOXGLOVE[name]['configById'])


@pytest.mark.parametrize('name', SPECS)
def test_rviz_shows_topics_of_the_right_type(nodes, simulations, name):
    topics = nodes[name].publishes | simulations[name]
    shown = [(display['Class'].rpartition('/')[2], display['Topic']['Value'])
             for display in RVIZ[name]['Displays'] if 'Topic' in display]
    assert {('MarkerArray', '/policy_node/candidates'), ('MarkerArray', '/sim_node/goal'),
            ('Image', '/sim_node/image')} <= set(shown)
    for kind_shown, topic in shown:
        assert topics[topic].rpartition('/')[2].removesuffix('Stamped') == kind_shown


@pytest.mark.parametrize('name', SPECS)
def test_views_are_in_the_frame_of_the_candidates(name):
    frame = load(CONFIG / 'robots' / f'{SPECS[name]}.yaml').space.frame_id
    assert RVIZ[name]['Global Options']['Fixed Frame'] == frame
    assert FOXGLOVE[name]['configById']['3D!candidates']['followTf'] == frame


@pytest.mark.parametrize('name', SPECS)
def test_views_take_the_shape_of_a_robot_that_has_a_description(name):
    robot = SPECS[name]
    described = (CONFIG / 'descriptions' / f'{robot}.yaml').is_file()
    in_rviz = [(display['Description Topic']['Value'], display['TF Prefix'])
               for display in RVIZ[name]['Displays'] if display['Class'].endswith('/RobotModel')]
    assert in_rviz == [('/robot_description', robot)] * described  # RViz adds the slash
    in_foxglove = [(layer['topic'], layer['framePrefix'])
                   for layer in FOXGLOVE[name]['configById']['3D!candidates']['layers'].values()
                   if layer['layerId'] == 'foxglove.Urdf']
    assert in_foxglove == [('/robot_description', f'{robot}/')] * described
