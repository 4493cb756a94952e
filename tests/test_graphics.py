"""The pictures drawn from a seed: sizes, equal seeds, the photograph below, and what sets the kinds apart."""

import sys

import hard_pictures
import numpy as np
import pytest
import skimage.data
from PIL import ImageFont

from fastcodec import graphics
from fastcodec.graphics import scene

OVER_PHOTOGRAPHS = (
    "captioned_photograph",
    "windows_over_photograph",
    "drawing_over_photograph",
    "noisy_photograph",
    "interface_over_photograph",
    "mosaic",
)


def drawn(kind, seed=0, height=160, width=192, **options):
    options.setdefault("fonts", graphics.PILLOW_FONTS)
    return graphics.draw(np.random.default_rng(seed), height, width, kind=kind, **options)


def repeated(picture):
    """The share of pixels that equal their left neighbour exactly."""
    return (picture[:, 1:] == picture[:, :-1]).all(2).mean()


def colours(picture):
    return len(np.unique(picture.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("kind", graphics.KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (65, 33), (512, 512)])
def test_every_kind_draws_every_size(kind, size):
    picture = drawn(kind, 3, *size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    photograph = skimage.data.astronaut()[: size[0], : size[1]]
    before = photograph.copy()
    assert drawn(kind, 4, *size, photograph=photograph).shape == (*size, 3)
    np.testing.assert_array_equal(photograph, before)


@pytest.mark.parametrize("kind", graphics.KINDS)
def test_no_seed_fails(kind):
    photograph = skimage.data.astronaut()
    for seed in range(12):
        over = photograph if seed % 2 else None
        drawn(kind, seed, 64 + 40 * seed, 500 - 36 * seed, photograph=over, fonts=None)


@pytest.mark.parametrize("kind", [*graphics.KINDS, None])
def test_equal_seeds_give_equal_pictures_and_others_do_not(kind):
    photograph = skimage.data.astronaut()
    first = [drawn(kind, seed, photograph=photograph) for seed in range(4)]
    again = [drawn(kind, seed, photograph=photograph) for seed in range(4)]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for i in range(4):
        for j in range(i):
            assert (first[i] != first[j]).any()


def test_a_random_kind_is_any_of_them():
    random = np.random.default_rng(5)
    pictures = [graphics.draw(random, 48, 48, fonts=graphics.PILLOW_FONTS) for _ in range(60)]
    assert sum(repeated(p) > 0.9 for p in pictures) > 5
    assert sum(repeated(p) < 0.2 for p in pictures) > 3
    assert len({p.tobytes() for p in pictures}) == 60


@pytest.mark.parametrize("kind", OVER_PHOTOGRAPHS)
def test_a_photograph_shows_through(kind):
    photograph = skimage.data.astronaut()[:160, :192]
    difference, share = [], []
    for seed in range(8):
        picture = drawn(kind, seed, photograph=photograph)
        near = np.abs(picture.astype(int) - photograph).max(2) <= 60
        share.append(near.mean())
        difference.append((picture != photograph).any())
    assert np.mean(share) > (0.15 if kind in ("windows_over_photograph", "mosaic") else 0.4)
    assert all(difference)


@pytest.mark.parametrize("kind", ["text", "terminal", "nineties", "chart", "noise", "pattern", "barcode"])
def test_other_kinds_ignore_the_photograph(kind):
    photograph = skimage.data.astronaut()
    np.testing.assert_array_equal(drawn(kind, 1), drawn(kind, 1, photograph=photograph))


@pytest.mark.parametrize(
    "kind", ["text", "terminal", "editor", "nineties", "spreadsheet", "chart", "line_art", "diagram", "flat", "barcode"]
)
def test_screens_have_plain_areas_and_edges(kind):
    shares = [repeated(drawn(kind, seed, 256, 256)) for seed in range(8)]
    assert np.median(shares) > 0.6
    assert min(shares) < 1


def test_noise_has_no_plain_areas():
    pictures = [drawn("noise", seed) for seed in range(24)]
    assert np.median([repeated(p) for p in pictures]) < 0.4
    assert max(np.abs(np.diff(p.astype(int), axis=1)).mean() for p in pictures) > 60


def test_kinds_of_few_colours_have_few():
    for seed in range(8):
        assert colours(drawn("pixel_art", seed)) <= 16
        assert colours(drawn("impulses", seed)) <= 5
        assert colours(drawn("flat", seed)) <= 21
    photograph = skimage.data.astronaut()
    counts = [colours(drawn("dither", seed, photograph=photograph)) for seed in range(8)]
    assert max(counts) <= 512
    assert min(counts) <= 16
    assert colours(photograph[:160, :192]) > 5000


def test_saturated_colours_are_drawn():
    corners = sum(
        np.isin(drawn(kind, seed), (0, 255)).all(2).mean() > 0.2 for kind in graphics.KINDS for seed in (1, 2)
    )
    assert corners > 10


def test_pillows_own_fonts_need_no_file(monkeypatch):
    def only_from_memory(font, *arguments, **options):
        assert not isinstance(font, str)
        return truetype(font, *arguments, **options)

    truetype = ImageFont.truetype
    monkeypatch.setattr(ImageFont, "truetype", only_from_memory)
    scene.load_font.cache_clear()
    for kind in graphics.KINDS:
        drawn(kind, 7)
    bitmap, outline = (
        [drawn("text", seed, fonts=(name,)) for seed in range(12)] for name in ("pillow bitmap", "pillow")
    )
    assert not np.array_equal(bitmap, outline)


def test_matplotlibs_fonts_are_found_without_importing_it(monkeypatch, tmp_path):
    fonts = tmp_path / "matplotlib" / "mpl-data" / "fonts" / "ttf"
    fonts.mkdir(parents=True)
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError")
    for name in ("DejaVuSans.ttf", "cmsy10.ttf", "STIXSizOneSymReg.ttf"):
        (fonts / name).touch()
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    graphics.installed_fonts.cache_clear()
    try:
        assert graphics.installed_fonts() == (*graphics.PILLOW_FONTS, str(fonts / "DejaVuSans.ttf"))
    finally:
        graphics.installed_fonts.cache_clear()


def test_wrong_arguments_are_refused():
    small = np.zeros((50, 200, 3), np.uint8)
    for options in ({"kind": "photograph"}, {"height": 0}, {"fonts": ()}, {"photograph": small}):
        with pytest.raises(ValueError):
            drawn(**{"kind": "text"} | options)
    with pytest.raises(ValueError, match="uint8"):
        drawn("text", photograph=np.zeros((512, 512, 3), np.float32))


def test_the_suite_of_hard_pictures():
    suite, screenshots = hard_pictures.suite(), hard_pictures.screenshots()
    assert set(graphics.KINDS) <= set(suite)
    assert sum(p.shape[0] * p.shape[1] for p in suite.values()) < 8e6
    for picture in (*suite.values(), *screenshots.values()):
        assert picture.dtype == np.uint8
        assert picture.ndim == 2 or picture.shape[2:] == (3,)
        assert not picture.flags.writeable
    assert len({(p.shape, p.tobytes()) for p in suite.values()}) == len(suite)
    assert all(repeated(p) > 0.5 for p in screenshots.values())
