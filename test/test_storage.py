"""Bags of every kind give exactly their messages in the order of the log, or one line of refusal.

What is expected is counted without the code under test: by SQLite, and by a small reader of mcap.
"""

from collections import Counter
import os
from pathlib import Path
import shutil
import sqlite3
import sys
import tempfile

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')
hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is not installed')
from bag_samples import (  # noqa: E402
    contents,
    counted,
    edit_metadata,
    expected,
    JAZZY,
    JOINTS,
    number,
    only_file,
    recorded,
    refusal,
    side_by_side,
    T,
    TEXT,
    text,
    write1,
    write2,
    write_humble,
    write_mcap,
)
from hypothesis import strategies as st  # noqa: E402
from training import storage  # noqa: E402
from training.bag_files import is_storage  # noqa: E402
from training.storage import Bag, BagError, find  # noqa: E402

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


# ---- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize('version', [8, 9])
@pytest.mark.parametrize(('plugin', 'mode'), [
    ('mcap', 'plain'), ('mcap', 'file'), ('mcap', 'message'), ('mcap', 'storage'),
    ('db3', 'plain'), ('db3', 'file'), ('db3', 'message')])
def test_every_storage_gives_its_messages_with_and_without_metadata_and_alone(
        tmp_path, plugin, mode, version):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, plugin, mode, version)
    assert contents(bag) == expected(entries)
    file = only_file(bag)
    assert file.name.endswith('.zstd') == (mode == 'file')
    assert contents(file) == expected(entries)
    (bag / 'metadata.yaml').unlink()
    assert contents(bag) == expected(entries)


@pytest.mark.parametrize('compression', [None, 'LZ4', 'BZ2'])
def test_ros1_bag_gives_its_messages_in_the_order_they_were_written(tmp_path, compression):
    entries = recorded()
    # Of one time the second topic came first, for once.
    entries[6], entries[7] = entries[7], entries[6]
    bag = write1(tmp_path / 'run.bag', entries, compression)
    assert contents(bag) == expected(entries)


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_messages_of_one_time_keep_the_order_of_the_storage(tmp_path, plugin):
    entries = [(topic, kind, T, k) for k in range(30) for topic, kind in (
        ('rob/text', TEXT), ('joint_states', JOINTS))[::1 if k % 3 else -1]]
    bag = write2(tmp_path / 'bag', entries, plugin)
    assert contents(bag) == expected(entries)
    assert contents(bag, ['rob/text']) == [e for e in expected(entries) if e[0] == 'rob/text']


def test_messages_are_sorted_by_log_time_where_the_file_is_not_and_has_no_index(tmp_path):
    rows = [(0, T + k * 10**6, bytes(JAZZY.serialize_cdr(text(JAZZY, k), TEXT)))
            for k in (5, 3, 9, 3, 0)]
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], rows, index=False)
    assert [k for _, _, k in contents(bag, ['rob/text'])] == [0, 3, 3, 5, 9]
    write2(tmp_path / 'other', [('rob/text', TEXT, T + k, k) for k in (5, 3, 9, 3, 0)], 'mcap')
    assert [k for _, _, k in contents(tmp_path / 'other', ['rob/text'])] == [0, 3, 3, 5, 9]


def found_in(folder):
    """Return the bags that are found in a folder, by their names within it."""
    return [path.relative_to(folder).as_posix() for path in find([folder])]


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_pieces_that_the_metadata_name_are_merged_by_log_time(tmp_path, plugin):
    entries = recorded(count=60)
    # The second piece begins before the first one ends; the eleventh sorts behind the third.
    parts = [entries[:40] + entries[44:46], entries[40:44] + entries[46:80], entries[80:]]
    names = [f'bag_{i}.{plugin}' for i in (0, 2, 11)]
    bag = side_by_side(tmp_path / 'bag', parts, names, plugin)
    shutil.copy(tmp_path / 'bag_0' / 'metadata.yaml', bag)

    def all_of_them(information):
        information['relative_file_paths'] = names
        information['message_count'] = len(entries)
        for topic in information['topics_with_message_count']:
            topic['message_count'] = len(entries) // 2
    edit_metadata(bag, all_of_them)
    assert contents(bag) == expected(entries)
    with Bag(bag) as opened:
        assert [path.name for path in opened.files] == names and not opened.notes
        assert opened.count == len(entries) and opened.topics['rob/text'].count == 60


