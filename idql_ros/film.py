"""Pictures in the forms that others read: films (.mp4, .gif) and JPEG.

Pillow and PyAV are imported when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import fractions
import io
import os
from pathlib import Path
import secrets
from typing import Any

import numpy as np

_JPEG_QUALITY = 85
# How much longer the last picture of a .gif stands, before it begins again.
_GIF_END_MS = 1000
# Pictures a second of a film, at least: a .gif can hold none for longer than 655 s.
_SLOWEST = 0.1


class FilmError(ValueError):
    """A film or a JPEG that cannot be made; says what was expected and found."""


class Film:
    """A film that is written under another name, and gets its own when it is whole."""

    def __init__(self, path: str | Path, rate: float, width: int, height: int) -> None:
        """Begin it.

        Args:
            path: ends in .mp4 (H.264) or .gif (repeated for ever). A file that is there stays
                until the film is whole.
            rate: pictures a second, 0.1 to 50 for a .gif, which counts in hundredths of a second
                and of which browsers show no more, to 1000 for an .mp4.
            width: of a picture, in pixels; even for an .mp4.
            height: of a picture, in pixels; even for an .mp4.

        Raises:
            FilmError: another ending or rate, a folder, or a package is missing.
            OSError: it cannot be written there.
        """
        self._path = Path(path)
        self._error: Exception | None = None
        kinds = {'.mp4': _Mp4, '.gif': _Gif}
        kind = kinds.get(self._path.suffix.lower())
        if kind is None:
            raise FilmError(
                f'film {path}: expected a name that ends in {" or ".join(kinds)}, found '
                f'{self._path.suffix or "no ending"}')
        if not _SLOWEST <= rate <= kind.fastest:
            raise FilmError(
                f'film {path}: expected {_SLOWEST:g} to {kind.fastest:g} pictures in a second of '
                f'the film, found {rate:g}')
        if self._path.is_dir():
            raise FilmError(f'film {path}: expected the name of a file, found a folder')
        # Another process may make a film of the same name.
        self._unfinished = self._path.with_name(
            f'.{self._path.name}.{secrets.token_hex(4)}.unfinished')
        self._file = self._unfinished.open('xb')
        try:
            self._pictures = kind(self._file, rate, width, height)
        except ImportError as error:
            self.discard()
            raise FilmError(_missing(f'film {path}', error)) from error

    def add(self, picture: np.ndarray) -> None:
        """Add a picture (height, width, 3) uint8; where that fails, `finish` says so."""
        if self._error is None:
            try:
                self._pictures.add(picture)
            except Exception as error:  # of the disk or the encoder: what is filmed goes on
                self._error = error

    def finish(self) -> None:
        """Write what is left, and give the film its name.

        Raises:
            FilmError: it could not be written.
        """
        try:
            if self._error is not None:
                raise self._error
            self._pictures.finish()
            self._file.close()
            os.replace(self._unfinished, self._path)
        except Exception as error:  # of the disk or the encoder
            raise FilmError(
                f'film {self._path}: expected that it can be written, found '
                f'{type(error).__name__}: {error}') from error

    def discard(self) -> None:
        """Leave nothing of a film that is not whole."""
        with contextlib.suppress(OSError):  # what was not yet written does not fit on the disk
            self._file.close()
        self._unfinished.unlink(missing_ok=True)


class _Mp4:
    """H.264 in the colours that every player takes."""

    fastest = 1000.0

    def __init__(self, file: Any, rate: float, width: int, height: int) -> None:
        import av
        self._new_frame = av.VideoFrame.from_ndarray
        self._container = av.open(file, 'w', format='mp4')
        self._stream = self._container.add_stream(
            'libx264', rate=fractions.Fraction(rate).limit_denominator(1000))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = 'yuv420p'
        self._stream.thread_count = 1  # the policy runs beside it

    def add(self, picture: np.ndarray) -> None:
        self._container.mux(self._stream.encode(self._new_frame(picture, 'rgb24')))

    def finish(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class _Gif:
    """256 colours for each picture; what stays as it was is written once."""

    fastest = 50.0

    def __init__(self, file: Any, rate: float, width: int, height: int) -> None:
        from PIL import Image
        self._new_image = Image.fromarray
        self._file, self._rate = file, rate
        self._images: list[Any] = []

    def add(self, picture: np.ndarray) -> None:
        self._images.append(self._new_image(picture).quantize(256, dither=0))

    def finish(self) -> None:
        first, *rest = self._images
        # Each begins at the hundredth of a second that is nearest, so that no time is lost.
        begins = np.round(np.arange(len(self._images) + 1) * 100.0 / self._rate)
        durations = (10 * np.diff(begins)).astype(int).tolist()
        durations[-1] += _GIF_END_MS
        first.save(self._file, 'GIF', save_all=True, append_images=rest, loop=0,
                   duration=durations)


def jpeg_encoder() -> Callable[[np.ndarray], bytes]:
    """Return what makes a JPEG file of a picture (height, width, 3) uint8.

    Raises:
        FilmError: a package is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise FilmError(_missing('compressed images', error)) from error

    def jpeg(picture: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, 'JPEG', quality=_JPEG_QUALITY)
        return file.getvalue()

    return jpeg


def _missing(what: str, error: ImportError) -> str:
    return f'{what}: expected pillow and av: pip install pillow av; found: {error}'
