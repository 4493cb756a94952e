"""Lossless tiles: bit-exact, chosen where they serve, and as safe to read as everything else."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastcodec
from fastcodec import container, graphics, lossless
from fastcodec.constants import TILE_LATENTS
from fastcodec.container import Header, TileData
from fastcodec.errors import CorruptStreamError, ModelMismatchError, UnsupportedVersionError
from fastcodec.geometry import SYNTHESIS_HALO, Grid, Rect
from fastcodec.images import Picture

SIDE = 16 * TILE_LATENTS


def drawing(height: int, width: int) -> np.ndarray:
    """Flat colours and sharp edges."""
    pixels = np.full((height, width, 3), (240, 240, 250), np.uint8)
    pixels[::9] = (0, 0, 160)
    pixels[height // 3 :, width // 2 :] = (255, 0, 0)
    return pixels


@pytest.fixture(scope="module")
def mixed(codec, photographs) -> tuple[bytes, np.ndarray]:
    """A photograph, a drawing beside it, and a photograph again: three tiles."""
    photo = np.tile(photographs["coffee"][100:200], (1, 4, 1))
    picture = np.concatenate([photo[:, :SIDE], drawing(100, SIDE), photo[:, 300 : 300 + SIDE]], axis=1)
    data = codec.encode(picture, quality=50)
    assert container.read(data).lossless == (False, True, False)
    return data, picture


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


# ---- the payload


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (33, 65), (1264, 40)])
@pytest.mark.parametrize("gray", [False, True])
def test_a_payload_comes_back(height, width, gray):
    shape = (height, width) if gray else (height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    decoded = lossless.decode(lossless.encode(pixels), height, width)
    assert np.array_equal(decoded, np.repeat(pixels[..., None], 3, axis=2) if gray else pixels)


def test_a_payload_holds_no_size_of_its_own():
    payload = lossless.encode(drawing(20, 30))
    for height, width in ((30, 20), (1, 1), (20, 31)):
        try:
            decoded = lossless.decode(payload, height, width)
        except CorruptStreamError:
            continue
        assert decoded.shape == (height, width, 3)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another format", "alpha"])
def test_damaged_payloads_are_typed_errors(damage):
    payload = lossless.encode(drawing(64, 64))
    data = {
        "empty": b"",
        "cut": payload[: len(payload) // 2],
        "noise": np.random.default_rng(1).bytes(400),
        "another format": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "alpha": b"",
    }[damage]
    with pytest.raises(CorruptStreamError, match="lossless pixels"):
        lossless.decode(data, 64, 64)


def test_mutations_decode_to_the_size_asked_for_or_raise():
    payload, random = lossless.encode(drawing(40, 50)), np.random.default_rng(3)
    refused = 0
    for _ in range(2000):
        data = bytearray(payload)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        try:
            assert lossless.decode(bytes(data), 40, 50).shape == (40, 50, 3)
        except CorruptStreamError:
            refused += 1
    assert 0 < refused < 2000


# ---- files


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_lossless_files_are_bit_exact(codec, photographs, mode):
    photo = photographs["chelsea"][:90, :131]
    pixels = photo[..., 1].copy() if mode[0] == "L" else photo.copy()
    alpha = photo[..., 0].copy() if mode.endswith("A") else None
    encoded = codec.encode(Picture(pixels, alpha, b"profile", b"II*\0" + bytes(9)), lossless=True)
    info = fastcodec.info(encoded)
    assert (info.mode, info.version, info.quality, info.lossless_tiles, info.tiles) == (mode, 2, 100, 1, 1)
    decoded = codec.decode(encoded, out="picture")
    assert np.array_equal(decoded.pixels, pixels)
    assert alpha is None or np.array_equal(decoded.alpha, alpha)
    assert (decoded.icc, decoded.exif) == (b"profile", b"II*\0" + bytes(9))
    codec.verify(encoded)
    assert encoded.estimated_bits == 8 * len(container.read(encoded).tile(0).payload)


def test_lossless_tiles_need_no_model(codec):
    data = codec.encode(drawing(40, 1500), lossless=True)
    stranger = container.write(
        dataclasses.replace(container.read(data).header, identity=b"nobody"),
        [container.read(data).tile(i) for i in range(2)],
    )
    assert np.array_equal(codec.decode(stranger, out="numpy"), drawing(40, 1500))
    codec.verify(stranger)
    with pytest.raises(ModelMismatchError):
        codec.latents(stranger)


def test_files_without_lossless_tiles_stay_version_1(codec, photographs):
    data = codec.encode(photographs["coffee"][:96, :96], quality=40)
    assert (data[4], fastcodec.info(data).lossless_tiles) == (1, 0)


def test_an_older_reader_refuses_lossless_tiles_by_the_version(codec, monkeypatch):
    data = codec.encode(drawing(40, 40), lossless=True)
    monkeypatch.setattr(container, "VERSION", 1)
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        codec.decode(data)


def test_version_1_knows_no_lossless_flag(codec):
    data = bytearray(codec.encode(drawing(40, 40), lossless=True))
    data[4] = 1
    with pytest.raises(CorruptStreamError):
        container.read(data)


def test_a_lossless_payload_that_lies_is_refused_by_its_tile(codec, mixed):
    file = container.read(mixed[0])
    tiles = [file.tile(i) for i in range(3)]
    for payload in (b"", bytes(file.tile(1).payload)[:20], file.tile(0).payload):
        forged = container.write(file.header, [tiles[0], TileData(payload, lossless=True), tiles[2]])
        for read in (codec.decode, codec.verify, lambda data: codec.decode_tensor([data]).check()):
            with pytest.raises(CorruptStreamError, match="tile 1 is damaged") as caught:
                read(forged)
            assert caught.value.tile == 1
        if payload:
            codec.decode(forged, region=(0, 0, 900, 100))  # which does not meet the tile
    swapped = container.write(file.header, [TileData(tiles[1].payload), tiles[1], tiles[2]])
    with pytest.raises(CorruptStreamError, match="tile 0"):
        codec.verify(swapped)


def test_a_forged_size_fails_at_its_first_lossless_tile(codec):
    header = Header(1 << 14, 1 << 14, 50, codec.model.identity)
    data = container.write(header, [TileData(b"", lossless=True)] * header.grid.tile_count)
    with pytest.raises(CorruptStreamError, match="tile 0 is damaged"):
        codec.decode(data)


# ---- mixed files


def test_lossless_tiles_are_exact_and_their_neighbours_as_good_as_ever(codec, mixed, monkeypatch):
    data, picture = mixed
    decoded = codec.decode(data, out="numpy")
    assert np.array_equal(decoded[:, SIDE : 2 * SIDE], picture[:, SIDE : 2 * SIDE])
    monkeypatch.setattr(lossless, "worth_trying", lambda *_: False)
    networks = codec.decode(codec.encode(picture, quality=50), out="numpy")
    for begin, end in ((0, SIDE), (2 * SIDE, 3 * SIDE)):
        part = picture[:, begin:end]
        assert psnr(decoded[:, begin:end], part) > psnr(networks[:, begin:end], part) - 0.6


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_regions_of_mixed_files_are_the_crop(codec, mixed, precision):
    data, _ = mixed
    whole = codec.decode(data, out="numpy", precision=precision).astype(int)
    for x, width in ((0, 3 * SIDE), (SIDE - 20, 60), (SIDE + 8, 100), (SIDE - 60, 50), (2 * SIDE - 9, 300), (2900, 70)):
        part = codec.decode(data, out="numpy", region=(x, 10, width, 70), precision=precision)
        assert np.abs(part - whole[10:80, x : x + width]).max() <= 1


def test_batches_and_tensors_of_mixed_files(codec, mixed, photographs):
    data, picture = mixed
    others = [codec.encode(picture, lossless=True), codec.encode(np.ascontiguousarray(picture[:, ::-1]), quality=50)]
    files = [data, *others, data]
    expected = [codec.decode(file, out="numpy").astype(int) for file in files]
    for found, wanted in zip(codec.decode_batch(files, out="numpy"), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1
    decoded = codec.decode_tensor(files)
    decoded.check()
    for found, wanted in zip(decoded.pixels.permute(0, 2, 3, 1).numpy(), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1
    region = (SIDE - 30, 5, 70, 60)
    decoded = codec.decode_tensor(files, region=region)
    assert np.abs(decoded.pixels[0].permute(1, 2, 0).numpy() - expected[0][5:65, SIDE - 30 : SIDE + 40]).max() <= 1


def test_extended_latents_by_hand():
    """Three by three tiles of 16 latents, the middle one lossless: each place has the latent that the format says."""
    grid = Grid(48 * 16, 48 * 16, 16)
    rows, columns = np.indices((48, 48))
    given = torch.from_numpy(rows * 100 + columns)[None, :, :, None].float()
    inside = slice(16, 32)

    def extended(lossless_tiles: list[int], box: Rect) -> np.ndarray:
        latents = given.clone()
        for number in lossless_tiles:
            top, left = 16 * (number // 3), 16 * (number % 3)
            latents[:, top : top + 16, left : left + 16] = 0
        latents = latents[:, *box.slices].clone()
        lossless.extend_latents(latents, box, grid, lossless_tiles)
        return latents[0, :, :, 0].numpy()

    whole = Rect(0, 0, 48, 48)
    middle = extended([4], whole)[inside, inside]
    assert (middle[:, :SYNTHESIS_HALO] == (np.arange(16, 32) * 100 + 15)[:, None]).all()
    assert (middle[:, -SYNTHESIS_HALO:] == (np.arange(16, 32) * 100 + 32)[:, None]).all()
    assert (middle[:SYNTHESIS_HALO, 3:-3] == 1500 + np.arange(19, 29)).all()
    assert (middle[-SYNTHESIS_HALO:, 3:-3] == 3200 + np.arange(19, 29)).all()
    assert (middle[3:-3, 3:-3] == 0).all()
    # Only the upper left tile is the networks': one corner, and nothing else.
    corner = extended([1, 2, 3, 4, 5, 6, 7, 8], whole)[inside, inside]
    assert (corner[:3, :3] == 1515).all()
    assert corner.sum() == 9 * 1515
    # A part that shows the neighbours is the part of the whole.
    box = Rect(15, 12, 33, 40)
    assert (extended([4], box) == extended([4], whole)[box.slices]).all()


# ---- the choice


def test_photographs_are_not_tried(photographs):
    tried = [name for name, pixels in photographs.items() if lossless.worth_trying(pixels, len(pixels))]
    assert tried in ([], ["rocket"])  # whose sky is one flat colour


def test_graphics_are_tried_and_exact_at_high_quality(codec):
    pixels = drawing(200, 300)
    assert lossless.worth_trying(pixels, 100)
    data = codec.encode(pixels, quality=80)
    assert fastcodec.info(data).lossless_tiles == 1
    assert np.array_equal(codec.decode(data, out="numpy"), pixels)


def test_a_photograph_that_looks_drawn_is_coded_by_the_networks_at_no_great_cost(codec, photographs, monkeypatch):
    """Not losslessly as a whole, where a sample tells that this is hopeless. Half of this one is one flat colour."""
    smooth = photographs["rocket"]
    assert lossless.worth_trying(smooth, 1000)
    coded, encode = [], lossless.encode
    monkeypatch.setattr(lossless, "encode", lambda pixels: coded.append(pixels.shape[0]) or encode(pixels))
    data = codec.encode(smooth, 30)
    assert coded == [48], "three bands of the tile, and not the tile"
    monkeypatch.setattr(lossless.features, "check", lambda feature: False)
    assert data == codec.encode(smooth, 30)


def test_a_photograph_does_not_grow_tenfold_for_one_block(codec, photographs, monkeypatch):
    smooth = photographs["rocket"]
    promised = lossless.promise(90)
    data = codec.encode(smooth, 90)
    found = lossless.Distortion.between(smooth, codec.decode(data, out="numpy"))
    assert promised.mean > found.mean
    assert promised.worst < found.worst
    assert len(lossless.encode(smooth)) > 8 * len(data)
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (96, 96, 3), dtype=np.uint8)  # which breaks it on average
    assert fastcodec.info(codec.encode(noise, 1)).lossless_tiles == 1
    for limit in ("_MOST_TIMES", "_MOST_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastcodec.lossless.{limit}", 1 << 30)
            assert fastcodec.info(codec.encode(smooth, 90)).lossless_tiles == 1


@pytest.mark.parametrize("kind", graphics.KINDS)
def test_what_is_drawn_is_not_hopeless_at_its_own_cost(kind):
    random = np.random.default_rng((1, *kind.encode()))
    picture = graphics.draw(random, 272, 256, kind=kind, fonts=graphics.PILLOW_FONTS)
    assert not lossless.is_hopeless(picture, 8 * len(lossless.encode(picture)))


def test_a_sample_tells_what_is_hopeless(photographs):
    photograph = photographs["coffee"][:300, :300]
    bits = 8 * len(lossless.encode(photograph))
    assert lossless.is_hopeless(photograph, bits / 8)
    assert not lossless.is_hopeless(photograph, bits / 2)
    assert not lossless.is_hopeless(photograph[:200, :200], bits / 1000), "a small one is coded whole"


def test_the_distortion_is_that_of_the_worst_block():
    pixels = np.zeros((40, 50, 3), np.uint8)
    decoded = pixels.copy()
    decoded[33:40, 48:50] = 10  # in the corner block of 8 x 2 pixels
    found = lossless.Distortion.between(pixels, decoded)
    assert found.mean == pytest.approx(100 * 14 / 2000)
    assert found.worst == pytest.approx(100 * 14 / 16)
    assert lossless.Distortion.between(pixels[..., 0], decoded[..., 0]) == found


def test_the_promise_rises_with_quality():
    promises = [lossless.promise(quality) for quality in range(1, 101)]
    assert all(later.mean <= earlier.mean for earlier, later in pairwise(promises))
    assert 10 * np.log10(255**2 / lossless.promise(90).mean) == pytest.approx(32)
    assert 10 * np.log10(255**2 / lossless.promise(60).worst) == pytest.approx(18)


# ---- neighbours in one image


def test_lossless_neighbours_share_an_image(codec):
    pixels = np.tile(drawing(100, SIDE), (1, 5, 1))
    data = codec.encode(pixels, lossless=True)
    file = container.read(data)
    assert [length > 0 for length, _ in file.lengths] == [True, False, False, False, True]
    alone = [len(lossless.encode(pixels[:, SIDE * n : SIDE * n + SIDE])) for n in range(5)]
    assert len(data) < sum(alone)
    assert np.array_equal(codec.decode(data, out="numpy"), pixels)
    for x in (0, SIDE + 5, 3 * SIDE - 9, 4 * SIDE + 1):
        assert np.array_equal(codec.decode(data, out="numpy", region=(x, 3, 50, 9)), pixels[3:12, x : x + 50])
    codec.verify(data)


def test_rows_do_not_continue_each_other(codec):
    pixels = np.tile(drawing(SIDE, SIDE), (2, 2, 1))
    file = container.read(codec.encode(pixels, lossless=True))
    assert [length > 0 for length, _ in file.lengths] == [True, False, True, False]
    first, empty, second, _ = (file.tile(number) for number in range(4))
    for number, tiles in ((0, [empty, first, second, empty]), (2, [first, empty, empty, second])):
        with pytest.raises(CorruptStreamError, match=f"tile {number} .* continues no lossless tile") as caught:
            codec.decode(container.write(file.header, tiles))
        assert caught.value.tile == number


def test_a_run_is_no_wider_than_webp(codec):
    header = Header(16 * SIDE, 20, 100, codec.model.identity)
    payload = lossless.encode(drawing(20, 15 * SIDE))
    tiles = [TileData(payload, lossless=True), *[TileData(b"", lossless=True)] * 14]
    fifteen = container.write(dataclasses.replace(header, width=15 * SIDE), tiles)
    assert np.array_equal(codec.decode(fifteen, out="numpy"), drawing(20, 15 * SIDE))
    with pytest.raises(CorruptStreamError, match="tile 15"):
        codec.decode(container.write(header, [*tiles, TileData(b"", lossless=True)]))