@pytest.mark.parametrize('plugin', ['mcap', 'db3', 'mcap.zstd', 'db3.zstd'])
def test_pieces_without_metadata_are_one_bag_and_this_is_noted(tmp_path, plugin):
    entries = recorded(count=66)
    # A log time may end a piece and begin the next.
    parts = [entries[start:start + 11] for start in range(0, 132, 11)]
    bag = side_by_side(tmp_path / 'bag', parts, [f'run_{i}.{plugin}' for i in range(12)],
                       plugin.removesuffix('.zstd'))
    if plugin.endswith('.zstd'):
        for path in bag.iterdir():
            path.write_bytes(zstd.compress(path.read_bytes()))
    assert find([bag]) == [bag]
    assert contents(bag) == expected(entries)
    with Bag(bag) as opened:
        note, = opened.notes
    assert f'taken as the pieces of one bag: run_0.{plugin}, run_1.{plugin}' in note


def test_piece_without_messages_is_a_piece(tmp_path):
    entries = recorded()
    names = ['run_0.db3', 'run_1.db3', 'run_2.db3']
    bag = side_by_side(tmp_path / 'bag', [entries[:20], entries[:2], entries[20:]], names, 'db3')
    with sqlite3.connect(bag / 'run_1.db3') as database:
        database.execute('DELETE FROM messages')
    database.close()
    assert find([bag]) == [bag] and contents(bag) == expected(entries)


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
@pytest.mark.parametrize(('names', 'starts', 'said'), [
    (['run_0', 'run_1'], [0, 5], 'run_1.PLUGIN begins before run_0.PLUGIN ends'),
    (['run_0', 'run_1'], [50, 0], 'run_1.PLUGIN begins before run_0.PLUGIN ends'),
    (['ep_1', 'ep_2'], [0, 0], 'no ep_0.PLUGIN'), (['ep_1', 'ep_2'], [0, 50], 'no ep_0.PLUGIN'),
    (['run_0', 'run_2'], [0, 50], 'no run_1.PLUGIN'),
    (['run_00', 'run_01'], [0, 50], 'different names'),
    (['friday', 'monday'], [50, 0], 'different names'),
    (['friday_0', 'monday_1'], [0, 50], 'different names'),
    (['friday', 'friday_0'], [0, 50], 'different names')])
def test_recordings_side_by_side_are_bags_of_their_own_and_never_interleaved(
        tmp_path, plugin, names, starts, said):
    files = [f'{name}.{plugin}' for name in names]
    parts = [recorded(first, 10) for first in starts]
    folder = side_by_side(tmp_path / 'day', parts, files, plugin)
    assert found_in(folder) == files
    for file, part in zip(files, parts, strict=True):
        assert contents(folder / file) == expected(part)
    line = refusal(folder)
    assert f'found {said.replace("PLUGIN", plugin)}: {", ".join(files)}; give the files' in line


def test_pieces_of_another_storage_are_no_pieces(tmp_path):
    parts = [recorded(0, 5), recorded(5, 5)]
    folder = side_by_side(tmp_path / 'day', parts, ['a_0.db3', 'a_1.db3'], 'db3')
    shutil.copy(only_file(write2(tmp_path / 'other', recorded(10, 5))), folder / 'a_2.mcap')
    assert found_in(folder) == ['a_0.db3', 'a_1.db3', 'a_2.mcap']


def test_damaged_piece_spoils_the_bag_it_is_of(tmp_path):
    bag = side_by_side(tmp_path / 'bag', [recorded(0, 5), recorded(5, 5)],
                       ['run_0.mcap', 'run_1.mcap'])
    (bag / 'run_1.mcap').write_bytes((bag / 'run_1.mcap').read_bytes()[:-20])
    assert find([bag]) == [bag]
    with pytest.raises(BagError, match='run_1.mcap: cannot be read as a bag'), Bag(bag):
        pass


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_files_that_the_metadata_do_not_name_are_noted(tmp_path, plugin):
    bag = write2(tmp_path / 'bag', recorded(), plugin)
    file = only_file(bag)
    with Bag(bag) as opened:
        assert not opened.notes
    for name in ('bag_1', 'old'):
        shutil.copy(file, bag / f'{name}.{plugin}')
    assert contents(bag) == expected(recorded())
    with Bag(bag) as opened:
        assert opened.notes == ['not read, as metadata.yaml does not name them: '
                                f'bag_1.{plugin}, old.{plugin}']


