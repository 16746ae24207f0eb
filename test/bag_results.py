"""What became of made-up bags: healthy ones, ones with a flaw each, and any at all."""

import hashlib

import hypothesis.strategies as st
from idql_ros import spec as specs
import numpy as np
from training.account import BagAccount, StreamAccount
from training.alignment import new_account
from training.bag_summary import BagResult, summarise

NS = 10**9
T = 1_700_000_000 * NS
GOAL = {'reward': {'sparse_goal': {'goal': [1.0], 'tolerance': 0.1}}, 'terminal': 'reward'}


def robot(size=2, rate=10.0, clock='received', signal=(), command=()):
    """Return a spec of one signal of `size` numbers and one command of two."""
    limits = {'kind': 'velocity', 'unit': 'm/s', 'lower': -1.0, 'upper': 1.0, 'stop': 'zero'}
    return specs.parse({
        'spec_version': 1, 'name': 'robot', 'rate': rate, 'tick': 'timer', 'clock': clock,
        'observations': [{
            'name': 'pose', 'topic': 'pose', 'type': 'std_msgs/msg/Float32MultiArray',
            'fields': [f'data[0:{size}]'], 'unit': 'm', 'max_age': 0.25, **dict(signal)}],
        'actions': [{
            'name': 'drive', 'topic': 'cmd_vel', 'type': 'geometry_msgs/msg/Twist',
            'fields': ['linear.x', 'angular.z'], 'dimensions': [limits, limits],
            **dict(command)}]}, 'robot')


