"""The container: what is written is read, all else is a typed error, and a header costs next to nothing."""

import dataclasses
import itertools
import random
import struct
import tracemalloc
import zlib

import pytest

import fastcodec
from fastcodec import container
from fastcodec.container import Container, Header, Limits, TileData
from fastcodec.errors import (
    CorruptStreamError,
    FastcodecError,
    LimitError,
    NotAFicFileError,
    UnsupportedVersionError,
)

IDENTITY = bytes.fromhex("0123456789ab")
_varint = container._varint


def read_all(data, limits: Limits = container.DEFAULT_LIMITS) -> tuple[Container, list[TileData]]:
    file = container.read(data, limits)
    return file, [file.tile(i) for i in range(len(file.lengths))]


def forged(
    *,
    version: int = 1,
    flags: int = 0,
    quality: int = 50,
    width: bytes = b"\x10",
    height: bytes = b"\x10",
    rest: bytes = b"\x01",
    metadata: bytes = b"",
    tiles: bytes | None = None,
) -> bytes:
    """A file of which every field is the caller's, with a CRC that fits. `rest`: the varints after the size."""
    head = b"\xf1FIC" + bytes([version, flags]) + IDENTITY + bytes([quality]) + width + height + rest + metadata
    crc = zlib.crc32(head)
    if tiles is None:
        tiles = b"p" + struct.pack("<I", zlib.crc32(b"p", zlib.crc32(struct.pack("<I", 0), crc)))
    return head + struct.pack("<I", crc) + tiles


SAMPLE_HEADER = Header(1500, 40, 77, IDENTITY, alpha=True, icc=b"profile" * 9, exif=b"II*\0" + bytes(20))
SAMPLE_TILES = [TileData(b"payload of tile 0", b"alpha"), TileData(b"and of tile 1", b"")]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">a description</x:xmpmeta>'


@pytest.fixture(params=[None, XMP], ids=["version 1", "version 3"])
def sample(request) -> bytes:
    return container.write(dataclasses.replace(SAMPLE_HEADER, xmp=request.param), SAMPLE_TILES)


# ---- what is written is read


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (129, 127), (1025, 16384), (3000, 3000)])
def test_everything_comes_back(size):
    generator = random.Random(1)
    for gray, alpha, floating, icc, exif, xmp in itertools.product(
        *[[False, True]] * 3, [None, b"", b"profile" * 50], [None, b"II*\0"], [None, b"", XMP]
    ):
        header = Header(*size, generator.randint(1, 100), IDENTITY, gray, alpha, floating, icc, exif, xmp)
        tiles = [
            TileData(generator.randbytes(generator.choice([0, 1, 127, 128, 300])), generator.randbytes(5) * alpha)
            for _ in range(header.grid.tile_count)
        ]
        file, read = read_all(container.write(header, tiles))
        assert file.header == header
        assert [(bytes(t.payload), bytes(t.alpha)) for t in read] == [(t.payload, t.alpha) for t in tiles]
        assert header.mode == ("L" if gray else "RGB") + ("A" if alpha else "")


def test_any_buffer_is_read(sample):
    for data in (sample, bytearray(sample), memoryview(sample), memoryview(bytearray(sample))):
        assert read_all(data)[0].header == dataclasses.replace(SAMPLE_HEADER, xmp=read_all(sample)[0].header.xmp)


def test_varints_of_every_length():
    for value in (0, 1, 127, 128, 2**14 - 1, 2**14, 2**21, 2**28, 2**49 - 1):
        reader = container._Reader(memoryview(_varint(value)), 0)
        assert reader.varint("value") == value
        assert len(_varint(value)) == max(1, -(-value.bit_length() // 7))


def test_info_needs_no_model(sample, tmp_path):
    path = tmp_path / "a.fic"
    path.write_bytes(sample)
    for source in (sample, path, str(path)):
        info = fastcodec.info(source)
        assert (info.width, info.height, info.mode, info.quality, info.tiles) == (1500, 40, "RGBA", 77, 2)
        assert (info.model, info.version, info.bytes) == (IDENTITY.hex(), sample[4], len(sample))
        assert (info.icc_bytes, info.exif_bytes, info.portable) == (63, 24, True)
        assert (info.xmp_bytes, info.dpi) == (len(XMP) if sample[4] == 3 else 0, None)
    floating = dataclasses.replace(SAMPLE_HEADER, float_entropy=True)
    info = fastcodec.info(container.write(floating, SAMPLE_TILES[:1]))
    assert (info.portable, info.tiles) == (False, 1)


# ---- what it costs


@pytest.mark.parametrize("side", [1, 16, 64, 768, 1263])
@pytest.mark.parametrize("length", [0, 20, 300, 70_000, 3_000_000])
def test_a_one_tile_file_has_at_most_32_bytes_that_are_not_the_coders(side, length):
    """Fixed cost: all bytes of the file outside the coder's payload, that is the header, the index and both CRCs."""
    header = Header(side, side, 60, IDENTITY)
    assert header.grid.tile_count == 1
    assert len(container.write(header, [TileData(bytes(length))])) - length <= 32


def test_a_further_tile_costs_its_crc_and_its_length():
    one = Header(1024, 1024, 60, IDENTITY)
    four = Header(2048, 2048, 60, IDENTITY)
    size = len(container.write(four, [TileData(bytes(9000))] * 4)) - len(container.write(one, [TileData(bytes(9000))]))
    assert size == 3 * (9000 + 4 + 2)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 1), (1, 17), (1264, 16), (5000, 3000), (1 << 14, 1 << 14)])
