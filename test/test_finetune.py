"""Finetuning: what a transition is, what is learned from, what moves, and what a run leaves."""

import csv
from dataclasses import fields, MISSING, replace
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import gymnasium
from idql_ros import environments
from idql_ros import spec as specs
from idql_ros.environments import SimulationError
from idql_ros.policy import Decision, implicit_weights, Policy
from idql_ros.simulated_robot import SimulatedRobot
import numpy as np
import pytest
import torch
from training import evaluate, export
from training.checkpoint import CheckpointError, load_checkpoint, read_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import DatasetError, Episode, write_minari
from training.finetune import (
    explore,
    explorer,
    finetune,
    FinetuneConfig,
    main,
    mixed_batch,
    read_config,
    transitions,
)
from training.idql import Batch, IDQLConfig
from training.train import DivergenceError, Stopped, train

ROOT = Path(__file__).parents[1]
ROBOT = specs.load(ROOT / 'config' / 'robots' / 'pointmaze_medium.yaml')
ROBOT_STEPS = 5  # of the maze to a tick of the spec
# A point on a line, driven by its velocity, two steps of the environment to a tick.
LINE = specs.parse({
    'spec_version': 1, 'name': 'line', 'rate': 5.0, 'tick': 'timer',
    'observations': [{'name': 'place', 'topic': 'place', 'type': 'std_msgs/msg/Float64MultiArray',
                      'fields': ['data[0:1]'], 'unit': 'm', 'max_age': 1.0}],
    'actions': [{'name': 'velocity', 'topic': 'velocity',
                 'type': 'std_msgs/msg/Float64MultiArray', 'fields': ['data[0:1]'],
                 'dimensions': [{'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0, 'upper': 1.0,
                                 'stop': 'zero'}]}],
}, 'line')


