"""Files that are whole or not there."""

import errno
from pathlib import Path
import resource

import pytest
from training.files import check_writable, write_all, write_whole


def test_what_is_written_is_read_and_nothing_else_lies_beside_it(tmp_path):
    path = tmp_path / 'a.json'
    for content in (b'first', memoryview(b'second'), b''):
        write_whole(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('before', [None, b'the one before'])
def test_a_disk_that_takes_no_more_leaves_what_was_there_and_no_temporary_file(tmp_path, before):
    path = tmp_path / 'a.json'
    if before is not None:
        path.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            write_whole(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])
    assert before is None or path.read_bytes() == before


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / '.a.json.unfinished').write_bytes(b'half')
    write_whole(tmp_path / 'a.json', b'whole')
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_a_folder_in_its_place_stays(tmp_path):
    (tmp_path / 'a.json' / 'kept').mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match='a.json: expected a file or nothing, found a fol'):
        write_whole(tmp_path / 'a.json', b'whole')
    assert [path.name for path in tmp_path.rglob('*')] == ['a.json', 'kept']


def test_of_files_that_belong_together_none_is_replaced_where_one_cannot_be(tmp_path):
    first, second = tmp_path / 'a.html', tmp_path / 'a.json'
    first.write_bytes(b'old')
    second.mkdir()
    with pytest.raises(IsADirectoryError):
        write_all({first: b'new', second: b'new'})
    assert first.read_bytes() == b'old' and sorted(tmp_path.iterdir()) == [first, second]


def test_what_cannot_be_written_is_found_out_before_and_what_is_there_stays(tmp_path):
    (tmp_path / 'there').write_bytes(b'old')
    check_writable(tmp_path / 'there')
    check_writable(tmp_path / 'new')
    with pytest.raises(OSError, match='/proc/a: expected a place for a file'):
        check_writable(Path('/proc/a'))
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'old']