@pytest.mark.parametrize('stated', [
    'data/{}', 'before/{}', '../bag/{}', '../data/{}', '/nowhere/{}', '{}'])
def test_file_is_looked_for_where_the_metadata_say_then_beside_them(tmp_path, stated):
    bag = write2(tmp_path / 'bag', recorded())
    name = only_file(bag).name
    edit_metadata(bag, lambda information: information.update(
        relative_file_paths=[stated.format(name)]))
    for folder in (bag / 'data', tmp_path / 'data'):
        # Outside of the bag nothing is looked for.
        side_by_side(folder, [recorded(7, 1)], [name])
    if stated.startswith('data'):
        (bag / name).rename(bag / 'data' / name)
    assert find([bag]) == [bag]
    assert contents(bag) == expected(recorded())
    with Bag(bag) as opened:
        assert list(opened.sha256()) == ['data/bag.mcap' if stated == 'data/{}' else 'bag.mcap']


@pytest.mark.parametrize('name', ['run#1', 'half 50%41', 'what?x=1', 'ümlaut'])
@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
def test_any_name_of_a_folder_will_do(tmp_path, name, plugin):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, plugin).rename(tmp_path / name)
    assert contents(bag) == expected(entries)
    assert contents(only_file(bag).rename(bag / f'{name}.{plugin}')) == expected(entries)


def test_raw_gives_the_bytes_and_the_digest_is_of_the_files(tmp_path):
    import hashlib
    entries = recorded(count=3)
    bag = write2(tmp_path / 'bag', entries, 'db3', 'message')
    with Bag(bag) as opened:
        found = list(opened.raw(['/rob/text']))
        digests = opened.sha256()
    assert [JAZZY.deserialize_cdr(data, TEXT).data for _, _, data in found] == [
        'number 0', 'number 1', 'number 2']
    file = only_file(bag)
    assert digests == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize('kind', ['mcap', 'db3', 'ros1', 'fast'])
def test_two_readings_of_one_bag_do_not_disturb_each_other(tmp_path, kind):
    if kind == 'fast':
        bag = write_mcap(tmp_path / 'fast.mcap', [(T + k, k) for k in range(50)])
    elif kind == 'ros1':
        bag = write1(tmp_path / 'run.bag', recorded(count=50))
    else:
        bag = write2(tmp_path / 'bag', recorded(count=50), kind)
    with Bag(bag) as opened:
        pairs = zip(opened.messages(['rob/text']), opened.raw(['rob/text']), strict=True)
        assert [(number(a[2]), a[:2]) for a, _ in pairs] == [
            (k, ('rob/text', T + k * (1 if kind == 'fast' else 10**7))) for k in range(50)]


def test_no_topics_give_no_messages_and_unknown_topics_are_named(tmp_path):
    bag = write2(tmp_path / 'bag', recorded(count=2))
    with Bag(bag) as opened:
        assert list(opened.messages([])) == []
        assert list(opened.raw(())) == []
    assert 'expected the topic odom, found joint_states, rob/text' in refusal(bag, ['odom'])


def test_bag_without_messages_opens(tmp_path):
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)], [])
    with Bag(bag) as opened:
        assert opened.count == 0 and list(opened.messages(['rob/text'])) == []


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize('plugin', ['mcap', 'db3'])
@pytest.mark.parametrize('change', ['all', 'topic', 'another'])
def test_metadata_that_states_other_counts_is_refused(tmp_path, plugin, change):
    bag = write2(tmp_path / 'bag', recorded(), plugin)

    def wrong(information):
        topic = information['topics_with_message_count'][0]
        if change == 'all':
            information['message_count'] += 1
        elif change == 'topic':
            topic['message_count'] -= 1
        else:
            topic['topic_metadata']['name'] = '/elsewhere'
    edit_metadata(bag, wrong)
    assert 'expected the messages that metadata.yaml states, found others' in refusal(bag)


def test_times_in_the_metadata_are_not_believed(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries)

    def late(information):
        information['starting_time'] = {'nanoseconds_since_epoch': T + 180 * 10**9}
        information['duration'] = {'nanoseconds': 1}
    edit_metadata(bag, late)
    assert contents(bag) == expected(entries)