class Line(gymnasium.Env):
    """Ends truly after some steps, or is cut after some; rewards 1, 2, 4, 8, ... by step."""

    metadata = {'render_fps': 10}
    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, ends=10**6, cut=10**6):
        self.ends, self.cut = ends, cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, np.array([50.0 + seed], np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.steps += 1
        self.place += np.asarray(action, np.float32)
        return (self.place.copy(), 2.0 ** (self.steps - 1), self.steps == self.ends,
                self.steps == self.cut, {'success': self.steps == self.ends})


def line_episode(action=0.5, **when):
    """Return the transitions of one episode on the line."""
    def decide(observation, tick_ns):
        return Decision(np.array([action], np.float32), 0.0, 0.0, np.zeros((1, 1)), np.zeros(1))

    return list(transitions(SimulatedRobot(Line(**when), LINE, 0), 0, decide))


def short_maze(**kwargs):
    """Return the maze with episodes of ten ticks."""
    return environments.pointmaze_medium(max_episode_steps=50, **kwargs)


def write_dataset(root, seed=0, spec_json=None):
    """Write demo/maze-v0: four episodes of 30 ticks, rewards -1 and returns -27 to -30."""
    rng = np.random.default_rng(seed)
    episodes = [Episode(
        np.cumsum(rng.normal(0, 1, (31, 2)), 0).astype(np.float32),
        rng.uniform(-2, 2, (30, 2)).astype(np.float32), (np.arange(30) < number) - 1.0,
        terminated=number == 0, truncated=number != 0) for number in range(4)]
    write_minari(episodes, 'demo/maze-v0', root, {}, spec_json or ROBOT.to_json())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the folder of a tiny dataset and a tiny offline run on it."""
    folder = tmp_path_factory.mktemp('offline')
    write_dataset(folder / 'data')
    train(TrainConfig(
        dataset='demo/maze-v0', root=str(folder / 'data'), output=str(folder / 'run'),
        steps=5, batch_size=16, log_every=5, checkpoint_every=5, threads=1, device='cpu',
        reward_scaling='return_range', reward_shift=-2.0,
        idql=IDQLConfig(
            actor_width=16, actor_blocks=1, time_features=(8, 16), critic_hidden=(16,),
            value_hidden=(16,), normalise_observations=True, critic_parameter=0.9,
            candidates=4)))
    return folder


@pytest.fixture
def config(trained, tmp_path):
    """Return a tiny finetuning: two updates on each of the last ten steps, three episodes."""
    return FinetuneConfig(
        str(trained / 'run' / 'checkpoint.pt'), environment='test_finetune:short_maze',
        reward_factor=0.2, output=str(tmp_path / 'online'), steps=25, start_after=15,
        updates_per_step=2, batch_size=8, log_every=10, checkpoint_every=20,
        evaluate_every=None, evaluate_parallel=1, threads=1)


def rows(path):
    """Return the rows of a CSV file."""
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def same(one, other, prefix):
    """Return whether two state dictionaries agree bit by bit in what a prefix names."""
    keys = [key for key in one if key.startswith(prefix)]
    assert keys
    return all(torch.equal(one[key], other[key]) for key in keys)


def test_rewards_are_summed_over_the_tick_and_the_observations_are_chained():
    episode = line_episode(ends=6)
    assert [t.reward for t in episode] == [1 + 2, 4 + 8, 16 + 32]
    assert [t.length for t in episode] == [2, 2, 2]
    assert [t.observation.item() for t in episode] == [50, 51, 52]
    assert [t.next_observation.item() for t in episode] == [51, 52, 53]


def test_mask_is_0_only_at_a_true_terminal():
    assert [t.mask for t in line_episode(ends=6)] == [1, 1, 0]
    assert [t.mask for t in line_episode(cut=6)] == [1, 1, 1]
    assert line_episode(cut=6)[-1].next_observation.item() == 53
    assert [t.mask for t in line_episode(ends=6, cut=6)] == [1, 1, 0]


def test_a_tick_cut_short_is_a_transition_only_at_a_true_terminal():
    ended, cut = line_episode(ends=5), line_episode(cut=5)
    assert [(t.reward, t.mask, t.length) for t in ended] == [(3, 1, 2), (12, 1, 2), (16, 0, 1)]
    assert [(t.reward, t.mask, t.length) for t in cut] == [(3, 1, 2), (12, 1, 2)]


def test_action_kept_is_the_one_sent_within_the_limits():
    assert [t.action.tolist() for t in line_episode(action=7.0, cut=4)] == [[1], [1]]
    assert line_episode(action=7.0, cut=4)[-1].next_observation.item() == 54


def test_no_transition_reaches_from_one_episode_into_another():
    told = []
    robot = SimulatedRobot(Line(cut=4), LINE, 0)

    def decide(observation, tick_ns):
        return Decision(np.zeros(1, np.float32), 0.0, 0.0, np.zeros((1, 1)), np.zeros(1))

    explored = explore(robot, 3, decide, lambda *episode: told.append(episode))
    places = [(t.observation.item(), t.next_observation.item())
              for t in (next(explored) for _ in range(5))]
    assert places == [(53, 53), (53, 53), (54, 54), (54, 54), (55, 55)]
    assert told == [(15.0, False, 4), (15.0, False, 4)]


def test_episodes_without_a_transition_are_told_and_not_run_for_ever():
    explored = explore(SimulatedRobot(Line(cut=1), LINE, 0), 0, lambda observation, _: Decision(
        np.zeros(1, np.float32), 0.0, 0.0, np.zeros((1, 1)), np.zeros(1)), lambda *_: None)
    with pytest.raises(SimulationError, match='episode 0: expected transitions, found none in 1'):
        next(explored)


def test_exploration_sees_and_sends_what_evaluation_does(trained):
    """The same decisions from the same start give the same episode, tick by tick."""
    decide = explorer(load_checkpoint(trained / 'run' / 'checkpoint.pt'), 'greedy', 4,
                      torch.Generator().manual_seed(0))
    episode = list(transitions(SimulatedRobot(short_maze(), ROBOT, 0), 0, decide))
    decided = iter([t.action for t in episode])
    result = evaluate.run_episode(
        SimulatedRobot(short_maze(), ROBOT, 0), 0,
        lambda observation, _: Decision(next(decided), 0.0, 0.0, np.zeros((1, 2)), np.zeros(1)))
    assert np.array_equal([t.observation for t in episode], result.observations)
    assert sum(t.reward for t in episode) == pytest.approx(result.total_reward)
    assert sum(t.length for t in episode) == result.length == 50


def test_half_of_each_batch_is_offline():
    def columns(rows, value):
        return Batch(*(torch.full((rows, *size), value) for size in ((2,), (1,), (), (), (2,))))

    batch = mixed_batch(columns(3, -1.0), columns(50, 1.0), 8, torch.Generator().manual_seed(0))
    for column in batch:
        assert column.shape[0] == 8
        assert (column[:4] == -1).all() and (column[4:] == 1).all()


def test_all_of_dataset_and_replay_are_drawn_and_rows_stay_whole():
    numbers = torch.arange(5.0)
    offline = Batch(numbers[:, None], numbers[:, None], numbers, numbers, numbers[:, None])
    online = Batch(*(column + 10 for column in offline))
    batch = mixed_batch(offline, online, 400, torch.Generator().manual_seed(0))
    assert set(batch.rewards.tolist()) == {*range(5), *range(10, 15)}
    assert all(torch.equal(column.reshape(-1), batch.rewards) for column in batch)


def test_implicit_exploration_draws_candidates_by_their_weights(trained):
    idql = load_checkpoint(trained / 'run' / 'checkpoint.pt')
    place = np.zeros(2, np.float32)
    seen = explorer(idql, 'greedy', 64, torch.Generator().manual_seed(0))(place, 0)
    assert seen.q == seen.candidate_q.max()
    with torch.no_grad():  # V between the candidates' Q, so that they weigh 0.9 and 0.1
        list(idql.value.parameters())[-1].add_(float(np.median(seen.candidate_q)) - seen.v)
    decide = explorer(idql, 'implicit', 2, torch.Generator().manual_seed(0))
    heavier = []
    for _ in range(600):
        decision = decide(place, 0)
        weights = implicit_weights(decision.candidate_q - decision.v, 'expectile', 0.9)
        if weights[0] != weights[1]:
            heavier.append(np.array_equal(
                decision.action, decision.candidates[np.argmax(weights)]))
    assert len(heavier) > 200
    assert np.mean(heavier) == pytest.approx(0.9, abs=0.06)


def test_nothing_is_updated_before_its_time(config, trained):
    before = load_checkpoint(config.checkpoint)
    after = finetune(replace(config, steps=15))
    assert same(before.state_dict(), after.state_dict(), '')
    assert after.updates == before.updates == 5
    assert finetune(replace(config, steps=17)).updates == 5 + 2 * 2


def test_frozen_actor_stays_bit_by_bit_while_the_critics_move(config):
    before = load_checkpoint(config.checkpoint).state_dict()
    after = finetune(replace(config, actor='frozen')).state_dict()
    for part in ('actor.', 'averaged_actor.'):
        assert same(before, after, part)
    for part in ('critics.', 'target_critics.', 'value.'):
        assert not same(before, after, part)
    assert 'actor_loss' not in rows(Path(config.output) / 'metrics.csv')[0]


def test_critics_of_a_frozen_and_a_trained_actor_move_by_the_same_equations(config):
    # The first update draws its batch before the actor's noise: until then both runs are the same.
    one_update = replace(config, steps=16, updates_per_step=1)
    frozen = finetune(replace(one_update, actor='frozen', output=f'{config.output}/frozen'))
    trained = finetune(one_update)
    for part in ('critics.', 'target_critics.', 'value.'):
        assert same(frozen.state_dict(), trained.state_dict(), part)


def test_trained_actor_learns_at_a_constant_rate_with_its_optimisers_state(config):
    before = read_checkpoint(config.checkpoint)
    assert before['config']['idql']['actor_decay_steps'] == 5  # the cosine has ended
    idql = finetune(config)
    for part in ('actor.', 'averaged_actor.', 'critics.', 'target_critics.', 'value.'):
        assert not same(before['model'], idql.state_dict(), part)
    assert idql.actor_learning_rate() == config.actor_learning_rate
    for name, optimiser in idql.optimisers.items():
        assert optimiser.state_dict()['steps'].item() == 5 + 20, name


def test_rewards_online_are_transformed_as_those_of_the_dataset(config):
    finetune(config)
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')
    scale = 1000 / (30 - 27)  # return_range, by the dataset's returns
    assert content['finetuning']['replay']['rewards'].tolist() == [
        pytest.approx(scale * 0.2 * -5 - 2)] * 25


def test_same_seed_gives_the_same_run_and_another_does_not(config):
    first, again, other = (finetune(replace(config, output=f'{config.output}/{i}', seed=seed))
                           for i, seed in enumerate((0, 0, 1)))
    assert same(first.state_dict(), again.state_dict(), '')
    assert not same(first.state_dict(), other.state_dict(), 'critics.')


def test_metrics_hold_losses_and_episodes_where_there_were_some(config):
    finetune(config)
    found = rows(Path(config.output) / 'metrics.csv')
    assert [row['step'] for row in found] == ['10', '20', '25']
    assert [row['critic_loss'] != '' for row in found] == [False, True, True]
    assert [row['replay'] for row in found] == ['10', '20', '25']
    # An episode is known to be over when the next one begins.
    assert [row['episodes'] for row in found] == ['0', '1', '1']
    assert [row['episode_return'] for row in found] == ['', '-50.0', '-50.0']
    assert [row['episode_length'] for row in found] == ['', '50.0', '50.0']
    assert [float(row['updates_per_second']) > 0 for row in found] == [False, True, True]


def test_resumed_run_goes_on_with_replay_optimisers_and_a_new_episode(config, tmp_path):
    finetune(replace(config, steps=18))
    path = Path(config.output) / 'checkpoint.pt'
    before = read_checkpoint(path)
    # As a crash leaves them: rows were written after the last checkpoint.
    with open(Path(config.output) / 'metrics.csv', 'a') as file:
        file.write('19' + 12 * ',0' + '\n')
    resumed = finetune(replace(config, resume=True, root=None))
    after = read_checkpoint(path)
    assert resumed.updates == 5 + 2 * 10
    replay, longer = (content['finetuning']['replay'] for content in (before, after))
    assert len(longer['rewards']) == 25
    assert all(torch.equal(replay[key], longer[key][:18]) for key in replay)
    assert before['finetuning']['progress']['episode'] == 2  # the second was not over
    assert after['finetuning']['progress']['episode'] == 3
    assert after['finetuning']['progress']['environment_steps'] == 125
    # A new episode: the last observation before the stop is not where it goes on.
    assert not torch.equal(replay['next_observations'][-1], longer['observations'][18])
    assert [row['step'] for row in rows(Path(config.output) / 'metrics.csv')] == [
        '10', '18', '20', '25']
    whole = path.read_bytes()
    assert finetune(replace(config, resume=True)).updates == 25  # finished: as it is
    assert path.read_bytes() == whole


def test_only_the_same_run_is_resumed(config, trained, tmp_path):
    with pytest.raises(CheckpointError, match='checkpoint.pt: .* found none; .*--resume'):
        finetune(replace(config, resume=True))
    finetune(config)
    with pytest.raises(CheckpointError, match='^batch_size: expected 8 .* found 16'):
        finetune(replace(config, resume=True, batch_size=16))
    with pytest.raises(CheckpointError, match='^actor_learning_rate: expected 3e-05'):
        finetune(replace(config, resume=True, actor_learning_rate=1e-3))
    with pytest.raises(CheckpointError, match='^explored: expected .*short_maze'):
        finetune(replace(config, resume=True, environment=None))
    other = tmp_path / 'other.pt'
    save_checkpoint(other, read_checkpoint(config.checkpoint) | {'since': 1})
    with pytest.raises(CheckpointError, match="^checkpoint: expected '[0-9a-f]{64}' as in "):
        finetune(replace(config, resume=True, checkpoint=str(other)))
    offline = replace(config, resume=True, output=str(tmp_path / 'offline'))
    (tmp_path / 'offline').mkdir()
    save_checkpoint(tmp_path / 'offline' / 'checkpoint.pt', read_checkpoint(config.checkpoint))
    with pytest.raises(CheckpointError, match='of training.finetune .* found one of training.tra'):
        finetune(offline)


def test_interrupt_saves_what_was_done_and_says_how_to_go_on(config, tmp_path, capsys):
    path = tmp_path / 'config.yaml'
    path.write_text('steps: 100000\nstart_after: 2\nlog_every: 1\nevaluate_every: null\n'
                    'reward_factor: 0.2\nbatch_size: 8\nthreads: 1\n')
    metrics = Path(config.output) / 'metrics.csv'

    def interrupt():
        """Send it when the first step is done: before, it would end the tests."""
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        main([config.checkpoint, '--config', str(path), '--environment', config.environment,
              '--output', config.output])
    assert ended.value.code == 130
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')
    assert len(content['finetuning']['replay']['rewards']) == len(rows(metrics)) > 0
    assert 'stopped by SIGINT' in capsys.readouterr().out


def test_evaluations_begin_before_the_first_step_and_end_after_the_last(config):
    finetune(replace(config, evaluate_every=10, evaluate_episodes=2))
    found = rows(Path(config.output) / 'evaluations.csv')
    assert list(found[0]) == ['step', 'candidates', 'episodes', 'success', 'success_low',
                              'success_high', 'mean_return']
    assert [row['step'] for row in found] == ['0', '10', '20', '25']
    assert {(row['candidates'], row['episodes'], row['mean_return']) for row in found} == {
        ('4', '2', '-50.0')}
    assert float(found[0]['success']) == 0.0
    # What was scored last is what would be exported now.
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')
    scored = Policy(Path(config.output) / 'policy-25.onnx').provenance
    assert scored['finetuned'] == content['provenance']['finetuned']


def test_statistics_are_of_the_dataset_and_of_what_exploration_met(config):
    finetune(replace(config, evaluate_every=25, evaluate_episodes=1))
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')

    def kept(content):
        return {tuple(row) for name in ('calibration', 'prototypes')
                for row in content['statistics'][name].tolist()}

    met = {tuple(row) for row in content['finetuning']['replay']['observations'].tolist()}
    before = kept(read_checkpoint(config.checkpoint))
    assert len(met) == 25 and not met & before
    assert kept(content) == before | met  # so few are all kept
    first, last = (Policy(Path(config.output) / f'policy-{step}.onnx') for step in (0, 25))
    prototype = next(tuple(row) for row in content['statistics']['prototypes'].tolist()
                     if tuple(row) in met)
    distances = [policy.decide(np.float32(prototype), 0, 0, 1).distance
                 for policy in (first, last)]
    assert distances[0] > 1e-3 and distances[1] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize('step', [0, 10, 25])
@pytest.mark.parametrize('ending', ['signal', 'crash'])
def test_evaluation_that_a_stop_cut_off_is_made_on_resuming(config, monkeypatch, step, ending):
    config = replace(config, evaluate_every=10, evaluate_episodes=1, checkpoint_every=1000)
    found = Path(config.output) / 'evaluations.csv'

    def cut_off(*arguments, **settings):
        if arguments[5] != f'evaluate at {step}':
            return evaluate.evaluate(*arguments, **settings)
        if ending == 'crash':
            raise OSError('gone')
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError('the signal did not end the evaluation')

    with monkeypatch.context() as patch:
        patch.setattr('training.finetune.evaluate', cut_off)
        with pytest.raises(Stopped if ending == 'signal' else OSError):
            finetune(config)
    before = [row['step'] for row in rows(found)] if found.exists() else []
    assert before == [str(done) for done in (0, 10, 20) if done < step]
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')
    assert content['finetuning']['progress']['step'] == step
    policy = (Path(config.output) / f'policy-{step}.onnx').read_bytes()
    finetune(replace(config, resume=True))
    assert [row['step'] for row in rows(found)] == ['0', '10', '20', '25']
    # Of the same policy as the one that was cut off.
    assert (Path(config.output) / f'policy-{step}.onnx').read_bytes() == policy


def test_signal_just_before_the_last_evaluation_leaves_it_to_resuming(config, monkeypatch):
    config = replace(config, evaluate_every=25, evaluate_episodes=1)

    def save(path, content):
        save_checkpoint(path, content)
        if content['finetuning']['progress']['step'] == 25:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr('training.finetune.save_checkpoint', save)
        with pytest.raises(Stopped):
            finetune(config)
    found = Path(config.output) / 'evaluations.csv'
    assert [row['step'] for row in rows(found)] == ['0']
    finetune(replace(config, resume=True))
    assert [row['step'] for row in rows(found)] == ['0', '25']


def test_evaluation_changes_nothing_that_is_learned(config):
    quiet = finetune(replace(config, output=f'{config.output}/quiet'))
    scored = finetune(replace(config, evaluate_every=10, evaluate_episodes=1))
    assert same(quiet.state_dict(), scored.state_dict(), '')


def test_finetuned_checkpoint_is_exported_scored_and_finetuned_again(
        config, trained, tmp_path, capsys):
    """The whole way at the command line, in a process of its own."""
    settings = tmp_path / 'finetune.yaml'
    settings.write_text('steps: 6\nstart_after: 3\nbatch_size: 8\nlog_every: 3\n'
                        'evaluate_every: 6\nevaluate_episodes: 1\nthreads: 1\n')
    done = subprocess.run(
        [sys.executable, '-m', 'training.finetune', config.checkpoint, '--config', str(settings),
         '--output', config.output, '--actor', 'frozen', '--steps', '4'],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The dataset's rewards are -1 to 0 a tick, the environment's -1 a step: it says so.
    assert 'reward: expected a tick to give what the dataset has' in done.stderr
    checkpoint = Path(config.output) / 'checkpoint.pt'
    export.main([str(checkpoint), '--output', str(tmp_path / 'policy.onnx')])
    policy = Policy(tmp_path / 'policy.onnx')
    finetuned, = policy.provenance['finetuned']
    assert finetuned['environment'] == 'idql_ros.environments:pointmaze_medium'
    assert (finetuned['transitions'], finetuned['environment_steps']) == (4, 20)
    assert finetuned['config']['actor'] == 'frozen'
    assert policy.provenance['updates'] == 6
    assert evaluate.evaluate(policy, 'test_finetune:short_maze', 1, 0, 4, 'test')[0].length == 50

    finetune(replace(config, checkpoint=str(checkpoint), output=str(tmp_path / 'again')))
    provenance = read_checkpoint(tmp_path / 'again' / 'checkpoint.pt')['provenance']
    assert [each['transitions'] for each in provenance['finetuned']] == [4, 25]
    assert provenance['finetuned'][0] == finetuned
    assert provenance['dataset'] == 'demo/maze-v0'
    json.dumps(provenance, allow_nan=False)


def test_without_a_spec_the_environment_gives_it(config, trained, tmp_path):
    content = read_checkpoint(config.checkpoint) | {'spec_json': None}
    save_checkpoint(tmp_path / 'plain.pt', content)
    plain = replace(config, checkpoint=str(tmp_path / 'plain.pt'), steps=17,
                    environment='pointmaze-medium-singletask-task1-v0')
    finetune(replace(plain, evaluate_every=17, evaluate_episodes=1))
    content = read_checkpoint(Path(config.output) / 'checkpoint.pt')
    assert content['finetuning']['progress']['environment_steps'] == 17  # a tick is a step
    with pytest.raises(SimulationError, match='plain.pt: the dataset has no spec.*--environment'):
        finetune(replace(plain, environment=None))
    with pytest.raises(SimulationError, match='Pendulum-v1: expected 2 observations and 2 action'):
        finetune(replace(plain, environment='Pendulum-v1'))


def test_a_checkpoint_names_no_code_to_run(config, tmp_path):
    content = read_checkpoint(config.checkpoint)
    content['config']['environment'] = 'antigravity:fly'
    save_checkpoint(tmp_path / 'foreign.pt', content)
    with pytest.raises(SimulationError, match='found antigravity:fly, which would run code'):
        finetune(replace(config, checkpoint=str(tmp_path / 'foreign.pt'), environment=None))


def test_environment_that_does_not_fit_the_spec_is_refused(config):
    with pytest.raises(SimulationError, match='expected an environment with 2 observation numbe'):
        finetune(replace(config, environment='Pendulum-v1'))


def test_another_dataset_than_the_checkpoints_is_refused(config, tmp_path):
    write_dataset(tmp_path / 'other', seed=1)
    with pytest.raises(DatasetError, match='maze-v0: expected the data that .* was trained on, '):
        finetune(replace(config, root=str(tmp_path / 'other')))


def test_the_checkpoint_it_begins_with_is_not_written_over(config, trained):
    with pytest.raises(CheckpointError, match='expected an output folder other than that of'):
        finetune(replace(config, output=str(trained / 'run')))


def test_losses_that_are_no_longer_finite_stop_the_run(config):
    with pytest.warns(UserWarning, match='is it the same reward'), \
            pytest.raises(DivergenceError, match='step 16: expected finite losses'):
        finetune(replace(config, reward_factor=1e38))
    assert not (Path(config.output) / 'checkpoint.pt').exists()


@pytest.mark.parametrize('text, message', [
    ('stepz: 5', "unknown key 'stepz'; expected one of checkpoint"),
    ('batch_size: 7', 'batch_size: expected an even number'),
    ('actor: dropped', "actor: expected .*'dropped'"),
    ('exploration: softmax', "exploration: expected .*'softmax'"),
    ('steps: 0', 'steps: expected 1 or more'),
    ('start_after: -1', 'start_after: expected 0 or more'),
    ('candidates: 0', 'candidates: expected 1 to'),
    ('actor_learning_rate: 0.0', 'actor_learning_rate: expected a number above 0.*frozen'),
    ('reward_factor: .nan', 'reward_factor: expected a number above 0'),
    ('seed: -1', 'seed: expected 0 to'),
    ('', 'expected keys and values, found None'),
])
def test_bad_configuration_is_refused_naming_file_and_key(tmp_path, text, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'bad.yaml: .*{message}'):
        read_config(path)


def test_shipped_configuration_is_read():
    config = read_config(ROOT / 'config' / 'training' / 'finetune_demo.yaml')
    assert (config.reward_factor, config.steps) == (1 / ROBOT_STEPS, 7000)


def test_command_line_errors_are_one_line(tmp_path):
    (tmp_path / 'text.pt').write_text('no checkpoint')
    with pytest.raises(SystemExit, match='^error: .*text.pt: expected a checkpoint of training.t'):
        main([str(tmp_path / 'text.pt'), '--output', str(tmp_path / 'online')])
    with pytest.raises(SystemExit, match='^error: .*No such file'):
        main([str(tmp_path / 'none.pt'), '--output', str(tmp_path / 'online')])


def test_documentation_states_every_setting_with_its_default():
    text = (ROOT / 'doc' / 'algorithm.md').read_text()
    section = re.search(r'^## Finetuning online\n(.*?)(?=^## |\Z)', text, re.M | re.S)[1]
    stated = dict(re.findall(r'^\| `(\w+)` \|[^|]*\|([^|]*)\|$', section, re.M))
    for field in fields(FinetuneConfig):
        default = '' if field.default is MISSING else f'`{field.default!r}`'
        assert stated.pop(field.name).strip() == default, field.name
    assert not stated
