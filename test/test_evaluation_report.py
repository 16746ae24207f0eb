"""The page of an evaluation tells what its JSON tells, needs nothing else, and is always whole."""

import base64
from html.parser import HTMLParser
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('matplotlib', reason='matplotlib is not installed')
pytest.importorskip('minari', reason='minari is not installed')
pytest.importorskip('tyro', reason='tyro is not installed')
from idql_ros.policy import Decision  # noqa: E402
from idql_ros.simulated_robot import plain_spec  # noqa: E402
from training import evaluation_pictures, evaluation_report, evaluation_summary  # noqa: E402
from training.evaluate import RecordedEpisode, summarise  # noqa: E402
from training.evaluation_agreement import Recorded  # noqa: E402

# MuJoCo does not simulate it, and it tells no success.
ENVIRONMENT = 'Pendulum-v1'
EVIL = '<script>alert(1)</script>&"\''
KNOWN = {'dataset': 'test/pendulum-v0', 'config': {'idql': {'discount': 0.9}}}


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, content):
        """Parse it."""
        super().__init__()
        self.tags, self.words, self.pictures = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == 'img':
            self.pictures.append(dict(attributes)['src'])

    def handle_data(self, data):
        self.words.append(data)


def policy(provenance):
    """Return what a page asks of a policy file, which keeps what it was asked."""
    spec = plain_spec(ENVIRONMENT)
    asked = []

    def decide_batch(observations, ticks_ns, seed, candidates, **settings):
        asked.append((len(observations), seed, candidates, settings))
        drawn = np.zeros((candidates, 1), np.float32)
        return [Decision(drawn[0], 0.0, 0.0, drawn, np.zeros(candidates)) for _ in ticks_ns]

    return SimpleNamespace(
        asked=asked, path=SimpleNamespace(name='p.onnx'), spec=spec, provenance=provenance,
        candidates=4, provider='CPU', decide_batch=decide_batch,
        decide=lambda observation, tick_ns, *rest, **settings: decide_batch(
            [observation], [tick_ns], *rest, **settings)[0])


def episodes(count=12, rows=5, told=True):
    """Return episodes of the pendulum, as far as a page looks at them."""
    rng = np.random.default_rng(0)
    return [RecordedEpisode(
        -float(k), False, rows, rng.normal(size=(rows, 3)), rng.normal(size=rows),
        np.zeros((rows, 1), np.float32), rng.normal(size=rows), False, np.zeros(3),
        np.zeros((0, 3)), np.zeros(rows, int), told) for k in range(count)]


def write(folder, provenance=None, name=ENVIRONMENT, rows=None, recorded=None, warning=None,
          opened=None):
    """Write a page; return its content, what a browser makes of it, and its JSON."""
    results = {n: episodes() if rows is None else rows for n in (1, 4)}
    untold = {} if results[4][0].success_told else {'success': None, 'interval': None}
    scores = {
        'policy': f'{EVIL}/p.onnx', 'sha256': 'ab' * 32, 'environment': ENVIRONMENT,
        'environment_id': name, 'warning': warning, 'episodes': len(results[4]), 'seed': 7,
        'extraction': 'greedy', 'softmax_temperature': 1.0, 'sampling_temperature': 1.0,
        'parallel': 4, 'candidates': {
            n: summarise(found) | untold for n, found in results.items()}}
    target = folder / 'page.html'
    evaluation_report.write(
        target, scores, opened or policy(KNOWN if provenance is None else provenance), results,
        {'extraction': 'greedy'}, recorded)
    content = target.read_text()
    return content, Page(content), json.loads(
        (folder / 'page.json').read_text(), parse_constant=pytest.fail)


def recorded():
    """Return decisions of a dataset."""
    return Recorded('test/pendulum-v0', True, 50, np.zeros((9, 3), np.float32), np.ones((9, 1)),
                    np.ones(1))


def test_page_needs_nothing_from_elsewhere_and_tells_what_the_json_tells(tmp_path):
    content, page, numbers = write(tmp_path, recorded=recorded(), warning='another version')
    assert not re.search(r'https?:|//|url\(|@import', re.sub(r'base64,[^"]*', '', content))
    assert 'script' not in page.tags and 'link' not in page.tags
    # Histograms, calibration, agreement; of the pendulum there are no pictures.
    assert len(page.pictures) == 3
    for picture in page.pictures:
        kind, data = picture.split(',')
        assert kind == 'data:image/png;base64'
        assert base64.b64decode(data, validate=True).startswith(b'\x89PNG')
    words = ' '.join(page.words)
    for expected in ('p.onnx in Pendulum-v1', 'another version', 'ab' * 32,
                     'discount 0.9 a decision', 'the data that the file was trained on',
                     'action', 'config.idql.discount', 'No pictures: environment'):
        assert expected in words
    low, high = numbers['candidates']['4']['interval']
    assert f'{low:.3f} to {high:.3f}' in words
    assert numbers['detailed'] == 4 and numbers['provenance'] == KNOWN
    assert [row['episode'] for row in numbers['worst']] == list(range(11, 1, -1))
    assert [row['seed'] for row in numbers['worst']] == list(range(18, 8, -1))
    assert numbers['worst'][0]['first_q'] == pytest.approx(episodes()[11].q[0])
    assert numbers['agreement']['dimensions'][0]['chosen']['mean'] == 1
    assert numbers['latency']['decisions'] == 60


