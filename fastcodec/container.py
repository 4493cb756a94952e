"""The .fic container: header, tile index, metadata, tiles. docs/format.md is the specification.

Reading checks everything that can be checked before anything is allocated: the magic, the version, the header's CRC,
the sizes against the caller's limits, and that the index accounts for every byte of the file. Tiles stay slices of the
input until they are asked for, so that a region costs a region.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from itertools import accumulate

from .constants import IDENTITY_BYTES, MAX_QUALITY, MIN_QUALITY
from .errors import CorruptStreamError, LimitError, NotAFicFileError, UnsupportedVersionError
from .files import FileLike, contents, naming
from .geometry import Grid
from .metadata import exif_resolution

MAGIC = b"\xf1FIC"
VERSION = 3  # of files with further metadata; with lossless tiles alone it is 2, and all others are version 1

_COLOUR_MASK = 0b11
_ALPHA, _ICC, _EXIF, _FLOAT_ENTROPY, _LOSSLESS, _METADATA = (1 << bit for bit in range(2, 8))
_RESERVED = {1: _LOSSLESS | _METADATA, 2: _METADATA, 3: 0}  # by version
_XMP = 1  # types of further metadata
_REQUIRED = 128  # from this type on, a reader must not pass over what it does not know
_COLOURS = ("RGB", "L")
_MAX_WRITTEN_ON = 127  # bytes
_FIXED = struct.Struct(f"<4sBB{IDENTITY_BYTES}sB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Limits:
    """Limits of what a reader allocates for one file; raise them for trusted data."""

    max_pixels: int = 1 << 28
    max_metadata: int = 1 << 24  # bytes of ICC profile, EXIF and XMP, each, after decompression


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """Everything about a file but its tiles."""

    width: int
    height: int
    quality: int
    identity: bytes  # of the model, IDENTITY_BYTES long
    grayscale: bool = False
    alpha: bool = False
    float_entropy: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    # With float_entropy, the kind of machine that wrote it, in words: printable ASCII, 127 characters at most. Empty
    # where the model's own entropy side is exact all the same, so that the file decodes everywhere.
    written_on: str = "unknown"

    @property
    def portable(self) -> bool:
        """Whether the latents decode on every device."""
        return not self.float_entropy or not self.written_on

    @property
    def grid(self) -> Grid:
        """The tiles; the whole image is one where the entropy side is floating point."""
        return _grid(self.height, self.width, self.float_entropy)

    @property
    def mode(self) -> str:
        """Pillow's name for the pixels: RGB, RGBA, L or LA."""
        return _COLOURS[self.grayscale] + "A" * self.alpha


@dataclass(frozen=True)
class TileData:
    """One tile's bytes: the coder's payload or that of a lossless tile (`lossless.py`) and, where the image has alpha,
    a PNG of it (empty: all opaque)."""

    payload: bytes | memoryview
    alpha: bytes | memoryview = b""
    lossless: bool = False


@dataclass(frozen=True)
class FileInfo:
    """Facts of a header, as `info` reports them, without a network and without pixels."""

    width: int
    height: int
    mode: str
    quality: int
    version: int
    model: str
    tiles: int
    lossless_tiles: int
    bytes: int
    icc_bytes: int
    exif_bytes: int
    xmp_bytes: int
    dpi: tuple[float, float] | None  # across and down, from EXIF
    portable: bool
    written_on: str  # if not portable, else empty


@dataclass(frozen=True)
class Container:
    """A parsed file: its header, and where its tiles lie."""

    header: Header
    data: memoryview
    header_crc: int
    lengths: list[tuple[int, int]]  # of payload and alpha, for each tile
    lossless: tuple[bool, ...]  # of each tile: its payload is a lossless tile's, not the coder's
    offsets: list[int] = field(repr=False)

    @property
    def network_tiles(self) -> list[int]:
        """Numbers of the tiles that the networks coded."""
        return [number for number, lossless in enumerate(self.lossless) if not lossless]

    @property
    def lossless_tiles(self) -> list[int]:
        """Numbers of the others."""
        return [number for number, lossless in enumerate(self.lossless) if lossless]

    def tile(self, number: int) -> TileData:
        """The bytes of one tile, its CRC checked: CorruptStreamError, naming the tile, where it does not match."""
        start = self.offsets[number]
        payload, alpha = self.lengths[number]
        body = self.data[start : start + payload + alpha]
        (stored,) = _CRC.unpack_from(self.data, start + payload + alpha)
        if stored != _tile_crc(body, number, self.header_crc):
            raise CorruptStreamError(f"tile {number} is damaged: its CRC does not match", number)
        return TileData(body[:payload], body[payload:], self.lossless[number])


def _tile_crc(body: bytes | memoryview, number: int, header_crc: int) -> int:
    # Seeded with the header's CRC and the tile's number: a tile of another file or place does not pass for this one.
    return zlib.crc32(body, zlib.crc32(_CRC.pack(number), header_crc))