def test_a_floating_point_file_is_one_tile(width, height):
    header = Header(width, height, 60, IDENTITY, float_entropy=True)
    data = container.write(header, [TileData(b"payload")])
    file = container.read(data)
    assert file.header == header
    assert (file.header.grid.tile_count, file.tile(0).payload) == (1, b"payload")
    (tile,) = file.header.grid.tiles()
    assert (tile.bottom, tile.right) == (-(-height // 16), -(-width // 16))
    with pytest.raises(CorruptStreamError):
        container.read(container.write(header, [TileData(b"payload")] * 2))


# ---- damage


def test_every_truncation_is_an_error(sample):
    for length in range(len(sample)):
        with pytest.raises(NotAFicFileError if length < 5 else CorruptStreamError):
            container.read(sample[:length])


def test_every_flipped_bit_is_an_error(sample):
    """Of the header at once, of a tile when the tile is asked for; the other tiles stay readable."""
    begin = container.read(sample).offsets[0]
    for position, bit in itertools.product(range(len(sample)), range(8)):
        damaged = bytearray(sample)
        damaged[position] ^= 1 << bit
        if position < begin:
            with pytest.raises(FastcodecError) as caught:
                container.read(damaged)
            kind = NotAFicFileError if position < 4 else UnsupportedVersionError if position == 4 else None
            # Of the versions that there are, a flipped bit makes one another, and that the CRC knows.
            if kind and (damaged[4] > 3 or position < 4):
                assert type(caught.value) is kind
            else:
                assert isinstance(caught.value, CorruptStreamError | LimitError)
        else:
            file = container.read(damaged)
            hurt = 1 if position >= file.offsets[1] else 0
            with pytest.raises(CorruptStreamError, match=f"tile {hurt} is damaged"):
                file.tile(hurt)
            file.tile(1 - hurt)


def test_every_replaced_header_byte_is_an_error(sample):
    begin = container.read(sample).offsets[0]
    for position in range(begin):
        for value in range(256):
            if value != sample[position]:
                with pytest.raises(FastcodecError):
                    container.read(sample[:position] + bytes([value]) + sample[position + 1 :])


@pytest.mark.parametrize("extra", [b"\0", b"\xf1FIC", bytes(1000)])
def test_bytes_after_the_last_tile_are_an_error(sample, extra):
    with pytest.raises(CorruptStreamError, match=f"{len(extra)} bytes follow the last tile"):
        container.read(sample + extra)


@pytest.mark.parametrize("data", [b"", b"\xf1", b"\xf1FIC", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(100)])
def test_other_files_are_not_ours(data):
    with pytest.raises(NotAFicFileError):
        container.read(data)


def test_a_future_version_is_refused_by_its_number():
    for version in (4, 9, 255):
        with pytest.raises(UnsupportedVersionError, match=rf"version {version}; .* up to version 3"):
            container.read(forged(version=version))
    with pytest.raises(UnsupportedVersionError):
        container.read(b"\xf1FIC\x04")  # whatever follows: its layout is not known
    with pytest.raises(CorruptStreamError, match="version 0"):
        container.read(forged(version=0))


def test_the_forge_itself_is_sound():
    file, tiles = read_all(forged())
    assert (file.header.width, file.header.height) == (16, 16)
    assert bytes(tiles[0].payload) == b"p"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"quality": 0}, "quality"),
        ({"quality": 101}, "quality"),
        ({"flags": 0b10}, "flags"),
        ({"flags": 0b11}, "flags"),
        ({"flags": 0x40}, "flags"),
        ({"flags": 0x80}, "flags"),
        ({"flags": 0x80, "version": 2}, "flags"),
        ({"flags": 0x80, "version": 3, "rest": b"\x00\x01"}, "further metadata"),
        ({"flags": 0x80, "version": 3, "rest": b"\x01\x00\x01\x01", "metadata": b"x"}, "further metadata"),
        ({"flags": 0x80, "version": 3, "rest": b"\x02\x02\x01\x02\x01\x01", "metadata": b"xx"}, "further metadata"),
        ({"flags": 0x80, "version": 3, "rest": b"\x02\x03\x01\x02\x01\x01", "metadata": b"xx"}, "further metadata"),
        ({"flags": 0x80, "version": 3, "rest": b"\x01\x01\x04\x01", "metadata": b"junk"}, "does not decompress"),
        ({"flags": 0x80, "version": 3, "rest": b"\x01\x01" + _varint(2**40) + b"\x01"}, "metadata"),
        ({"flags": 0x80, "version": 3, "rest": b"\x01\x01\x81\x00\x01"}, "not minimally encoded"),
        ({"width": b"\0"}, "impossible size"),
        ({"height": b"\0"}, "impossible size"),
        ({"width": b"\x90\0"}, "not minimally encoded"),
        ({"rest": b"\x81\x00"}, "not minimally encoded"),
        ({"width": b"\xff" * 9 + b"\x01"}, "does not end"),
        ({"width": _varint(2**30), "height": _varint(2**30)}, "impossible size"),
        ({"rest": _varint(2**40)}, "ends within the tiles"),
        ({"rest": b"\x02"}, "ends within the tiles"),
        ({"rest": b"\x00"}, "follow the last tile"),
        ({"flags": 0b1000, "rest": _varint(2**40) + b"\x01"}, "metadata"),
        ({"flags": 0b1000, "rest": b"\x04\x01", "metadata": b"junk"}, "does not decompress"),
        ({"flags": 0b1000, "rest": b"\x00\x01"}, "does not decompress"),
    ],
)
def test_forged_fields_are_refused_though_the_crc_fits(fields, words):
    with pytest.raises(CorruptStreamError, match=words):
        container.read(forged(**fields))


