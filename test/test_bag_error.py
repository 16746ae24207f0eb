"""Whatever a library raises over a bag becomes one line that is safe to print."""

from pathlib import Path

import pytest
from training.bag_error import BagError, one_line, refusing


def test_text_of_a_bag_does_not_steer_the_terminal():
    assert str(BagError('a\x1b[2J\nb')) == 'a [2J b'


@pytest.mark.parametrize(('error', 'said'), [
    (ValueError('two\n  lines'), 'two lines'), (KeyError('protobuf'), "KeyError 'protobuf'"),
    (AssertionError(), 'AssertionError AssertionError'), (MemoryError(), 'MemoryError'),
    (OSError(28, 'No space left', 'x.db3'), 'No space left'), (OSError('odd'), 'odd')])
def test_any_error_is_refused_with_the_file_and_what_was_done(error, said):
    with pytest.raises(BagError) as refused, refusing(Path('x.db3'), 'cannot be read'):
        raise error
    assert str(refused.value) == f'x.db3: cannot be read: {said}'


def test_refusal_stays_as_it_is():
    with pytest.raises(BagError, match='^as it is$'), refusing(Path('x.db3'), 'cannot be read'):
        raise BagError('as it is')


def test_long_texts_are_cut_and_what_can_be_done_is_said():
    assert len(one_line(ValueError('x' * 10**6))) < 500
    assert 'mcap recover' in one_line(ValueError('File end magic is invalid.'))
    assert 'rosbag reindex' in one_line(ValueError('Bag is not indexed.'))