def write(header: Header, tiles: list[TileData]) -> bytes:
    """Serialise a file."""
    flags = int(header.grayscale)
    flags |= _ALPHA * header.alpha | _ICC * (header.icc is not None) | _EXIF * (header.exif is not None)
    flags |= _FLOAT_ENTROPY * header.float_entropy
    mixed = any(tile.lossless for tile in tiles)
    flags |= _LOSSLESS * mixed
    further = {kind: piece for kind, piece in {_XMP: header.xmp}.items() if piece is not None}
    flags |= _METADATA * bool(further)
    version = 3 if further else 2 if mixed else 1
    head = bytearray(_FIXED.pack(MAGIC, version, flags, header.identity, header.quality))
    head += _varint(header.width) + _varint(header.height)
    if header.float_entropy:
        written_on = header.written_on.encode("ascii", "replace")[:_MAX_WRITTEN_ON]
        head += bytes([len(written_on)]) + written_on
    metadata = [zlib.compress(part, 9) for part in (header.icc, header.exif) if part is not None]
    for part in metadata:
        head += _varint(len(part))
    if further:
        head.append(len(further))
        for kind, piece in further.items():
            metadata.append(zlib.compress(piece, 9))
            head += bytes([kind]) + _varint(len(metadata[-1]))
    for tile in tiles:
        head += _varint(len(tile.payload) << 1 | tile.lossless if mixed else len(tile.payload))
        if header.alpha:
            head += _varint(len(tile.alpha))
    head += b"".join(metadata)
    crc = zlib.crc32(head)
    parts = [bytes(head), _CRC.pack(crc)]
    for number, tile in enumerate(tiles):
        body = b"".join((tile.payload, tile.alpha))
        parts += [body, _CRC.pack(_tile_crc(body, number, crc))]
    return b"".join(parts)


def read(file: FileLike, limits: Limits = DEFAULT_LIMITS) -> Container:
    """Parse and check everything but the tiles' contents.

    Raises NotAFicFileError, UnsupportedVersionError, LimitError or CorruptStreamError; TypeError or OSError for what
    gives no bytes (`files.contents`).
    """
    try:
        head = _read_head(contents(file), limits)
    except _CutShortError as error:
        raise CorruptStreamError(str(error)) from None
    size = len(head.file.data)
    if head.end > size:
        raise CorruptStreamError(f"the file ends within the tiles: {size} bytes are too few")
    if head.end < size:
        raise CorruptStreamError(f"{size - head.end} bytes follow the last tile")
    unknown = [kind for kind in head.further if kind >= _REQUIRED]
    if unknown:
        raise UnsupportedVersionError(f"metadata of type {unknown[0]}, which this fastcodec does not know")
    parts = [*head.metadata, head.further.get(_XMP)]
    icc, exif, xmp = (_inflate(part, limits.max_metadata) if part is not None else None for part in parts)
    return replace(head.file, header=replace(head.file.header, icc=icc, exif=exif, xmp=xmp))


def length(data: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS) -> int | None:
    """Bytes of the file that `data` begins with, as its header says; None if the header is not all there.

    For a file that others follow, in an archive or a stream. Raises what `read` raises for a header.
    """
    try:
        return _read_head(contents(data), limits).end
    except _CutShortError:
        return None


@dataclass(frozen=True)
class _Head:
    """A file whose header's CRC is right, and whose tiles may not all be there."""

    file: Container  # its header without metadata
    metadata: list[memoryview | None]  # ICC and EXIF, compressed
    further: dict[int, memoryview]  # by type, compressed
    end: int  # of the last tile