def test_agreement_and_latency_are_of_the_largest_n_with_the_settings_of_the_scoring(tmp_path):
    opened = policy(KNOWN)
    _, _, numbers = write(tmp_path, recorded=recorded(), opened=opened)
    assert numbers['detailed'] == 4 and numbers['agreement']['compared'] == 9
    settings = {'extraction': 'greedy'}
    one, all_recorded = (1, 7, 4, settings), (9, 7, 4, settings)
    assert opened.asked == [one] * (60 + evaluation_summary.UNTIMED) + [all_recorded]


def test_pictures_are_of_the_worst_episodes(tmp_path, monkeypatch):
    filmed = []

    def film(environment, spec, seed, chosen):
        filmed.append((environment, seed, {k: e.total_reward for k, e in chosen.items()}))
        return evaluation_pictures_film(environment, spec, seed, chosen)

    evaluation_pictures_film = evaluation_pictures.film
    monkeypatch.setattr(evaluation_pictures, 'film', film)
    _, _, numbers = write(tmp_path)
    assert filmed == [
        (ENVIRONMENT, 7, {row['episode']: row['return'] for row in numbers['worst']})]
    assert list(filmed[0][2]) == [row['episode'] for row in numbers['worst']]


def test_success_that_the_environment_does_not_tell_is_not_told(tmp_path):
    _, page, numbers = write(tmp_path, rows=episodes(told=False))
    words = ' '.join(page.words)
    assert 'success not told by the environment, mean return' in words
    assert 'does not tell success' in words and '0.00' not in words
    assert numbers['candidates']['4']['success'] is None
    assert {row['success'] for row in numbers['worst']} == {None}
    _, page, _ = write(tmp_path, rows=episodes())
    assert 'not tell success' not in ' '.join(page.words)
    assert 'success 0.00 [0.00, ' in ' '.join(page.words)


def test_page_says_how_many_episodes_were_cut_off_too_early_to_compare(tmp_path):
    # 0.9 to the power of 5 decisions is more than 5 %.
    _, page, numbers = write(tmp_path)
    assert numbers['calibration']['too_early'] == [True] * 12
    assert numbers['calibration']['first']['compared'] == 0
    assert 'the first decision of 12 episodes is not, and is a cross' in ' '.join(page.words)
    assert 'left out at the first' not in ' '.join(page.words)
    assert len(page.pictures) == 2  # histograms and the crosses


def test_without_a_dataset_the_page_says_how_to_give_one(tmp_path):
    _, page, numbers = write(tmp_path)
    words = ' '.join(page.words)
    assert '--dataset ID' in words and 'was trained on test/pendulum-v0' in words
    assert numbers['agreement'] is None


def test_texts_of_file_and_environment_are_texts_on_the_page(tmp_path):
    evil = {'dataset': EVIL, EVIL: {EVIL: [EVIL]}, 'config': KNOWN['config'],
            'dataset_metadata': {'task': json.dumps(
                {'reward': {'topic': {'topic': EVIL, 'field': 'data'}}, 'terminal': 'never'})}}
    content, page, _ = write(tmp_path, evil, name=EVIL, warning=EVIL)
    assert '<script' not in content and 'script' not in page.tags
    assert ''.join(page.words).count('<script>alert(1)</script>') >= 8


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('provenance', [
    {}, {'dataset': None, 'config': []},
    {f'key {k}': k for k in range(300)}, {'long': 'x' * 60_000},
    KNOWN | {'dataset_metadata': {'task': '{"reward": {"sparse_goal": {}}, "terminal": 1}'}}])
def test_any_provenance_has_a_page_of_bounded_size(tmp_path, provenance):
    content, page, numbers = write(tmp_path, provenance)
    assert numbers['provenance'] == provenance
    assert len(re.sub(r'base64,[^"]*', '', content)) < 50_000
    assert ('more rows in the JSON' in ' '.join(page.words)) == (len(provenance) == 300)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('value', [np.nan, np.inf, -1e300, 1e30])
def test_any_returns_have_a_page(tmp_path, value):
    rows = [RecordedEpisode(
        value, False, 1, np.full((1, 3), np.nan), np.full(1, value), np.zeros((1, 1)),
        np.full(1, value), True, np.zeros(3), np.zeros((0, 3)), np.zeros(1, int), True)] * 2
    _, page, numbers = write(tmp_path, rows=rows)
    assert numbers['latency']['p99_ms'] is None
    assert 'The worst 2 episodes' in ' '.join(page.words)