def test_metadata_of_another_quality_of_service_loses_nothing(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, 'db3')

    def other(information):
        for topic in information['topics_with_message_count']:
            topic['topic_metadata']['offered_qos_profiles'] = '- history: 3\n  depth: 1\n'
    edit_metadata(bag, other)
    assert contents(bag) == expected(entries)


def test_renamed_file_is_taken_where_the_counts_agree_else_refused(tmp_path):
    entries = recorded()
    bag = write2(tmp_path / 'bag', entries, 'db3')
    only_file(bag).rename(bag / 'renamed.db3')
    assert contents(bag) == expected(entries)
    shutil.copy(only_file(write2(tmp_path / 'other', recorded(count=3), 'db3')),
                bag / 'renamed.db3')
    assert 'it names bag.db3, which is not there, and renamed.db3 is not the same' in refusal(bag)


def test_plain_and_compressed_file_of_one_name_are_not_read_twice(tmp_path):
    bag = write2(tmp_path / 'bag', recorded())
    file = only_file(bag)
    file.with_name(f'{file.name}.zstd').write_bytes(zstd.compress(file.read_bytes()))
    assert contents(bag) == expected(recorded())
    (bag / 'metadata.yaml').unlink()
    assert 'expected bag.mcap once, found it also compressed' in refusal(bag)


def test_message_that_expands_beyond_all_measure_is_refused(tmp_path, monkeypatch):
    bag = write2(tmp_path / 'bag', recorded(), 'db3', 'message')
    monkeypatch.setattr(storage, '_LARGEST_MESSAGE', 10)
    assert 'message 0, logged at 1700000000000000000 ns, cannot be decompressed' in refusal(bag)


def test_topic_of_two_types_is_refused_when_it_is_asked_for(tmp_path):
    rows = [(0, T, b''), (1, T, b''),
            (2, T, bytes(JAZZY.serialize_cdr(text(JAZZY, 3), TEXT)))]
    bag = write_humble(tmp_path / 'bag', [('/a', TEXT), ('/a', JOINTS), ('/rob/text', TEXT)], rows)
    assert contents(bag, ['rob/text']) == [('rob/text', T, 3)]
    assert f'it was recorded with the types {JOINTS} and {TEXT}' in refusal(bag, ['a'])


def test_message_that_cannot_be_decoded_is_named(tmp_path):
    data = bytes(JAZZY.serialize_cdr(text(JAZZY, 3), TEXT))
    bag = write_humble(tmp_path / 'bag', [('/rob/text', TEXT)],
                       [(0, T, data), (0, T + 5, data[:-3])])
    assert (f'topic rob/text ({TEXT}): message 1, logged at {T + 5} ns, cannot be decoded'
            in refusal(bag))


# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return kind -> (bag, its file): a small bag of each kind of file."""
    folder = tmp_path_factory.mktemp('whole')
    entries = recorded(count=40)
    result = {}
    for plugin, mode in (('mcap', 'plain'), ('mcap', 'storage'), ('mcap', 'file'),
                         ('db3', 'plain'), ('db3', 'file'), ('db3', 'message')):
        bag = write2(folder / f'{plugin}_{mode}', entries, plugin, mode)
        result[f'{plugin} {mode}'] = (bag, only_file(bag))
    for compression in (None, 'LZ4'):
        path = write1(folder / f'{compression}.bag', entries, compression)
        result[f'ros1 {compression}'] = (path, path)
    return result


KINDS = ('mcap plain', 'mcap storage', 'mcap file', 'db3 plain', 'db3 file', 'db3 message',
         'ros1 None', 'ros1 LZ4')


