"""The page of a conversion needs nothing from elsewhere; what it and the text say is bounded."""

import base64
from html.parser import HTMLParser
import json
from pathlib import Path
import re
import tempfile

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
pytest.importorskip('matplotlib', reason='matplotlib is not installed')
import bag_results as made  # noqa: E402
from bag_results import any_result, bag, digest, GOAL, robot, summary_of, unusual  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from training.bag_report import text, write  # noqa: E402
from training.bag_summary import BagResult, summarise  # noqa: E402


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, content):
        """Parse it."""
        super().__init__()
        self.tags, self.words, self.pictures, self.open = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == 'img':
            self.pictures.append(dict(attributes)['src'])
        elif tag != 'meta':
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(folder, results, spec=None, task=GOAL, title='a title'):
    """Write the report; return its page as text, and parsed."""
    spec = spec or robot()
    target = write(folder, summarise(results, spec, task), results, spec, title)
    assert target == folder / 'report.html'
    content = target.read_text()
    parsed = Page(content)
    assert parsed.open == []
    return content, parsed


def test_page_holds_pictures_and_needs_nothing_from_elsewhere(tmp_path):
    content, page = page_of(tmp_path / 'new' / 'report', [bag(robot())])
    assert len(page.pictures) == 5
    for picture in page.pictures:
        kind, data = picture.split(',')
        assert kind == 'data:image/png;base64'
        assert base64.b64decode(data, validate=True).startswith(b'\x89PNG')
    assert not re.search(r'https?:|//|url\(|@import', re.sub(r'base64,[^"]*', '', content))
    assert 'script' not in page.tags and 'link' not in page.tags
    words = ' '.join(page.words)
    for expected in ('a title', 'pose[1]', 'drive linear.x', 'm/s', digest('bag'), 'bag_0.mcap',
                     '-1 to 1'):
        assert expected in words
    told = json.loads((tmp_path / 'new' / 'report' / 'report.json').read_text())
    assert told['title'] == 'a title'
    assert {key: told[key] for key in told if key != 'title'} == summary_of(bag(robot()))


def test_text_from_bags_is_text_on_the_page_and_on_the_terminal(tmp_path):
    evil = '<script>alert(1)</script>\x1b[2J&"\''
    result = bag(robot(), name=evil, refused=evil, unused={evil: 7}, files={evil: evil},
                 notes=[evil], clock={'source': evil, 'set_back': 0, 'out_of_order': 0,
                                      'without_time': 0, 'too_late': {evil: 1}})
    result.account['streams'][0].update(unreadable_because=evil, unreadable=2)
    content, page = page_of(tmp_path, [result], title=evil)
    assert '<script' not in content and 'script' not in page.tags
    assert ''.join(page.words).count('<script>alert(1)</script>') >= 8
    shown = text(summary_of(result))
    assert '\x1b' not in shown and '<script>' in shown


def test_one_is_no_plural(tmp_path):
    clock = {'source': 'headers', 'set_back': 1, 'out_of_order': 1, 'without_time': 1,
             'too_late': {'pose': 1}}
    result = bag(robot(), 'single', 1, ties=1, unused={'stale': 1}, clock=clock, notes=['a', 'b'])
    for stream in result.account['streams']:
        stream.update(unreadable=1, gaps=1, gaps_listed=[{'at_s': 0.5, 'length_s': 0.7}])
    result.account['streams'][0]['stamps'].update(zero=1, repeated=1, backward=1, overtaken=1)
    result.episodes = [(1, -1.0, True)]
    for decisions in (0, 1):
        result.account['decisions'] = decisions
        _, page = page_of(tmp_path, [result])
        said = '\n'.join([*page.words, text(summary_of(result))])
        assert '1 bag' in said and '1 gap' in said and '1 time' in said
        assert not re.findall(r'(?<![\d.,:])\b1 (?:more )?[a-z]{3,}s\b', said)


def test_page_and_text_tell_notes_and_what_a_message_lacks(tmp_path):
    result = bag(robot(), change=made.unreadable, notes=['decoded as in the bag'])
    result.account['streams'][0]['unreadable_because'] = 'field data[0] has 0 elements'
    _, page = page_of(tmp_path, [result])
    for said in (' '.join(page.words), ' '.join(text(summary_of(result)).split())):
        assert 'decoded as in the bag' in said and 'field data[0] has 0 elements' in said


def test_text_begins_with_what_is_gravest_and_tells_the_clock():
    spec = robot(clock='header')
    clock = {'source': '/clock', 'set_back': 0, 'out_of_order': 0, 'without_time': 0,
             'too_late': {}}
    shown = text(summary_of(
        bag(spec, clock=clock), bag(spec, 'broken', clock=clock, refused='no topic pose'),
        spec=spec))
    assert 'no topic pose' in shown.splitlines()[2] and '/clock (2 bags)' in shown


