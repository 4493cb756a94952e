"""docs/format.md is enough to read a file by, and fastcodec reads what it says.

`numpy_decoder` was written from the document alone. Here it reads fastcodec's files, and fastcodec reads files that an
encoder of section 5.5, below, makes: with any number of lanes and streams, with extreme values and needless escapes.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_releases import write_grouped
from numpy_decoder import (
    FLAG_ALPHA,
    MAGIC,
    PROBABILITY_TOTAL,
    STATE_LOW,
    FormatError,
    Model,
    Payload,
    Reader,
    TableSet,
    ceil_div,
    decode_latents,
    inflate,
    load_model,
    read_container,
    tile_edges,
    webp_of,
)
from PIL import Image

import fastcodec
from fastcodec import container as fic
from fastcodec import lossless
from fastcodec.images import Picture
from fastcodec.models.swift import release as released

PACKAGE = Path(__file__).resolve().parents[1] / "fastcodec"
WEIGHTS = PACKAGE / "models" / "weights"
GAUSSIAN = PACKAGE / "entropy" / "gaussian64.bin"

Pass = tuple[TableSet, np.ndarray, np.ndarray]  # table set, indexes, symbols

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]) -> Model:
    """The model that fastcodec encodes with, as the second reader loads it."""
    blob = codec.encode(photographs["coffee"][:32, :32])
    return load_model(read_container(blob)[0]["identity"], WEIGHTS, GAUSSIAN)


def assert_same(codec: fastcodec.Codec, blob: bytes) -> tuple[dict[str, Any], np.ndarray]:
    header, latents = decode_latents(blob, WEIGHTS, GAUSSIAN)
    theirs = codec.latents(blob).cpu().numpy()
    assert theirs.dtype == latents.dtype == np.int32
    assert theirs.shape == latents.shape
    assert np.array_equal(theirs, latents)
    return header, latents


def first_payload(blob: bytes) -> Payload:
    return Payload(read_container(blob)[1][0].payload)


# Files of fastcodec's own encoder


@pytest.mark.parametrize("preset", ["size", "latency"])
@pytest.mark.parametrize(
    "name, height, width, quality",
    [
        ("coffee", 1, 1, 60),
        ("rocket", 1, 200, 60),
        ("astronaut", 40, 56, 60),
        ("chelsea", 100, 100, 1),
        ("chelsea", 100, 100, 35),
        ("chelsea", 100, 100, 100),
        ("coffee", 17, 33, 80),
        ("astronaut", 129, 65, 60),
    ],
)
def test_photographs(
    codec: fastcodec.Codec,
    photographs: dict[str, np.ndarray],
    *,
    name: str,
    height: int,
    width: int,
    quality: int,
    preset: str,
):
    image = photographs[name][100 : 100 + height, 150 : 150 + width]
    header, latents = assert_same(codec, codec.encode(image, quality=quality, preset=preset))
    assert (header["height"], header["width"], header["quality"]) == (height, width, quality)
    assert (header["gray"], header["alpha"]) == (False, False)
    assert latents.shape[:2] == (-(-height // 16), -(-width // 16))


@pytest.mark.usefixtures("network_tiles")
@pytest.mark.parametrize("sizes", [(64, 192), (32, 96, 128)])
def test_groups_of_channels(
    photographs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
):
    path = write_grouped(sizes, tmp_path, photographs["astronaut"])
    codec = fastcodec.Codec(released.read_model(path))
    for height, width, quality in ((1, 1, 60), (1, 40, 90), (50, 70, 80)):
        blob = codec.encode(photographs["chelsea"][100 : 100 + height, 150 : 150 + width], quality=quality)
        _, latents = decode_latents(blob, tmp_path, GAUSSIAN)
        assert np.array_equal(codec.latents(blob).numpy(), latents)
        assert np.abs(latents).max() > 16


@pytest.mark.parametrize("upright", [False, True])
def test_two_tiles(codec: fastcodec.Codec, photographs: dict[str, np.ndarray], upright: bool):
    strip = np.concatenate([photographs[name][200:264] for name in ("rocket", "chelsea", "astronaut")], axis=1)
    strip = strip[:, :1300]
    blob = codec.encode(strip.transpose(1, 0, 2).copy() if upright else strip, preset="latency")
    assert len(read_container(blob)[1]) == 2
    assert_same(codec, blob)


def test_lossless_tiles(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    """Nine tiles, of which some are lossless: the latents that the synthesis sees, and the lossless tiles' pixels."""
    stripes = np.zeros((2304, 2304, 3), np.uint8)
    stripes[::3, 5:] = (255, 0, 0)
    picture = stripes.copy()
    photograph = np.tile(photographs["chelsea"][:256, :256], (9, 9, 1))
    for row, column in ((0, 0), (0, 2), (1, 1), (2, 0)):  # network tiles, so that every rule of section 7.1 is met
        area = (slice(1024 * row, 1024 * row + 1024), slice(1024 * column, 1024 * column + 1024))
        picture[area] = photograph[area]
    blob = codec.encode(picture, quality=5)
    tiles = read_container(blob)[1]
    assert [tile.lossless for tile in tiles] == [False, True, False, True, False, True, False, True, True]
    assert_same(codec, blob)
    decoded = codec.decode(blob, out="numpy")
    assert tiles[8].payload == b""
    for number, width in ((1, 1024), (7, 1280)):  # tile 8 continues tile 7
        top, left = 1024 * (number // 3), 1024 * (number % 3)
        part = picture[top : top + 1024, left : left + width]
        with Image.open(io.BytesIO(webp_of(tiles[number], *part.shape[:2]))) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), part)
        assert np.array_equal(decoded[top : top + 1024, left : left + width], part)