def with_content(kind, whole, content, alone, read=contents):
    """Return what is read of a bag whose file has another content: messages, or the refusal."""
    bag, file = whole[kind]
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, file.name)
        damaged.write_bytes(content)
        path = damaged
        if not alone and bag != file:
            shutil.copy(bag / 'metadata.yaml', folder)
            path = Path(folder)
        try:
            return read(path)
        except BagError as error:
            assert str(error).startswith(folder) and '\n' not in str(error)
            return str(error)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(content=st.binary(max_size=300), alone=st.booleans(), magic=st.booleans())
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_random_bytes_are_refused_in_one_line(whole, kind, content, alone, magic):
    head = whole[kind][1].read_bytes()[:40] if magic else b''
    assert isinstance(with_content(kind, whole, head + content, alone), str)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(data=st.data(), alone=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_truncated_bag_is_refused_or_gives_all_messages(whole, kind, data, alone):
    content = whole[kind][1].read_bytes()
    end = data.draw(st.integers(0, len(content) - 1))
    found = with_content(kind, whole, content[:end], alone)
    assert isinstance(found, str) or found == expected(recorded(count=40))


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(data=st.data(), alone=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_flipped_bytes_never_raise_another_error(whole, kind, data, alone):
    content = bytearray(whole[kind][1].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    def read(path):  # what the bytes say may be another text, another name
        with Bag(path) as bag:
            return len(list(bag.messages(bag.topics)))
    with_content(kind, whole, bytes(content), alone, read)


@hypothesis.given(offset=st.integers(0, 10**6), bit=st.integers(1, 255))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_flipped_byte_in_a_chunk_with_a_checksum_is_never_read(whole, offset, bit):
    content = bytearray(whole['mcap storage'][1].read_bytes())
    inside = content.index(zstd.compress(b'')[:4])  # the frame of the chunk
    content[inside + 10 + offset % 200] ^= bit
    found = with_content('mcap storage', whole, bytes(content), False)
    assert isinstance(found, str) or found == expected(recorded(count=40))


@pytest.mark.parametrize('name', [
    'demo.mcap', 'talker.db3', 'run.bag', 'a.mcap.zstd', 'metadata.yaml'])
def test_pointer_of_git_lfs_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:27\n')
    path = tmp_path / name
    if name == 'metadata.yaml':
        (tmp_path / 'a.mcap').touch()
        path = tmp_path
    assert 'git lfs pull' in refusal(path)


@pytest.mark.parametrize(('content', 'said'), [
    (b'\xff\xfe\x00', 'cannot be read as YAML'), (b'', 'expected a value of type dict'),
    (b'- 1\n', 'rosbag2_bagfile_information: expected a value of type dict, found nothing'),
    (b'rosbag2_bagfile_information: [', 'cannot be read as YAML'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: 3}', 'type list, found 3'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: [3]}', 'type dict, found nothing'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: []}',
     'relative_file_paths: expected a value of type list, found nothing'),
    (b'rosbag2_bagfile_information: {topics_with_message_count: [], relative_file_paths: [], '
     b'message_count: true}', 'message_count: expected a value of type int, found True'),
    (b'rosbag2_bagfile_information: !!python/object/apply:os.getcwd []', 'cannot be read as YAML'),
])
def test_metadata_of_another_shape_is_refused(tmp_path, content, said):
    bag = write2(tmp_path / 'bag', recorded(count=1))
    (bag / 'metadata.yaml').write_bytes(content)
    assert said in refusal(bag)


def test_what_is_no_bag_is_refused(tmp_path):
    assert 'no such file or folder' in refusal(tmp_path / 'nothing')
    assert 'expected metadata.yaml or files' in refusal(tmp_path)
    (tmp_path / 'notes.txt').touch()
    assert 'found the name notes.txt' in refusal(tmp_path / 'notes.txt')
    (tmp_path / 'x.mcap').mkdir()
    assert 'expected metadata.yaml or files' in refusal(tmp_path / 'x.mcap')
    (tmp_path / 'y.db3').touch()
    assert 'found 0 bytes' in refusal(tmp_path / 'y.db3')
    bag = write2(tmp_path / 'bag', recorded(count=1))
    only_file(bag).unlink()
    assert 'expected the storage files that it names beside it' in refusal(bag)


@pytest.mark.skipif(os.geteuid() == 0, reason='to root every file is readable')
def test_file_that_may_not_be_read_is_refused(tmp_path):
    bag = write2(tmp_path / 'bag', recorded(count=1))
    only_file(bag).chmod(0)
    assert 'Permission denied' in refusal(bag)


# ---- names on a command line --------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Return a folder with bags at several depths."""
    folder = tmp_path / 'runs'
    (folder / 'day1' / 'deep').mkdir(parents=True)
    write2(folder / 'day1' / 'b', recorded(count=1))
    write2(folder / 'day1' / 'deep' / 'a', recorded(count=1), 'db3', 'file')
    write1(folder / 'day1' / 'old.bag', recorded(count=1))
    (folder / 'day1' / 'notes.txt').touch()
    file = only_file(folder / 'day1' / 'b')
    side_by_side(folder / 'pieces', [recorded(k, 1) for k in range(3)],
                 [f'run_{k}.mcap' for k in range(3)])
    for k in range(3):
        shutil.rmtree(folder / f'pieces_{k}')
    for name in ('loose/one.mcap', 'loose/two.mcap', 'other/metadata.yaml'):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / name)
    return folder


