"""Pictures in the forms that others read: films (.mp4, .gif) and JPEG.

Pillow and PyAV are imported when they are first needed.
"""

from __future__ import annotations

import fractions
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

_JPEG_QUALITY = 85
# How much longer the last picture of a .gif stands, before it begins again.
_GIF_END_MS = 1000.0


class FilmError(ValueError):
    """A film that cannot be made; says what was expected and found."""


class Film:
    """A film that is written under another name, and gets its own when it is whole."""

    def __init__(self, path: str | Path, rate: float, width: int, height: int) -> None:
        """Begin it.

        Args:
            path: ends in .mp4 (H.264) or .gif (repeated for ever). A file that is there stays
                until the film is whole.
            rate: pictures a second; a .gif counts in hundredths of a second.
            width: of a picture, in pixels; even for an .mp4.
            height: of a picture, in pixels; even for an .mp4.

        Raises:
            FilmError: another ending, or a package is missing.
            OSError: it cannot be written there.
        """
        self._path = Path(path)
        kinds = {'.mp4': _Mp4, '.gif': _Gif}
        kind = kinds.get(self._path.suffix.lower())
        if kind is None:
            raise FilmError(
                f'film {path}: expected a name that ends in {" or ".join(kinds)}, found '
                f'{self._path.suffix or "no ending"}')
        self._unfinished = self._path.with_name(f'.{self._path.name}.unfinished')
        self._file = self._unfinished.open('wb')
        try:
            self._pictures = kind(self._file, rate, width, height)
        except ImportError as error:
            self.discard()
            raise FilmError(
                f'film {path}: expected pillow and av: pip install pillow av; found: {error}',
            ) from error

    def add(self, picture: np.ndarray) -> None:
        """Add a picture (height, width, 3) uint8."""
        self._pictures.add(picture)

    def finish(self) -> None:
        """Write what is left, and give the film its name.

        Raises:
            OSError: it cannot be written.
        """
        self._pictures.finish()
        self._file.close()
        os.replace(self._unfinished, self._path)

    def discard(self) -> None:
        """Leave nothing of a film that is not whole."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


class _Mp4:
    """H.264 in the colours that every player takes."""

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

    def __init__(self, file: Any, rate: float, width: int, height: int) -> None:
        from PIL import Image
        self._new_image = Image.fromarray
        self._file, self._milliseconds = file, 1000.0 / rate
        self._images: list[Any] = []

    def add(self, picture: np.ndarray) -> None:
        self._images.append(self._new_image(picture).quantize(256, dither=0))

    def finish(self) -> None:
        first, *rest = self._images
        durations = [self._milliseconds] * len(self._images)
        durations[-1] += _GIF_END_MS
        first.save(self._file, 'GIF', save_all=True, append_images=rest, loop=0,
                   duration=durations)


def jpeg(picture: np.ndarray) -> bytes:
    """Return a picture (height, width, 3) uint8 as a JPEG file."""
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=_JPEG_QUALITY)
    return file.getvalue()