def test_lanes_streams_and_escapes(codec: fastcodec.Codec):
    """Noise at the best quality has much to code: enough for the preset "latency" to use what the format offers."""
    noise = np.random.default_rng(0).integers(0, 2, (128, 128, 3), dtype=np.uint8) * 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lossless, "worth_trying", lambda *_: False)
        blob = codec.encode(noise, quality=100, preset="latency")
    payload = first_payload(blob)
    assert payload.lanes > 1
    assert payload.streams > 1
    assert sum(payload.escape_counts) > 0
    assert_same(codec, blob)


def test_grayscale(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    header, _ = assert_same(codec, codec.encode(photographs["chelsea"][80:140, 100:177, 1]))
    assert header["gray"]


def test_alpha_is_a_png_of_each_tile(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    """7.4, whose PNG Pillow reads; a part that is 255 throughout takes no bytes."""
    rgba = np.concatenate([np.tile(photographs["rocket"][:40, :600], (1, 3, 1)), np.full((40, 1800, 1), 255)], axis=2)
    rgba = rgba.astype(np.uint8)
    rgba[3:9, 1500:1600, 3] = 77
    blob = codec.encode(rgba)
    assert blob[5] & FLAG_ALPHA
    header, _ = assert_same(codec, blob)
    assert header["alpha"]
    opaque, other = (tile.alpha for tile in read_container(blob)[1])
    assert opaque == b""
    with Image.open(io.BytesIO(other)) as png:
        assert (png.format, png.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(png), rgba[:, 1024:, 3])


def test_exif(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    file = io.BytesIO()
    Image.fromarray(photographs["coffee"][:30, :50]).save(file, "PNG", exif=exif)
    header, _ = assert_same(codec, codec.encode(Image.open(file)))
    assert header["exif"][:4] in (b"II*\0", b"MM\0*")
    assert b"a description" in header["exif"]


def test_xmp_and_resolution(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    picture = Picture(photographs["coffee"][:30, :50].copy(), icc=b"profile", exif=b"II*\0" + bytes(9), xmp=b"<x/>" * 9)
    header, _ = assert_same(codec, codec.encode(picture))
    assert (header["version"], header["icc"], header["exif"], header["xmp"]) == (
        3,
        picture.icc,
        picture.exif,
        picture.xmp,
    )
    image = Image.fromarray(photographs["coffee"][:30, :50])
    image.info["dpi"] = (300, 150)
    header, _ = assert_same(codec, codec.encode(image))
    assert (header["version"], header["xmp"]) == (1, None)
    exif = Image.Exif()
    exif.load(header["exif"])
    assert dict(exif) == {0x011A: 300, 0x011B: 150, 0x0128: 2}


def test_lists_of_metadata_that_the_document_forbids(codec: fastcodec.Codec, photographs: dict[str, np.ndarray]):
    """Both readers refuse them, and both pass over what may be passed over."""
    data = codec.encode(Picture(photographs["coffee"][:16, :16].copy(), xmp=b"<x/>"))
    size = len(zlib.compress(b"<x/>", 9))
    at = 15  # of the list: magic, version, flags, identity, quality, two sizes of a byte
    assert data[at : at + 3] == bytes([1, 1, size])
    body = data[fic.read(data).offsets[0] : -4]

    def forged(pieces: list[tuple[int, bytes]]) -> bytes:
        index = data[at + 3 : data.index(zlib.compress(b"<x/>", 9))]
        head = data[:at] + bytes([len(pieces)]) + b"".join(bytes([kind, len(piece)]) for kind, piece in pieces)
        head += index + b"".join(piece for _, piece in pieces)
        crc = zlib.crc32(head)
        tile = struct.pack("<I", zlib.crc32(body, zlib.crc32(bytes(4), crc)))
        return head + struct.pack("<I", crc) + body + tile

    xmp = (1, zlib.compress(b"<x/>", 9))
    assert forged([xmp]) == data
    header, _ = assert_same(codec, forged([xmp, (2, b"unread"), (127, b"")]))
    assert header["xmp"] == b"<x/>"
    for pieces in ([], [(0, b"")], [xmp, xmp], [(2, b""), xmp], [xmp, (128, b"")], [(1, b"no zlib")]):
        with pytest.raises(FormatError):
            read_container(forged(pieces))
        with pytest.raises(fastcodec.errors.FastcodecError):
            codec.decode(forged(pieces))


@pytest.mark.parametrize("xmp", [None, b"<x/>"])
def test_a_flipped_bit_is_noticed(codec: fastcodec.Codec, photographs: dict[str, np.ndarray], xmp):
    """Every bit of the header and bits all over the payload."""
    blob = codec.encode(Picture(photographs["astronaut"][:48, 64:128].copy(), xmp=xmp))
    for bit in [*range(50 * 8), *range(50 * 8, len(blob) * 8, 13)]:
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_latents(bytes(damaged), WEIGHTS, GAUSSIAN)
    for length in range(len(blob)):
        with pytest.raises(FormatError):
            read_container(blob[:length])
    with pytest.raises(FormatError):
        read_container(blob + b"\0")


# Files of the encoder that sections 1 and 5.5 describe


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def container(model: Model, height: int, width: int, quality: int, payloads: list[bytes]) -> bytes:
    """1: a file in colour, without alpha, ICC and EXIF."""
    header = MAGIC + bytes([1, 0]) + bytes.fromhex(model.identity) + bytes([quality]) + varint(width) + varint(height)
    header += b"".join(varint(len(payload)) for payload in payloads)
    crc = zlib.crc32(header)
    out = [header, struct.pack("<I", crc)]
    for number, payload in enumerate(payloads):
        out += [payload, struct.pack("<I", zlib.crc32(payload, zlib.crc32(struct.pack("<I", number), crc)))]
    return b"".join(out)


def entry_of(tables: TableSet, t: int, symbol: int) -> tuple[int, int, bool]:
    """The frequency and the start of the entry that stands for a symbol, and whether that is the sentinel."""
    slot = int(np.searchsorted(tables.symbol[t], symbol))
    if slot == PROBABILITY_TOTAL or tables.symbol[t, slot] != symbol or tables.sentinel[t, slot]:
        slot = PROBABILITY_TOTAL - 1
    return int(tables.frequency[t, slot]), slot - int(tables.offset[t, slot]), bool(tables.sentinel[t, slot])


def encode_payload(
    passes: list[Pass], lanes: int, streams: int, escape: Callable[[], bool] = lambda: False, start: int = STATE_LOW
) -> bytes:
    """5.5; `escape` tells of each symbol whether it shall be an escape for no reason."""
    all_states, all_words, all_escapes = [], [], []
    for s in range(streams):
        states = [start] * lanes
        words, escapes = [], []
        for tables, indexes, symbols in reversed(passes):
            begin, end = s * len(indexes) // streams, (s + 1) * len(indexes) // streams
            own = zip(indexes[begin:end].flat, symbols[begin:end].flat, strict=True)
            coded = [(int(t), int(symbol)) for t, symbol in own if t or not tables.skip]
            for j, (t, symbol) in reversed(list(enumerate(coded))):
                frequency, first_slot, escaped = entry_of(tables, t, -(2**20) if escape() else symbol)
                if escaped:
                    escapes.append(symbol)
                x = states[j % lanes]
                if x >> 18 >= frequency:
                    words.append(x & 65535)
                    x >>= 16
                states[j % lanes] = (x // frequency << 14) + x % frequency + first_slot
        all_states += states
        all_words.append(words[::-1])
        all_escapes.append(escapes[::-1])
    out = bytes([lanes.bit_length() - 1]) + varint(streams)
    out += b"".join(varint(len(escapes)) for escapes in all_escapes)
    out += b"".join(varint(len(words)) for words in all_words[:-1])
    out += struct.pack(f"<{len(all_states)}I", *all_states)
    out += b"".join(struct.pack(f"<{len(words)}H", *words) for words in all_words)
    return out + b"".join(struct.pack(f"<{len(escapes)}h", *escapes) for escapes in all_escapes)


class Dice:
    """In the place of a payload: symbols by chance, most as their tables have them and some that need escapes."""

    def __init__(self, seed: int, wild: float) -> None:
        self.random = np.random.default_rng(seed)
        self.wild = wild
        self.passes: list[Pass] = []

    def decode(self, tables: TableSet, indexes: np.ndarray) -> np.ndarray:
        slots = self.random.integers(0, PROBABILITY_TOTAL, indexes.shape)
        symbols = tables.symbol[indexes, slots]
        wild = tables.sentinel[indexes, slots] | (self.random.random(indexes.shape) < self.wild)
        extremes = np.array([-32768, -129, -128, -127, 127, 128, 129, 32767])
        choice = self.random.integers(0, 2, indexes.shape).astype(bool)
        values = np.where(
            choice,
            self.random.choice(extremes, indexes.shape),
            self.random.integers(-32768, 32768, indexes.shape),
        )
        symbols = np.where(wild, values, symbols)
        if tables.skip:
            symbols[indexes == 0] = 0
        self.passes.append((tables, indexes, symbols))
        return symbols

    def finish(self) -> None:
        assert len(self.passes) == 1 + 2 * len(released.load("swift").config.group_channels)


@pytest.mark.parametrize(
    "rows, columns, quality, wild, lanes, streams",
    [
        (1, 1, 50, 0.02, 1, 1),
        (1, 1, 1, 0.02, 4, 7),
        (3, 5, 100, 0, 1, 3),
        (5, 4, 20, 0.01, 2, 1),
        (2, 9, 77, 0.05, 16, 5),
        (7, 6, 60, 0.002, 32, 2),
        (4, 4, 60, 0.5, 8, 1),
        (5, 3, 60, 0.01, 4, 200),
        (1, 82, 60, 0.01, 8, 3),
    ],
)
def test_any_symbols_lanes_and_streams(
    codec: fastcodec.Codec,
    model: Model,
    *,
    rows: int,
    columns: int,
    quality: int,
    wild: float,
    lanes: int,
    streams: int,
):
    random = np.random.default_rng(rows * columns)
    payloads, parts = [], []
    edges = tile_edges(columns)
    for left, right in itertools.pairwise(edges):
        dice = Dice(left, wild)
        parts.append(model.decode_tile(dice, rows, right - left, quality))
        payloads.append(encode_payload(dice.passes, lanes, streams, lambda: random.random() < wild))
    latents = np.concatenate(parts, axis=1)
    assert abs(latents).max() < 2**20
    blob = container(model, 16 * rows - 3, 16 * columns - 15, quality, payloads)
    assert (first_payload(blob).lanes, first_payload(blob).streams) == (lanes, streams)
    assert np.array_equal(assert_same(codec, blob)[1], latents)


def damages(payload: bytes, words_at: int, escapes_at: int) -> dict[str, bytes]:
    """What 5.4 refuses, and no CRC can tell of."""
    odd_words = bytearray(payload)
    odd_words[escapes_at - 1] ^= 1
    first_word = bytearray(payload)
    first_word[words_at] ^= 128
    small_state = bytearray(payload)
    small_state[words_at - 2 : words_at] = b"\0\0"
    return {
        "the last word differs": bytes(odd_words),
        "the first word differs": bytes(first_word),
        "a state below 2^16": bytes(small_state),
        "a word too many": payload[:words_at] + b"\1\2" + payload[words_at:],
        "a word too few": payload[:words_at] + payload[words_at + 2 :],
        "an odd byte": payload + b"\0",
        "reserved bits": bytes([payload[0] | 8]) + payload[1:],
        "too many lanes": bytes([6]) + payload[1:],
        "no stream": payload[:1] + b"\0" + payload[2:],
        "a long varint": payload[:1] + b"\x81\0" + payload[2:],
        "a huge varint": payload[:2] + b"\xff\xff\xff\xff\x7f" + payload[3:],
        "an escape too many": payload[:2] + bytes([payload[2] + 1]) + payload[3:] + b"\0\0",
        "an escape too few": payload[:2] + bytes([payload[2] - 1]) + payload[3:-2],
        "more escapes than bytes": payload[:2] + varint(2**32 - 1) + payload[3:],
        "empty": b"",
        "header only": payload[:3],
    }


def test_corrupt_payloads_with_good_crcs(codec: fastcodec.Codec, model: Model):
    lanes = 4
    dice = Dice(3, 0.02)
    model.decode_tile(dice, 3, 3, 60)
    payload = encode_payload(dice.passes, lanes, 1)
    escapes = Payload(payload).escape_counts[0]
    assert 1 < escapes < 127, "the damages below take the count for one byte"
    cases = damages(payload, 3 + 4 * lanes, len(payload) - 2 * escapes)
    cases["another end state"] = encode_payload(dice.passes, lanes, 1, start=STATE_LOW + 1)
    assert_same(codec, container(model, 48, 48, 60, [payload]))
    for name, damaged in cases.items():
        blob = container(model, 48, 48, 60, [damaged])
        with pytest.raises(FormatError):
            pytest.fail(f"{name}: accepted {decode_latents(blob, WEIGHTS, GAUSSIAN)[0]}")
        with pytest.raises(fastcodec.FastcodecError):
            pytest.fail(f"{name}: fastcodec accepted {codec.latents(blob).shape}")


# The document's examples


def test_the_example_of_section_5_6():
    a = TableSet(bytes.fromhex("0200 0000  ffff 0000  0400 0300  0010 ff1f 0010 0100  e02e 1f11 0100"))
    b = TableSet(bytes.fromhex("0200 0100  0000 feff  0100 0600  0040  0a00 b80b 1027 b80b 0a00 6c01"))
    data = bytes.fromhex("01  01  02  223e2d0f a84c1f01  8afe 0040  2c01 fbff")
    passes = [
        (a, np.array([[0, 1], [0, 1], [0, 1]]), np.array([[1, 0], [-1, 1], [0, 300]])),
        (b, np.array([[1, 1], [0, 1], [1, 0], [1, 1]]), np.array([[0, 2], [0, 0], [-2, 0], [-5, 1]])),
    ]
    payload = Payload(data)
    for tables, indexes, symbols in passes:
        assert payload.decode(tables, indexes).tolist() == symbols.tolist()
    payload.finish()
    assert encode_payload(passes, 2, 1) == data


def test_the_examples_of_section_2_2():
    assert [tile_edges(n) for n in (15, 79, 80, 143)] == [[0, 15], [0, 79], [0, 64, 80], [0, 64, 143]]
    for latents in range(1, 1000):
        edges = tile_edges(latents)
        assert edges[-1] == latents
        assert all(16 <= size <= 79 for size in np.diff(edges)) or len(edges) == 2
    assert ceil_div(17, 16) == 2


def test_the_check_value_of_section_0():
    assert zlib.crc32(b"123456789") == 0xCBF43926


def test_varints_and_zlib_streams():
    for value in (0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**56 - 1):
        assert Reader(varint(value)).varint(8) == value
    for wrong in (b"", b"\x80", b"\x80\0", b"\xff" * 8 + b"\1"):
        with pytest.raises(FormatError):
            Reader(wrong).varint(8)
    packed = zlib.compress(b"profile" * 100)
    assert inflate(packed, "ICC") == b"profile" * 100
    for wrong in (b"", packed[:-1], packed + b"\0", b"\0" + packed):
        with pytest.raises(FormatError):
            inflate(wrong, "ICC")
    with pytest.raises(FormatError):
        inflate(packed, "ICC", 699)
