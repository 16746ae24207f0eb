"""A page needs nothing from elsewhere, and no text becomes a part of it; its numbers are JSON."""

import json

import numpy as np
import pytest
from training import page

EVIL = '<script>alert(1)</script>&"\'</table>'


def test_texts_stay_texts(tmp_path):
    parts = [page.heading(2, EVIL), page.paragraph(EVIL), page.remark('warning', EVIL, EVIL),
             page.table([EVIL], [[EVIL]]), page.picture(b'\x89PNG', EVIL)]
    page.write(tmp_path / 'page.html', EVIL, parts, {})
    content = (tmp_path / 'page.html').read_text()
    assert '<script' not in content and content.count('</table>') == 1
    # The title twice, and each part with its texts.
    assert content.count('&lt;script&gt;') == 2 + 1 + 1 + 2 + 2 + 1


def test_table_without_a_head_has_no_row_for_it():
    assert '<th>' not in page.table(('', ''), [('a', 'b')])
    assert page.table(('', 'x'), [('a', 'b')]).count('<th>') == 2


def test_where_page_or_numbers_cannot_be_written_both_stay_as_they_were(tmp_path):
    page.write(tmp_path / 'a.html', 'a', [], {'x': 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.html', 'a.json']
    before = (tmp_path / 'a.html').read_bytes()
    with pytest.raises(ValueError, match='JSON compliant'):
        page.write(tmp_path / 'a.html', 'b', [], {'x': float('nan')})
    (tmp_path / 'there.json').mkdir()
    (tmp_path / 'there.html').write_text('old')
    with pytest.raises(OSError):
        page.write(tmp_path / 'there.html', 'c', [], {})
    assert (tmp_path / 'a.html').read_bytes() == before
    assert (tmp_path / 'there.html').read_text() == 'old'
    assert not list(tmp_path.glob('.*'))


def test_names_that_are_no_text_do_not_stop_a_page(tmp_path):
    page.write(tmp_path / 'a.html', 'name \udc80', [], {})
    assert b'name ?' in (tmp_path / 'a.html').read_bytes()


def test_plain_data_is_strict_json():
    data = {1: np.arange(3), 'b': (np.float32(0.5), np.inf, None, True, np.bool_(False)),
            'c': {'d': np.array([np.nan, 1.0])}}
    found = page.plain(data)
    assert json.loads(json.dumps(found, allow_nan=False)) == found == {
        '1': [0, 1, 2], 'b': [0.5, None, None, True, False], 'c': {'d': [None, 1.0]}}
