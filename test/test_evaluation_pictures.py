"""Episodes are repeated to be seen, and what could not be repeated or seen is told."""

import io

import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')
pytest.importorskip('matplotlib', reason='matplotlib is not installed')
pytest.importorskip('ogbench', reason='ogbench is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from idql_ros import environments  # noqa: E402
from idql_ros.camera import Camera, CameraError  # noqa: E402
from idql_ros.policy import default_path, Policy  # noqa: E402
from idql_ros.simulated_robot import plain_spec  # noqa: E402
from matplotlib import image  # noqa: E402
from training import evaluate, evaluation_pictures, page  # noqa: E402
from training.evaluation_pictures import draw_agreement, draw_calibration, film  # noqa: E402
from training.evaluation_summary import calibrate, learned  # noqa: E402

PNG = b'\x89PNG'


@pytest.fixture
def drawing():
    """Skip where nothing can be drawn."""
    env = short_maze()
    try:
        Camera(env).close()
    except CameraError as error:
        pytest.skip(str(error))
    finally:
        env.close()


def short_maze():
    """Return the maze with an end that is near."""
    return environments.pointmaze_medium(max_episode_steps=30)


def maze_of_chance():
    """Return the short maze with rewards that no seed fixes."""
    class OfChance(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, reward + np.random.default_rng().normal(), *rest

    return OfChance(short_maze())


def maze_without_a_number():
    """Return the short maze with a reward that is none."""
    class Without(gymnasium.Wrapper):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.nan, *rest

    return Without(short_maze())


def maze_that_fails_at_a_reset():
    """Return the short maze, which starts its second episode only once."""
    class Failing(gymnasium.Wrapper):
        def reset(self, *, seed, **rest):
            if seed == 6:
                raise ZeroDivisionError('no start\nthere')
            return super().reset(seed=seed, **rest)

    return Failing(short_maze())


def maze_that_is_gone():
    """Return no maze."""
    raise RuntimeError('the licence is used up')


def evaluated(maze, episodes=3, parallel=2):
    """Return a policy and its episodes in a maze of this module."""
    policy = Policy(default_path())
    return policy, evaluate.evaluate(
        policy, f'{__name__}:{maze}', episodes, 5, 4, 'test', parallel=parallel)


def test_episodes_of_robots_at_a_time_are_repeated_to_the_last_bit(drawing):
    policy, episodes = evaluated('short_maze')
    chosen = {k: episodes[k] for k in (2, 0)}
    strips, why_not = film(f'{__name__}:short_maze', policy.spec, 5, chosen)
    assert why_not == '' and list(strips) == [2, 0]
    for strip in strips.values():
        assert strip.why_not == ''
        assert strip.times_s == pytest.approx([0, 0.6, 1.2, 1.8, 2.4, 3.0])
        sheet = image.imread(io.BytesIO(strip.content), format='jpeg')
        assert sheet.shape == (2 * 240 + 4, 3 * 320 + 2 * 4, 3)
        # The robot is somewhere else in the end.
        first, last = sheet[:240, :320].astype(int), sheet[-240:, -320:].astype(int)
        assert (np.abs(first - last).max(2) > 100).sum() > 20


def test_episode_that_cannot_be_repeated_has_no_pictures_and_says_why(drawing):
    policy, episodes = evaluated('maze_of_chance', parallel=1)
    strips, why_not = film(f'{__name__}:maze_of_chance', policy.spec, 5, {1: episodes[1]})
    assert why_not == '' and strips[1].content == b''
    assert 'after 30 steps again, found' in strips[1].why_not


def test_return_that_is_no_number_accuses_no_environment(drawing):
    policy, episodes = evaluated('maze_without_a_number', episodes=1, parallel=1)
    assert np.isnan(episodes[0].total_reward)
    strips, why_not = film(f'{__name__}:maze_without_a_number', policy.spec, 5, {0: episodes[0]})
    assert why_not == strips[0].why_not == '' and strips[0].content


def test_what_an_environment_raises_costs_pictures_only(drawing):
    policy, episodes = evaluated('short_maze', episodes=2, parallel=1)
    name = f'{__name__}:maze_that_fails_at_a_reset'
    strips, why_not = film(name, policy.spec, 5, dict(enumerate(episodes)))
    assert list(strips) == [0]
    assert why_not == f'environment {name}: ZeroDivisionError: no start there'


def test_environment_that_is_made_no_second_time_costs_pictures_only():
    robot = Policy(default_path()).spec
    name = f'{__name__}:maze_that_is_gone'
    strips, why_not = film(name, robot, 5, {0: episode([0.0], [0.0], False, False)})
    assert strips == {} and why_not.endswith('the licence is used up')


def episode(q, rewards, success, terminated):
    """Return an episode in which nothing is seen and nothing done."""
    n = len(q)
    return evaluate.RecordedEpisode(
        0.0, success, n, np.zeros((n, 1)), np.array(q, float), np.zeros((n, 1)),
        np.array(rewards, float), terminated, np.zeros(1), np.zeros((0, 1)), np.zeros(n, int),
        success is not None)


def test_environment_that_cannot_be_seen_says_why():
    strips, why_not = film(
        'Pendulum-v1', plain_spec('Pendulum-v1'), 0, {0: episode([0.0], [0.0], False, False)})
    assert strips == {} and 'expected one that MuJoCo simulates' in why_not


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('size', [0.0, 1.0, 1e-30, 1e30])
@pytest.mark.parametrize('scaling', ['none', 'return_range'])
def test_calibration_has_a_picture_on_every_scale(size, scaling):
    told = {'config': {'reward_scaling': scaling, 'idql': {'discount': 0.9}}}
    for successes in ((True, False), (None, None)):
        episodes = [episode([size * k, np.nan], [size, -size], successes[k % 2], k < 2)
                    for k in range(4)]
        found = page.plain(calibrate(episodes, learned(told), 2.0))
        assert draw_calibration(found).startswith(PNG)


def test_calibration_is_drawn_as_q_over_the_return_with_crosses_for_what_is_not_compared(
        monkeypatch):
    monkeypatch.setattr(evaluation_pictures, 'png', lambda figure: figure)
    told = {'config': {'idql': {'discount': 0.5}}}
    episodes = [episode([5.0, 6.0], [1.0, 2.0], True, True), episode([7.0], [4.0], True, False)]
    figure = draw_calibration(page.plain(calibrate(episodes, learned(told), 2.0)))
    first, every = ([(drawn.get_label(), drawn.get_offsets().tolist())
                     for drawn in axis.collections] for axis in figure.axes)
    assert first == [('success', [[2.0, 5.0]]),
                     ('success, cut off too early to compare', [[4.0, 7.0]])]
    assert [offsets for _, offsets in every] == [[[2.0, 5.0], [2.0, 6.0]]]
    assert {axis.get_xlabel() for axis in figure.axes} == {'discounted return obtained'}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('count', [1, 5, 40])
def test_agreement_in_any_number_of_dimensions_has_a_picture(count):
    distances = {'mean': 0.5, 'quantiles': np.linspace(0, 1, 5)}
    dimension = {'name': '$\\frac{', 'unit': '$',
                 'chosen': distances, 'sample': distances, 'mean': distances}
    assert draw_agreement({
        'shares': np.linspace(0, 1, 5), 'dimensions': [dimension] * count}).startswith(PNG)
