"""How far observations decide actions: noise is told from none, and movements from noise."""

import math

import numpy as np
import pytest
from training.behaviour import NEAR_DETERMINISTIC, open_share

COUNT = 2000


def share_of(observations, actions):
    """Return the share that is open in one bag of decisions every 100 ms."""
    count = len(actions)
    return open_share(observations, actions, 0.1 * np.arange(count), np.zeros(count))


def walk(size=2):
    """Return observations (COUNT, size) of one walk."""
    walked = np.random.default_rng(0).normal(size=(COUNT, size)).cumsum(0) * 0.1
    return walked - walked.mean(0)


@pytest.mark.parametrize('noise', [0.1, 0.3])
def test_noisy_behaviour_is_not_taken_for_deterministic(noise):
    observations = walk()
    actions = 0.5 * np.tanh(observations[:, :1] * [1.0, -1.0])
    actions += noise * np.random.default_rng(1).normal(size=(COUNT, 2))
    share = share_of(observations, np.clip(actions, -0.99, 0.99))
    assert share > 2 * NEAR_DETERMINISTIC


def test_noise_that_lasts_longer_than_a_decision_is_not_taken_for_deterministic():
    # The action of a moment ago, at the observation of a moment ago, is no second opinion.
    noise = np.random.default_rng(3).normal(size=(COUNT, 2))
    for i in range(1, COUNT):
        noise[i] = 0.98 * noise[i - 1] + math.sqrt(1 - 0.98**2) * noise[i]
    assert share_of(walk(), 0.2 * noise) > 0.5


# Not linear: the neighbours tell it. Too few decisions for neighbours: a map for all tells it.
@pytest.mark.parametrize(('size', 'policy'), [(2, np.cos), (30, np.positive), (90, np.positive)])
def test_policy_without_noise_is_taken_for_deterministic(size, policy):
    observations = np.random.default_rng(1).normal(size=(COUNT, size))
    actions = policy(observations @ np.random.default_rng(0).normal(size=(size, 2)))
    assert share_of(observations, actions) < NEAR_DETERMINISTIC
    # It is enough that one dimension is free.
    actions[:, -1] = np.random.default_rng(2).normal(size=COUNT)
    assert share_of(observations, actions) > 0.5


def test_action_that_never_varies_leaves_nothing_open_beside_one_that_does():
    observations = walk()
    actions = np.column_stack([np.full(COUNT, 0.5), observations[:, 0]])
    assert share_of(observations, actions) < NEAR_DETERMINISTIC


def test_share_is_never_more_than_all():
    noise = np.random.default_rng(7).normal(size=(COUNT, 4))
    # Nothing of it is known from the observation, and a map is a little worse than the mean.
    for size in (2, 20):
        assert 0.8 < share_of(walk(size), noise) <= 1
    inputs = np.random.default_rng(8).normal(size=(300, 20))
    assert share_of(inputs, noise[:300]) == 1


def test_maps_that_are_worse_than_the_mean_are_no_estimate():
    # Of a single movement: what fits one part of it is far off in the others.
    walked = np.random.default_rng(1).normal(size=(120, 12)).cumsum(0)
    assert share_of(walked[:, :10], walked[:, 10:]) is None


def test_estimate_needs_decisions_and_actions_that_vary():
    observations = walk()
    assert share_of(observations[:60], observations[:60]) is None
    assert share_of(observations, np.full((COUNT, 2), 0.5)) is None
    # More dimensions than the decisions can tell anything of.
    assert share_of(np.random.default_rng(0).normal(size=(120, 50)), observations[:120]) is None