def with_pieces(pieces: dict[int, bytes]) -> bytes:
    """A version 3 file with further metadata of these types."""
    rest = bytes([len(pieces)]) + b"".join(bytes([kind]) + _varint(len(piece)) for kind, piece in pieces.items())
    return forged(version=3, flags=0x80, rest=rest + b"\x01", metadata=b"".join(pieces.values()))


def test_metadata_is_one_whole_zlib_stream():
    for data in (zlib.compress(b"profile")[:-1], zlib.compress(b"profile") + b"x", zlib.compress(b"a") * 2):
        for file in (
            forged(flags=0b1000, rest=_varint(len(data)) + b"\x01", metadata=data),
            forged(flags=0b1_0000, rest=_varint(len(data)) + b"\x01", metadata=data),
            with_pieces({1: data}),
        ):
            with pytest.raises(CorruptStreamError, match="does not decompress"):
                container.read(file)


def test_a_version_3_file_is_the_same_but_for_its_further_metadata():
    plain = dataclasses.replace(SAMPLE_HEADER, alpha=False)
    for lossless in (False, True):
        tiles = [TileData(b"one", lossless=lossless), TileData(b"two")]
        data = container.write(dataclasses.replace(plain, xmp=XMP), tiles)
        file, read = read_all(data)
        assert (data[4], container.write(plain, tiles)[4]) == (3, 1 + lossless)
        assert [(bytes(tile.payload), tile.lossless) for tile in read] == [(b"one", lossless), (b"two", False)]
        assert (file.header.icc, file.header.exif, file.header.xmp) == (plain.icc, plain.exif, XMP)
    file, tiles = read_all(forged(version=3))  # without the flag
    assert (file.header.xmp, bytes(tiles[0].payload)) == (None, b"p")


