"""What /diagnostics says follows from what the runner did."""

from idql_ros.health import ERROR, Health, OK, WARN
import pytest
from test_runner import MS, PERIOD, Scene


def health(scene):
    return Health(scene.runner, scene.clocks.steady)


def walk(scene, ticks, period_ms=50):
    for _ in range(ticks):
        scene.act()
        scene.wait(period_ms)


def test_before_the_first_tick_it_waits():
    scene = Scene()
    assert (health(scene).ladder(True).level, health(scene).ladder(True).message) == (
        WARN, 'waiting for the first tick')


@pytest.mark.parametrize(('enabled', 'expected'), [
    (True, 'acting'), (False, 'acting, dry run: enable_commands is false')])
def test_acting_is_ok_and_a_dry_run_is_told(enabled, expected):
    scene = Scene()
    walk(scene, 1)
    status = health(scene).ladder(enabled)
    assert (status.level, status.message) == (OK, expected)


def test_a_limit_that_bites_is_told_with_dimension_and_amount():
    scene = Scene()
    scene.policy.action = 3.0
    walk(scene, 1)
    status = health(scene).ladder(True)
    assert status.level == WARN and 'dimension 0: 3 held to 1 (position)' in status.message
    assert status.values['limit of dimension 0'] == 'position: 3 held to 1'


@pytest.mark.parametrize(('state', 'level'), [('holding', WARN), ('stopped', ERROR)])
def test_each_rung_of_the_ladder_has_its_level_and_reason(state, level):
    scene = Scene(change=lambda data: data['observations'][0].update(hold_time=0.1))
    walk(scene, 1, 0)
    scene.wait(210 if state == 'holding' else 500)
    status = health(scene).ladder(True)
    assert status.level == level and status.message.startswith(f'{state}: position')
    assert status.values['state'] == state


def test_what_blocks_is_told():
    scene = Scene()
    scene.runner.set_estop('topic', True)
    assert 'topic' in health(scene).ladder(True).values['blocked']


def test_a_stream_is_told_by_rate_age_and_losses():
    scene = Scene()
    told = health(scene)
    assert told.streams(scene.clocks.now, scene.clocks.steady)[0].level == ERROR
    for _ in range(20):
        scene.observe()
        scene.wait(50)
    status, = told.streams(scene.clocks.now, scene.clocks.steady)
    assert (status.level, status.message) == (OK, '20.0 Hz')
    assert float(status.values['age']) == 0.05
    scene.observe(stamp_ns=scene.clocks.now - 60 * MS)
    scene.observe(x=float('nan'))
    scene.wait(500)
    status, = told.streams(scene.clocks.now, scene.clocks.steady)
    assert status.level == ERROR and 'at most 0.2 s allowed' in status.message
    assert (status.values['unusable'], status.values['overtaken']) == (1, 1)


@pytest.mark.parametrize(('period_ms', 'level'), [(50, OK), (100, WARN)])
def test_a_real_rate_far_from_the_trained_one_is_told(period_ms, level):
    scene = Scene()
    walk(scene, 15, period_ms)
    status = health(scene).timing()
    assert status.level == level
    assert float(status.values['share of the trained rate']) == pytest.approx(
        PERIOD / MS / period_ms)


def test_every_stage_and_every_lost_tick_is_told():
    scene = Scene()
    scene.observe()
    scene.pause(60)
    scene.observe()
    scene.infer()
    values = health(scene).timing().values
    assert (values['missed ticks'], values['dropped results']) == (1, 1)
    assert values['infer'].startswith('p50 ') and values['infer'].endswith(' ms')
    assert values['publish'] == ''
