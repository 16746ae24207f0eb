"""A film is there when it is whole, and shows the pictures that it was given."""

import io
import os
import sys

from idql_ros.film import Film, FilmError, jpeg_encoder
import numpy as np
import pytest

Image = pytest.importorskip('PIL.Image', reason='pillow is not installed')
av = pytest.importorskip('av', reason='av is not installed')


def picture(step, height=48, width=64):
    """Return a picture of a square that moves to the right over a plain ground."""
    made = np.full((height, width, 3), (40, 60, 80), np.uint8)
    made[10:20, 3 * step:3 * step + 10] = (250, 120, 10)
    return made


def read(path):
    """Return the pictures of a film (T, height, width, 3), and how many seconds it takes."""
    if path.suffix == '.gif':
        with Image.open(path) as film:
            pictures, seconds = [], 0.0
            for number in range(film.n_frames):
                film.seek(number)
                pictures.append(np.asarray(film.convert('RGB')))
                seconds += film.info['duration'] / 1000.0
            return np.array(pictures), seconds
    with av.open(path) as film:
        pictures = np.array([
            frame.to_ndarray(format='rgb24') for frame in film.decode(video=0)])
        return pictures, len(pictures) / float(film.streams.video[0].average_rate)


@pytest.mark.parametrize('ending', ['mp4', 'gif', 'GIF'])
def test_a_film_shows_its_pictures_in_their_time(tmp_path, ending):
    path = tmp_path / f'film.{ending}'
    film = Film(path, 20.0, 64, 48)
    for step in range(10):
        film.add(picture(step))
    assert not path.exists()
    film.finish()
    assert list(tmp_path.iterdir()) == [path]
    path = path.rename(path.with_suffix(path.suffix.lower()))
    pictures, seconds = read(path)
    # The last picture of a GIF stands for a second before it begins again.
    assert seconds == pytest.approx(0.5 if path.suffix == '.mp4' else 1.5)
    assert pictures.shape == (10, 48, 64, 3)
    for step, found in enumerate(pictures):  # H.264 keeps half as many colours as brightnesses
        assert np.mean(np.abs(found.astype(float) - picture(step))) < 6.0


def test_a_film_that_is_not_whole_leaves_the_one_before(tmp_path):
    path = tmp_path / 'film.gif'
    path.write_bytes(b'the one before')
    film = Film(path, 10.0, 64, 48)
    film.add(picture(0))
    film.discard()
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b'the one before'


@pytest.mark.parametrize('rate', [0.3, 7.5, 15.0, 30.0, 50.0])
def test_a_gif_loses_no_time_where_its_hundredths_of_a_second_do_not_divide_evenly(
        tmp_path, rate):
    film = Film(tmp_path / 'film.gif', rate, 64, 48)
    for step in range(18):
        film.add(picture(step))
    film.finish()
    pictures, seconds = read(tmp_path / 'film.gif')
    assert len(pictures) == 18 and seconds == pytest.approx(1.0 + 18 / rate, abs=0.006)


@pytest.mark.parametrize(('name', 'rate'), [
    ('film.gif', 0.001), ('film.gif', 50.1), ('film.mp4', 1e-4), ('film.mp4', 1001.0)])
def test_a_rate_that_a_film_cannot_have_is_refused(tmp_path, name, rate):
    with pytest.raises(FilmError, match=rf'expected 0\.1 to \d+ pictures .* found {rate:g}$'):
        Film(tmp_path / name, rate, 64, 48)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_in_which_nothing_moves_for_longer_than_it_can_say_is_a_film_error(tmp_path):
    film = Film(tmp_path / 'film.gif', 0.1, 64, 48)
    for _ in range(70):
        film.add(picture(0))
    with pytest.raises(FilmError, match=r'film\.gif: expected that it can be written, found'):
        film.finish()
    film.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('ending', ['mp4', 'gif'])
def test_a_full_disk_is_told_at_the_end_and_leaves_nothing(tmp_path, ending):
    resource = pytest.importorskip('resource', reason='no limits on files here')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    film = Film(tmp_path / f'film.{ending}', 20.0, 256, 256)
    noise = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        for _ in range(80):
            film.add(noise.integers(0, 256, (256, 256, 3), np.uint8))
        with pytest.raises(FilmError, match=rf'film\.{ending}: expected .* found .*too large'):
            film.finish()
        film.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_two_films_of_one_name_do_not_disturb_each_other(tmp_path):
    films = [Film(tmp_path / 'film.gif', 20.0, 64, 48) for _ in range(2)]
    for number, film in enumerate(films):
        for step in range(4):
            film.add(picture(step + 5 * number))
    films[0].finish()
    assert np.array_equal(read(tmp_path / 'film.gif')[0][0], picture(0))
    films[1].finish()
    assert np.array_equal(read(tmp_path / 'film.gif')[0][0], picture(5))
    assert os.listdir(tmp_path) == ['film.gif']


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / 'film.gif').mkdir()
    with pytest.raises(FilmError, match='expected the name of a file, found a folder'):
        Film(tmp_path / 'film.gif', 10.0, 64, 48)
    assert os.listdir(tmp_path) == ['film.gif']


@pytest.mark.parametrize('name', ['film.avi', 'film'])
def test_another_kind_of_film_is_refused(tmp_path, name):
    with pytest.raises(FilmError, match=r'ends in \.mp4 or \.gif, found'):
        Film(tmp_path / name, 10.0, 64, 48)


def test_a_film_in_no_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Film(tmp_path / 'missing' / 'film.mp4', 10.0, 64, 48)


@pytest.mark.parametrize(('ending', 'package'), [('mp4', 'av'), ('gif', 'PIL')])
def test_a_package_that_is_missing_is_told_with_what_to_install(
        tmp_path, monkeypatch, ending, package):
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(FilmError, match='pip install pillow av'):
        Film(tmp_path / f'film.{ending}', 10.0, 64, 48)
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_there_is_no_jpeg_and_it_is_said_before_the_first(monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    with pytest.raises(FilmError, match='compressed images: expected pillow and av: pip install'):
        jpeg_encoder()


def test_a_jpeg_shows_its_picture():
    found = np.asarray(Image.open(io.BytesIO(jpeg_encoder()(picture(3)))))
    assert np.mean(np.abs(found.astype(float) - picture(3))) < 6.0