def bag(spec, name='bag', n=2000, seed=0, noise=0.3, change=None, **more):
    """Return the result of a bag of n decisions of one walk, healthy unless `change` is made.

    Args:
        spec: Of `robot`.
        name: Of the bag.
        n: Decisions.
        seed: Of the numbers.
        noise: Of the commands, beside what the observation says.
        change: Is given the streams (times in ns, log times, stamps, numbers) and changes them.
        more: Attributes of the account.
    """
    rng = np.random.default_rng(seed)
    period = round(NS / spec.rate)
    times = T + period * np.arange(n)
    size = spec.observation_size
    observed = rng.normal(size=(n, size)).cumsum(0) * 0.1
    observed -= observed.mean(0)
    says = np.tanh(observed[:, :1] * [1.0, -1.0])
    actions = np.clip(0.5 * says + noise * rng.normal(size=(n, 2)), -0.99, 0.99)
    streams = {'pose': [times, times + 10**6, times.copy(), observed],
               'drive': [times + 2 * 10**6, times + 2 * 10**6, None, actions]}
    if change is not None:
        change(streams)
    account = new_account(name, spec)
    account.messages = sum(len(streams[key][0]) for key in streams)
    for key, (at, logged, stamps, values) in streams.items():
        with np.errstate(over='ignore'):
            values = None if values is None else np.asarray(values, np.float32)
        for i in range(len(at)):
            account.streams[key].add(
                int(at[i]), int(logged[i]), None if stamps is None else int(stamps[i]),
                None if values is None else values[i])
    account.begin_ns, account.end_ns = T, T + period * n
    account.ticks = account.decisions = n
    account.streams['pose'].ages.add(rng.uniform(0.001, 0.02, n))
    account.files = {f'{name}_0.mcap': digest(name)}
    for key, value in more.items():
        setattr(account, key, value)
    lengths = np.full(n // 50, 50)
    rewards = np.full(n, -1.0)
    rewards[49::50] = 0.0
    samples = {key: stream.values.rows() for key, stream in account.streams.items()}
    decisions = np.column_stack([observed, actions, rewards])
    samples['decisions'] = decisions[::max(1, -(-n // 2000))]
    return BagResult(account.to_dict(), samples,
                     [(int(length), float(1 - length), True) for length in lengths])


def digest(name):
    """Return the SHA-256 of the one file of a bag of this name, which is nobody's copy."""
    return hashlib.sha256(repr(name).encode()).hexdigest()


def copy_of(result, name):
    """Return the same result as that of a copy of the bag under another name."""
    files = {f'{name}_{k}.mcap': value for k, value in enumerate(result.account['files'].values())}
    return BagResult({**result.account, 'bag': name, 'files': files}, result.samples,
                     result.episodes)


def summary_of(*results, spec=None, task=GOAL):
    """Return the summary."""
    return summarise(results, spec or robot(), task)


def constant_command(streams):
    """Command the same at all times."""
    streams['drive'][3][:] = 0.5


def outside_limits(streams):
    """Command once what is outside the limits."""
    streams['drive'][3][7, 1] = 1.5


def often_at_limit(streams):
    """Command the limit a quarter of the time."""
    streams['drive'][3][::4, 0] = 1.0


def skewed(streams):
    """Let the clock of the stamps be two days off."""
    streams['pose'][2] -= 2 * 86400 * NS


def simulated(streams):
    """Let the stamps be of simulated time, at half the speed."""
    streams['pose'][2] = (streams['pose'][0] - T) // 2


def zero_stamps(streams):
    """Let the driver fill in no stamp."""
    streams['pose'][2][:] = 0


def drifting(streams):
    """Let stamps drift by 90 ms."""
    streams['pose'][2] -= np.linspace(0, 90e6, len(streams['pose'][2])).astype(np.int64)


def with_nan(streams):
    """Let one value in twenty be NaN."""
    streams['pose'][3][::20, 1] = np.nan


def constant_input(streams):
    """Observe the same at all times."""
    streams['pose'][3][:, 1] = 3.0


def with_gap(streams):
    """Let nothing come for 10 s."""
    streams['pose'][0][1000:] += 10 * NS
    for part in (1, 2):
        streams['pose'][part][1000:] += 10 * NS


def repeated_stamps(streams):
    """Let a stamp come twice."""
    streams['pose'][2][5] = streams['pose'][2][4]


def unreadable(streams):
    """Let no message be readable."""
    streams['pose'][3] = None


def unusual():
    """Yield names and results of bags that have little to say, or numbers that are hard."""
    spec = robot()
    empty = new_account('empty', spec)
    yield 'no bag', []
    yield 'no message', [BagResult(empty.to_dict(), {
        'pose': np.zeros(0), 'drive': np.zeros((0, 3)), 'decisions': np.zeros(0)}, [])]
    yield 'no stream', [BagResult(BagAccount('none', {}, refused='broken').to_dict(), {}, [])]
    yield 'one message', [bag(spec, n=1)]
    yield 'no episode', [BagResult(bag(spec).account, bag(spec).samples, [])]
    for name, value in (('nan', np.nan), ('inf', np.inf), ('huge', 1e308), ('float32', 3e38),
                        ('tiny', 1e-300)):
        def change(streams, value=value):
            streams['pose'][3][:] = value
            streams['drive'][3][::2] = -value
        result = bag(spec, n=200, change=change)
        result.samples['decisions'][:, ::2] = value
        result.samples['decisions'][::3, 1] = -value
        result.episodes = [(10, value, False), (10**12, -value, True)]
        yield name, [result]
    far = bag(spec, n=200)
    far.samples['pose'][:, 0] = np.nan
    far.samples['drive'][::2, 0] = 1e300
    yield 'times', [far]
    almost = bag(spec, n=200)
    almost.samples['decisions'][:, 0] = 1e9 + 1e-7 * np.arange(200)
    yield 'almost one value', [almost]


COUNTS = st.integers(0, 10**12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SHARES = st.floats(0, 1)
MAYBE = st.none() | NUMBERS
PERCENTILES = st.none() | st.fixed_dictionaries(
    dict.fromkeys(['p5', 'p50', 'p95', 'p99'], NUMBERS))
# No time in ns is longer than 2**63.
GAPS = st.lists(st.fixed_dictionaries(
    dict.fromkeys(['at_s', 'length_s'], st.floats(-1e10, 1e10))), max_size=3)
STAMPS = st.none() | st.fixed_dictionaries({
    **dict.fromkeys(['zero', 'repeated', 'backward', 'overtaken'], COUNTS),
    'skew_s': PERCENTILES, 'skew_begin_s': NUMBERS, 'skew_end_s': NUMBERS})


@st.composite
def stream_accounts(draw, stream):
    """Draw an account of a stream as StreamAccount.to_dict makes it, with any numbers."""
    account = StreamAccount(stream, 1.0).to_dict()
    size = stream.size
    for key, values in (
            ('count', COUNTS), ('unreadable', COUNTS), ('unreadable_because', st.text()),
            ('rate_hz', MAYBE), ('interval_s', PERCENTILES),
            ('gap_s', MAYBE), ('gaps', COUNTS), ('gaps_listed', GAPS), ('stamps', STAMPS),
            ('age_at_ticks_s', PERCENTILES)):
        account[key] = draw(values)
    for key, values in (('not_finite', SHARES), ('low', MAYBE), ('high', MAYBE),
                        ('constant', st.booleans())):
        account[key] = draw(st.lists(values, min_size=size, max_size=size))
    if account['kind'] == 'command':
        for key in ('at_limits', 'outside_limits'):
            account[key] = draw(st.lists(SHARES, min_size=size, max_size=size))
    return account


@st.composite
def any_result(draw, spec):
    """Draw what became of a bag, with any numbers."""
    account = BagAccount(draw(st.text()), {}).to_dict()
    for key, values in (
            ('refused', st.just('') | st.text()), ('messages', COUNTS), ('begin_s', MAYBE),
            ('duration_s', NUMBERS), ('ticks', COUNTS), ('decisions', COUNTS), ('ties', COUNTS),
            ('files', st.dictionaries(st.text(), st.text(), max_size=2)),
            ('notes', st.lists(st.text(), max_size=3)),
            ('unused', st.dictionaries(st.text(), st.integers(1, 10**9), max_size=3)),
            ('clock', st.just({}) | st.fixed_dictionaries(
                {'source': st.text(), 'set_back': COUNTS, 'out_of_order': COUNTS,
                 'without_time': COUNTS,
                 'too_late': st.dictionaries(st.text(), COUNTS, max_size=2)},
                optional={'speed': NUMBERS}))):
        account[key] = draw(values)
    streams = (*spec.observations, *spec.actions)
    account['streams'] = [draw(stream_accounts(stream)) for stream in streams]
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    exponent = draw(st.sampled_from([0, 9, 38, 300]))
    samples = {}
    for name, width in (*((stream.name, 1 + stream.size) for stream in streams),
                        ('decisions', spec.observation_size + spec.action_size + 1)):
        rows = rng.normal(size=(draw(st.sampled_from([0, 1, 2, 150])), width)) * 10.0**exponent
        rows[rng.random(rows.shape) < draw(st.sampled_from([0, 0.1, 1]))] = np.nan
        samples[name] = rows
    episodes = draw(st.lists(st.tuples(st.integers(1, 10**9), st.floats(), st.booleans()),
                             max_size=3))
    return BagResult(account, samples, episodes)