def test_folders_of_bags_are_looked_through(runs):
    found = [path.relative_to(runs).as_posix() for path in find([runs])]
    assert found == ['day1/b', 'day1/deep/a', 'day1/old.bag', 'loose/one.mcap', 'loose/two.mcap',
                     'pieces']


def test_globs_are_expanded_and_what_is_no_bag_is_left_out(runs):
    assert find([f'{runs}/day1/*']) == find([runs / 'day1'])
    assert find([f'{runs}/**']) == find([runs])
    assert find([f'{runs}/day1/*.bag', runs / 'day1' / 'b']) == [
        runs / 'day1' / 'b', runs / 'day1' / 'old.bag']


def test_name_with_the_signs_of_a_glob_is_a_name(tmp_path):
    bag = write2(tmp_path / 'run[1]', recorded(count=1))
    assert find([bag]) == [bag]


def test_link_to_a_folder_above_ends(runs):
    (runs / 'day1' / 'up').symlink_to(runs)
    assert len(find([runs])) == 6


@pytest.mark.parametrize('again', ['day1/b', 'day1/deep/../b', 'day1', 'link', 'day1/b/b.mcap'])
def test_bag_that_is_named_twice_is_refused(runs, again):
    (runs / 'link').symlink_to(runs / 'day1' / 'b')
    for patterns in ([runs / 'day1' / 'b', runs / again], [runs / again, runs / 'day1' / 'b']):
        with pytest.raises(BagError, match='expected each bag once, found it twice'):
            find(patterns)


@pytest.mark.parametrize('pattern', ['nothing', 'no*', 'day1/notes.txt', 'other', 'day1/*.txt'])
def test_pattern_that_names_no_bag_is_refused(runs, pattern):
    with pytest.raises(BagError, match='expected a bag'):
        find([runs, runs / pattern])


# ---- bags of other people -----------------------------------------------------------------------


def bags_of_others():
    """Return the bags in the folder that IDQL_ROS_BAGS names."""
    folder = os.environ.get('IDQL_ROS_BAGS')
    if not folder:
        return [pytest.param(None, marks=pytest.mark.skip(reason='IDQL_ROS_BAGS names no folder'))]
    result = []
    for path in sorted(Path(folder).iterdir()):
        files = [file for file in path.iterdir() if is_storage(file)
                 or file.suffix == '.bag'] if path.is_dir() else []
        alone = len({file.suffix for file in files}) > 1 or any(f.suffix == '.bag' for f in files)
        result += sorted(files) if alone and not (path / 'metadata.yaml').exists() else [
            path] if files else []
    return [pytest.param(path, id=path.relative_to(folder).as_posix()) for path in result]


@pytest.mark.parametrize('path', bags_of_others())
def test_bag_of_others_gives_what_is_counted_elsewhere_or_is_refused_in_one_line(path):
    files = [path] if path.is_file() else [
        file for file in path.iterdir() if is_storage(file)]
    parts = [counted(file) for file in files]
    if None in parts:
        assert len(refusal(path)) > len(str(path)) + 20
        return
    counts = sum(parts, Counter())
    with Bag(path) as bag:
        assert bag.count == counts.total()
        assert {key: topic.count for key, topic in bag.topics.items() if topic.count} == +counts
        assert Counter(key for key, _, _ in bag.raw(bag.topics)) == +counts
        for key, topic in bag.topics.items():
            if topic.unreadable:
                assert '--definitions' in topic.unreadable
                continue
            try:
                times = []
                for _, log_ns, message in bag.messages([key]):
                    assert message.__msgtype__ == topic.type
                    times.append(log_ns)
                assert times == sorted(times) and len(times) == topic.count
            except BagError as error:  # bytes that are no message
                assert f'topic {key} ({topic.type}): message' in str(error)
                assert 'broken' in path.parts and '\n' not in str(error)