def test_unknown_metadata_is_passed_over_or_refused_as_its_type_says():
    xmp = zlib.compress(XMP)
    for pieces in ({1: xmp, 2: b"not even zlib", 127: b""}, {1: xmp}, {kind: xmp for kind in range(1, 128)}):
        file, tiles = read_all(with_pieces(pieces))
        assert (file.header.xmp, bytes(tiles[0].payload)) == (XMP, b"p")
    assert read_all(with_pieces({2: b"x"}))[0].header.xmp is None
    for kind in (128, 255):
        with pytest.raises(UnsupportedVersionError, match=f"metadata of type {kind}"):
            container.read(with_pieces({1: xmp, kind: b""}))


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_reader_refuses_further_metadata_by_the_version(version, monkeypatch):
    data = container.write(dataclasses.replace(SAMPLE_HEADER, xmp=XMP), SAMPLE_TILES)
    monkeypatch.setattr(container, "VERSION", version)
    with pytest.raises(UnsupportedVersionError, match="version 3"):
        container.read(data)


def test_the_length_is_known_as_soon_as_the_header_is(sample):
    begin = container.read(sample).offsets[0]
    for cut in range(5, begin):
        assert container.length(sample[:cut]) is None
    for data in (sample[:begin], sample, sample + bytes(1000), sample + sample):
        assert container.length(data) == len(sample)
    with pytest.raises(NotAFicFileError):
        container.length(b"PNG, not FIC")
    with pytest.raises(CorruptStreamError, match="CRC"):
        container.length(sample[:12] + bytes([sample[12] ^ 1]) + sample[13:])
    with pytest.raises(LimitError):
        container.length(sample, Limits(max_pixels=10))


@pytest.mark.parametrize("index", [0, 1])
def test_a_tile_in_another_place_or_of_another_file_does_not_pass(index):
    """The CRC of a tile is seeded with its number and with the header's CRC."""
    header = Header(1500, 40, 77, IDENTITY)
    payloads = [b"first tile", b"other tile"]
    data = container.write(header, [TileData(p) for p in payloads])
    begin = container.read(data).offsets[0]
    size = len(payloads[0]) + 4
    swapped = data[:begin] + data[begin + size :] + data[begin : begin + size]
    with pytest.raises(CorruptStreamError, match=f"tile {index} is damaged"):
        container.read(swapped).tile(index)
    other = container.write(dataclasses.replace(header, quality=78), [TileData(p) for p in payloads])
    with pytest.raises(CorruptStreamError, match=f"tile {index} is damaged"):
        container.read(data[:begin] + other[begin:]).tile(index)


# ---- limits


def peak_of(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("width, height", [(2**15, 2**14), (2**24, 2**24), (1, 2**40)])
def test_a_forged_size_is_refused_before_anything_is_allocated(width, height):
    data = forged(width=_varint(width), height=_varint(height))

    def read():
        with pytest.raises(LimitError, match=f"{width} x {height}"):
            container.read(data)

    assert peak_of(read) < 1 << 20


@pytest.mark.parametrize("width, height", [(2**14, 2**14), (2**28, 1), (1, 2**40), (2**24, 2**24)])
def test_a_forged_tile_count_is_refused_by_the_files_length(width, height):
    """Even where the caller has raised the limits."""
    data = forged(width=_varint(width), height=_varint(height), rest=b"\x01" * 100)

    def read():
        with pytest.raises(CorruptStreamError, match="cannot hold"):
            container.read(data, Limits(max_pixels=1 << 60))

    assert peak_of(read) < 1 << 20


def test_the_limit_on_pixels_is_adjustable():
    data = container.write(Header(20, 10, 50, IDENTITY), [TileData(b"p")])
    assert container.read(data, Limits(max_pixels=200)).header.width == 20
    with pytest.raises(LimitError, match="limit of 199"):
        container.read(data, Limits(max_pixels=199))
    with pytest.raises(LimitError):
        fastcodec.info(data, Limits(max_pixels=199))


def test_a_metadata_bomb_is_refused_at_the_limit():
    for kind in ("icc", "exif", "xmp"):
        bomb = container.write(Header(16, 16, 50, IDENTITY, **{kind: bytes(100 << 20)}), [TileData(b"p")])
        assert len(bomb) < 200_000

        def read(bomb=bomb):
            with pytest.raises(LimitError, match="metadata"):
                container.read(bomb)

        assert peak_of(read) < 40 << 20


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_metadata_of_exactly_the_limit_is_read(size):
    generator = random.Random(size)
    for content in (bytes(size), generator.randbytes(size)):
        for kind in ("icc", "exif", "xmp"):
            data = container.write(Header(16, 16, 50, IDENTITY, **{kind: content}), [TileData(b"p")])
            assert getattr(container.read(data, Limits(max_metadata=size)).header, kind) == content
            if size:
                with pytest.raises(LimitError):
                    container.read(data, Limits(max_metadata=size - 1))