def test_long_names_are_cut_to_their_beginning_in_the_text():
    name = 'front-left-' * 8
    summary = summary_of(bag(robot(), name, refused='it is damaged'))
    summary['signals'][0]['name'] = name
    shown = text(summary)
    assert f'error: {name[:37]}...: The bag was refused' in shown
    assert f'\n{name[:37]}...: 2,000 messages' in shown


def test_clock_line_is_wrapped_at_words():
    spec = robot(clock='header')
    topics = {f'a_robot/sensors/range_{i}': 1000 + i for i in range(9)}
    clock = {'source': '/clock', 'set_back': 0, 'out_of_order': 1234, 'without_time': 5678,
             'too_late': topics, 'speed': 0.987}
    summary = summary_of(bag(spec, clock=clock), spec=spec)
    lines = text(summary).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith('clock: '))
    rows = [lines[begin], *(line for line in lines[begin + 1:] if line.startswith('    '))]
    assert 2 <= len(rows) <= 4 and max(map(len, rows)) <= 99
    assert ' '.join(' '.join(rows).split()).endswith(
        'a_robot/sensors/range_3: 1,003 and 5 more topics')


def test_no_estimate_of_the_behaviour_is_said(tmp_path):
    _, page = page_of(tmp_path, [bag(robot(), n=50)])
    assert 'No estimate: the decisions are too few' in ' '.join(page.words)


def test_names_of_files_that_are_no_text_are_written(tmp_path):
    page_of(tmp_path, [bag(robot(), name='bag-\udcff')])


@pytest.mark.parametrize('name', ['report.html', 'report.json'])
def test_report_is_written_whole_or_not_at_all(tmp_path, name):
    page_of(tmp_path, [bag(robot(), n=100)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / f'.{name}.unfinished').mkdir()
    with pytest.raises(OSError):
        page_of(tmp_path, [bag(robot(), n=200)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()
            if path.is_file()} == before


def test_page_of_many_bags_is_bounded_and_names_them_all(tmp_path):
    few = [bag(robot(), f'bag{i}', 2000, seed=i) for i in range(20)]
    content, page = page_of(tmp_path, few)
    assert len(content) < 3e6 and len(page.pictures) == 7
    many = [BagResult({**few[i % 20].account, 'bag': f'bag{i}'}, few[i % 20].samples,
                      few[i % 20].episodes) for i in range(300)]
    content, page = page_of(tmp_path, many)
    assert len(content) < 3e6 and len(page.pictures) == 7
    assert {f'bag{i}' for i in range(300)} <= set(page.words)


def test_text_is_short_whatever_is_amiss():
    def bad(streams):
        for change in (made.outside_limits, made.skewed, made.with_nan, made.repeated_stamps):
            change(streams)
    spec = robot(clock='header')
    clock = {'source': 'headers', 'set_back': 1, 'out_of_order': 0, 'without_time': 0,
             'too_late': {f'topic{i}': i for i in range(50)}}
    results = [bag(spec, f'bag{i}', 20, change=bad, refused='because ' * 200, clock=clock,
                   unused={f'reason {k}': k for k in range(30)}) for i in range(100)]
    lines = text(summary_of(*results, spec=spec)).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 200
    assert 'refused' in lines[2] and 'more in the report' in '\n'.join(lines)


def test_histograms_of_many_dimensions_are_of_some_and_the_page_says_so(tmp_path):
    spec = robot(60)
    _, page = page_of(tmp_path, [bag(spec)], spec)
    shown = summary_of(bag(spec), spec=spec)['observation_histograms']
    assert len(shown['shown']) == 24 and shown['dimensions'] == 60
    assert shown['shown'][0]['name'] == 'pose[0]' and shown['shown'][-1]['name'] == 'pose[59]'
    assert '24 of 60 dimensions, evenly chosen.' in ' '.join(page.words)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('results', [
    pytest.param(results, id=name) for name, results in unusual()])
@pytest.mark.parametrize('task', [GOAL, None])
def test_unusual_bags_have_a_page(tmp_path, results, task):
    page_of(tmp_path, results, task=task)
    assert text(summary_of(*results, task=task))


@hypothesis.settings(max_examples=8, deadline=None,
                     suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_any_account_has_a_page(data):
    spec = robot()
    results = data.draw(st.lists(any_result(spec), max_size=2))
    assert len(text(summarise(results, spec, GOAL)).splitlines()) <= 40
    with tempfile.TemporaryDirectory() as folder:
        page_of(Path(folder), results, title=data.draw(st.text()))
