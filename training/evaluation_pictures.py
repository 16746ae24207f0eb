"""Pictures of an evaluation: its figures as PNG, and episodes that are repeated to be seen."""

from collections.abc import Mapping
from contextlib import ExitStack
import io
from typing import Any, NamedTuple

from idql_ros.camera import Camera, CameraError
from idql_ros.environments import make, SimulationError
from idql_ros.simulated_robot import SimulatedRobot
from idql_ros.spec import Spec
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm
from training.bag_summary import evenly
from training.distribution import LARGEST
from training.evaluate import RecordedEpisode
from training.figures import literal, png
from training.wording import cut

# Pictures of an episode, its first and its last moment among them.
_FRAMES = 6
# In a row.
_ACROSS = 3
# Pixels between them.
_GAP = 4
# Dimensions of the action in the picture of the agreement.
_PANELS = 12


class Strip(NamedTuple):
    """Pictures of an episode, its beginning first."""

    content: bytes  # JPEG; empty where the episode could not be repeated
    times_s: list[float]  # when each was taken
    why_not: str = ''


def film(
    environment: str, spec: Spec, seed: int, episodes: Mapping[int, RecordedEpisode]
) -> tuple[dict[int, Strip], str]:
    """Repeat episodes, command by command, and take pictures.

    Nothing is decided anew: an episode is what its start and its commands make of it.

    Args:
        environment: As it was evaluated in.
        spec: Likewise.
        seed: Likewise.
        episodes: Number -> what is repeated.

    Returns:
        Number -> its pictures; and why there are none of the others, empty where there are.
    """
    strips: dict[int, Strip] = {}
    try:
        with ExitStack() as opened:
            env = make(environment)
            opened.callback(env.close)
            robot = SimulatedRobot(env, spec, seed)
            camera = None
            for number, episode in tqdm(
                    episodes.items(), desc='pictures', unit='episode', dynamic_ncols=True):
                robot.reset(number)  # some environments have nothing to be seen before
                if camera is None:
                    camera = Camera(env)
                    opened.callback(camera.close)
                strips[number] = _repeat(robot, episode, camera)
    except (CameraError, SimulationError) as error:
        return strips, str(error)
    # Whatever another's environment raises: hours of scoring are not lost for some pictures.
    except Exception as error:
        return strips, cut(f'environment {environment}: {type(error).__name__}: {error}', 300)
    return strips, ''


def _repeat(robot: SimulatedRobot, episode: RecordedEpisode, camera: Camera) -> Strip:
    """Run an episode from its start by its commands."""
    at = evenly(episode.length + 1, _FRAMES)
    pictures = []
    actions = iter(episode.actions)
    action = None
    while True:
        if robot.step in at:
            pictures.append(camera.render())
        if robot.at_tick:
            action = next(actions, None)
        if robot.over or action is None:
            break
        robot.advance(action)
    # A return that is not a number is repeated by one.
    if not np.array_equal((robot.length, robot.total_reward),
                          (episode.length, episode.total_reward), equal_nan=True):
        return Strip(b'', [], (
            f'expected the return {episode.total_reward:.6g} after {episode.length} steps again, '
            f'found {robot.total_reward:.6g} after {robot.length}: something in the environment '
            'is not fixed by the seed of its reset'))
    return Strip(_sheet(pictures), [step * robot.step_seconds for step in at])


def _sheet(pictures: list[np.ndarray]) -> bytes:
    """Return pictures (height, width, 3) uint8, one after another in rows, as one JPEG."""
    height, width = pictures[0].shape[:2]
    down = -(-len(pictures) // _ACROSS)
    sheet = np.full(
        (down * (height + _GAP) - _GAP, _ACROSS * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        top, left = (height + _GAP) * (k // _ACROSS), (width + _GAP) * (k % _ACROSS)
        sheet[top:top + height, left:left + width] = picture
    content = io.BytesIO()
    image.imsave(content, sheet, format='jpeg')
    return content.getvalue()


def draw_calibration(calibration: Mapping[str, Any]) -> bytes:
    """Draw predicted Q over the return obtained, at the first decisions and at all.

    Args:
        calibration: Of `evaluation_summary.calibrate`, with something to compare.
    """
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    first, every = figure.subplots(1, 2)
    for success, color, name in ((True, 'tab:blue', 'success'),
                                 (False, 'tab:orange', 'no success'),
                                 (None, 'tab:blue', 'episode')):
        for too_early, marker, remark in (
                (False, 'o', ''), (True, 'x', ', cut off too early to compare')):
            chosen = [pair == (success, too_early) for pair in zip(
                calibration['success'], calibration['too_early'], strict=True)]
            if any(chosen):
                first.scatter(
                    *(_drawn(calibration['first'][key])[chosen]
                      for key in ('obtained', 'predicted')),
                    s=18, marker=marker, color=color, alpha=0.7, label=f'{name}{remark}')
    every.scatter(*(_drawn(calibration['every'][key]) for key in ('obtained', 'predicted')),
                  s=5, color='tab:blue', alpha=0.3, lw=0)
    if not calibration['every']['compared']:
        every.text(0.5, 0.5, 'none', ha='center', transform=every.transAxes)
    for axis, name in ((first, 'the first decision of each episode'), (every, 'all decisions')):
        _with_diagonal(axis, calibration['scale'] is not None)
        axis.set_title(name, fontsize=9, loc='left')
        axis.set(xlabel='discounted return obtained', ylabel='Q of the chosen action')
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8)
    first.legend(fontsize=7, frameon=False)
    return png(figure)


def _drawn(values: Any) -> np.ndarray:
    """Return numbers (n,); what cannot be drawn is NaN."""
    values = np.asarray(values, np.float64)
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def _with_diagonal(axis: Axes, comparable: bool) -> None:
    """Draw where both numbers are equal, and both over the same range, where they compare."""
    if not comparable:
        return
    low = min(axis.get_xlim()[0], axis.get_ylim()[0])
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    axis.plot([low, high], [low, high], color='0.5', ls='--', lw=0.8)
    axis.set(xlim=(low, high), ylim=(low, high))


def draw_agreement(agreement: Mapping[str, Any]) -> bytes:
    """Draw of which share of the decisions an action is how near to the recorded one.

    Args:
        agreement: Of `evaluation_agreement.compare`.
    """
    dimensions = agreement['dimensions']
    shown = [dimensions[i] for i in evenly(len(dimensions), _PANELS)]
    across = min(4, max(3, len(shown)))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.3 * across, 0.6 + 1.9 * down), layout='constrained')
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, dimension in zip(axes, shown, strict=False):
        for key, name, color in (('chosen', 'the chosen action', 'tab:blue'),
                                 ('sample', 'one sample', 'tab:orange'),
                                 ('mean', "the data's mean action", '0.6')):
            axis.plot(dimension[key]['quantiles'], agreement['shares'], color=color, lw=1.2,
                      label=name)
        axis.set_title(literal(f'{dimension["name"]} ({dimension["unit"]})'), fontsize=8)
        axis.set(xlim=(0, None), ylim=(0, 1))
        axis.tick_params(labelsize=7)
        axis.locator_params(axis='x', nbins=5)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes[len(shown):]:
        axis.set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3,
                  fontsize=8, frameon=False)
    return png(figure)
