"""What the pages of reports are made of: HTML that needs nothing from elsewhere.

A text may be somebody else's: all of it is escaped here.
"""

import base64
from collections.abc import Iterable, Sequence
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from training.files import write_all

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 1rem auto;
  padding: 0 .8rem; color: #222; background: #fff; overflow-wrap: break-word }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
h3 { font-size: 1rem; margin-bottom: .3rem }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .87rem; margin: .5rem 0 }
th, td { border: 1px solid #ccc; padding: .15rem .5rem; text-align: left; vertical-align: top }
th { background: #f2f2f2 } td { font-variant-numeric: tabular-nums }
.error, .warning, .note { border-left: .35rem solid; padding: .3rem .7rem; margin: .4rem 0 }
.error { border-color: #c0272d; background: #fbe9e9 }
.warning { border-color: #d98e04; background: #fdf3dd }
.note { border-color: #7a8ba3; background: #eff2f6 }
.files td:last-child { font: .75rem monospace; overflow-wrap: anywhere }
@media print { body { font-size: 10pt; max-width: none } .wide { overflow: visible }
  table { font-size: 7.5pt } th, td { padding: .1rem .25rem } tr, img { break-inside: avoid }
  .error, .warning, .note { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def heading(level: int, text: str) -> str:
    """Return a heading, 1 being that of the page."""
    return f'<h{level}>{html.escape(text)}</h{level}>'


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f'<p>{html.escape(text)}</p>'


def remark(level: str, about: str, text: str) -> str:
    """Return a marked sentence of a level: error, warning or note."""
    return (f'<div class="{level}"><b>{level}: {html.escape(about)}</b>: '
            f'{html.escape(text)}</div>')


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = '') -> str:
    """Return a table of plain text; of the kind 'files' the last column is small.

    Args:
        head: What stands above the columns; of empty texts alone there is no head.
        rows: The cells of each.
        kind: A class of the style.
    """
    lines = ''.join(f'<tr>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>\n'
                    for row in rows)
    heads = ''.join(f'<th>{html.escape(cell)}</th>' for cell in head) if any(head) else ''
    return (f'<div class="wide {kind}"><table>{f"<tr>{heads}</tr>" if heads else ""}\n{lines}'
            '</table></div>')


def picture(content: bytes, description: str, kind: str = 'png') -> str:
    """Return a picture, the content of a file of a kind: png or jpeg."""
    encoded = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/{kind};base64,{encoded}">'


def write(target: Path, title: str, parts: Iterable[str], numbers: dict[str, Any]) -> None:
    """Write a page, and its numbers beside it as JSON.

    Neither gets its name before both are on the disk; still, two renames are not one.

    Args:
        target: The page; the numbers' file has the same name with .json.
        title: Of the page.
        parts: What stands in it, below the title, as the functions above return it.
        numbers: Strict JSON's plain data.

    Raises:
        OSError: They cannot be written.
    """
    content = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
               '<meta name="viewport" content="width=device-width, initial-scale=1">'
               f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n'
               + '\n'.join([heading(1, title), *parts]) + '\n</body></html>\n')
    write_all({
        # Names of files may hold what is no text.
        target: content.encode('utf-8', 'replace'),
        target.with_suffix('.json'): json.dumps(numbers, indent=1, allow_nan=False).encode()})


def plain(data: Any) -> Any:
    """Return data as JSON holds it, None for numbers that are not finite."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, np.ndarray)):
        return [plain(value) for value in data]
    if isinstance(data, (float, np.floating)):
        return float(data) if math.isfinite(data) else None
    return data.item() if isinstance(data, np.generic) else data