def _read_head(view: memoryview, limits: Limits) -> _Head:
    if len(view) < 5 or bytes(view[:4]) != MAGIC:
        raise NotAFicFileError("not a .fic file" if len(view) else "empty file")
    if view[4] > VERSION:
        raise UnsupportedVersionError(f"format version {view[4]}; this fastcodec reads up to version {VERSION}")
    if view[4] == 0:
        raise CorruptStreamError("format version 0 does not exist")
    if len(view) < _FIXED.size:
        raise _CutShortError("the header is cut short")
    _, _, flags, identity, quality = _FIXED.unpack_from(view)
    reader = _Reader(view, _FIXED.size)
    width, height = _read_size(reader, limits)
    float_entropy = bool(flags & _FLOAT_ENTROPY)
    written_on = bytes(reader.take(reader.take(1, "header")[0], "header")) if float_entropy else b"unknown"
    icc_length = reader.varint("ICC length") if flags & _ICC else None
    exif_length = reader.varint("EXIF length") if flags & _EXIF else None
    further_lengths: list[tuple[int, int]] = []  # type, bytes
    if view[4] > 2 and flags & _METADATA:
        for _ in range(reader.take(1, "header")[0]):
            further_lengths.append((reader.take(1, "header")[0], reader.varint("metadata length")))
    tiles = _grid(height, width, float_entropy).tile_count
    # Each tile takes at least one byte of index and four of CRC: a forged size cannot make this loop outrun the file.
    if tiles * 5 > len(view):
        raise _CutShortError(f"{len(view)} bytes cannot hold {tiles} tiles")
    alpha, mixed = bool(flags & _ALPHA), view[4] > 1 and bool(flags & _LOSSLESS)
    lengths = [(reader.varint("tile length"), reader.varint("alpha length") if alpha else 0) for _ in range(tiles)]
    lossless = tuple(bool(mixed and length & 1) for length, _ in lengths)
    if mixed:
        lengths = [(length >> 1, extra) for length, extra in lengths]
    metadata = [reader.take(n, "metadata") if n is not None else None for n in (icc_length, exif_length)]
    further = {kind: reader.take(n, "metadata") for kind, n in further_lengths}
    header_crc = zlib.crc32(view[: reader.at])
    (stored,) = _CRC.unpack(reader.take(4, "header CRC"))
    if stored != header_crc:
        raise CorruptStreamError("the header is damaged: its CRC does not match")
    reserved = flags & _RESERVED[view[4]] or (mixed and float_entropy)
    if reserved or flags & _COLOUR_MASK > 1 or not MIN_QUALITY <= quality <= MAX_QUALITY:
        raise CorruptStreamError(f"flags {flags:#04x} or quality {quality} are outside the format")
    if len(written_on) > _MAX_WRITTEN_ON or not all(0x20 <= byte < 0x7F for byte in written_on):
        raise CorruptStreamError("the kind of machine is not printable ASCII")
    kinds = [kind for kind, _ in further_lengths]
    if view[4] > 2 and flags & _METADATA and (not kinds or kinds[0] == 0 or kinds != sorted(further)):
        raise CorruptStreamError("the list of further metadata is empty or not in order")
    header = Header(
        width=width,
        height=height,
        quality=quality,
        identity=identity,
        grayscale=bool(flags & _COLOUR_MASK),
        alpha=alpha,
        float_entropy=float_entropy,
        written_on=written_on.decode("ascii"),
    )
    *offsets, end = accumulate((length + extra + _CRC.size for length, extra in lengths), initial=reader.at)
    return _Head(Container(header, view, header_crc, lengths, lossless, offsets), metadata, further, end)


def _read_size(reader: _Reader, limits: Limits) -> tuple[int, int]:
    width, height = reader.varint("width"), reader.varint("height")
    if not width or not height or width * height > 1 << 48:
        raise CorruptStreamError(f"impossible size {width} x {height}")
    if width * height > limits.max_pixels:
        raise LimitError(
            f"{width} x {height} pixels exceed the limit of {limits.max_pixels}; "
            "pass larger limits if you trust the file"
        )
    return width, height


class _CutShortError(CorruptStreamError):
    """The data ends too early: `length` asks for more, `read` says that it is damaged."""


def info(source: FileLike, limits: Limits = DEFAULT_LIMITS) -> FileInfo:
    """Facts of a file's header. Runs no network and decodes no pixel.

    source: the file's bytes, its path, or a binary file object (`files.contents`).

    Raises what `read` raises; the tiles' contents are not checked (`Codec.verify` does that).
    """
    with naming(source):
        container = read(source, limits)
    header = container.header
    return FileInfo(
        width=header.width,
        height=header.height,
        mode=header.mode,
        quality=header.quality,
        version=container.data[4],
        model=header.identity.hex(),
        tiles=header.grid.tile_count,
        lossless_tiles=sum(container.lossless),
        bytes=len(container.data),
        icc_bytes=len(header.icc or b""),
        exif_bytes=len(header.exif or b""),
        xmp_bytes=len(header.xmp or b""),
        dpi=exif_resolution(header.exif) if header.exif else None,
        portable=header.portable,
        written_on="" if header.portable else header.written_on,
    )


def _grid(height: int, width: int, float_entropy: bool) -> Grid:
    # Floating-point systems know no tiles: their context and their transforms see the whole image.
    return Grid(height, width, max(height, width)) if float_entropy else Grid(height, width)


def _varint(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """A cursor whose every step is checked against the end."""

    def __init__(self, view: memoryview, at: int):
        self.view, self.at = view, at

    def varint(self, what: str) -> int:
        value = 0
        for shift in range(0, 56, 7):
            if self.at >= len(self.view):
                raise _CutShortError(f"the file ends within the {what}")
            byte = self.view[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise CorruptStreamError(f"the {what} is not minimally encoded")
                return value
        raise CorruptStreamError(f"the {what} does not end")

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.view) - self.at:
            raise _CutShortError(f"the file ends within the {what}: {len(self.view)} bytes are too few")
        self.at += count
        return self.view[self.at - count : self.at]


def _inflate(part: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(part, limit + 1)  # 0 would mean no limit, and the end shows only after the last byte
        if len(out) > limit:
            raise LimitError(f"metadata of more than {limit} bytes; pass larger limits if you trust the file")
    except zlib.error as error:
        raise CorruptStreamError(f"metadata does not decompress: {error}") from None
    if not stream.eof or stream.unused_data:
        raise CorruptStreamError("metadata does not decompress")
    return out
