"""A second reader of .fic files, from bytes to latents, written from docs/format.md alone.

It shares no code with fastcodec and needs NumPy and the standard library only, so that it can show two things: that
the document says everything a decoder has to know, and that fastcodec does what the document says. It is made for
reading, not for speed. Comments name the sections of the document. Section 7, from latents to pixels, is left out.

    header, latents = decode_latents(data, Path("fastcodec/models/weights"), Path("fastcodec/entropy/gaussian64.bin"))
"""

import hashlib
import json
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Section 0
MAGIC = bytes.fromhex("f1464943")
VERSION = 3
FLAG_COLOUR_MASK, FLAG_ALPHA, FLAG_ICC, FLAG_EXIF, FLAG_FLOAT_ENTROPY = 3, 4, 8, 16, 32
FLAG_LOSSLESS, FLAG_METADATA = 64, 128
METADATA_XMP, METADATA_REQUIRED = 1, 128
CONTAINER_VARINT, PAYLOAD_VARINT = 8, 5
MAX_AREA, MAX_PIXELS, MAX_METADATA = 2**48, 2**28, 2**24
LATENT_STRIDE, HYPER_STRIDE = 16, 4
TILE_LATENTS, MIN_TILE_LATENTS = 64, 16
MAX_LOSSLESS_WIDTH = 16383
PROBABILITY_BITS, PROBABILITY_TOTAL = 14, 2**14
WORD_BITS, STATE_LOW = 16, 2**16
MAX_LANES_LOG2, MAX_STREAMS = 5, 65535
MAX_TABLES, MAX_ENTRIES = 256, 16384
GAUSSIAN_COUNT = 64
GAUSSIAN_SHA256 = "63c0e14c493cb77db9f7c00a67769a7b7dc34883fa00b3821195090d36105e9e"
WEIGHT_MAX, ACTIVATION_MAX = 127, 127
MEAN_BITS, MEAN_MIN, MEAN_MAX = 4, -32768, 32767
EXACT_LIMIT = 2**24


class FormatError(ValueError):
    """The bytes are not what the document asks for."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


class Reader:
    """A cursor over bytes; whatever would go beyond the end is an error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        require(count <= self.left, "the data ends inside a field")
        self.at += count
        return self.data[self.at - count : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def varint(self, longest: int) -> int:
        """LEB128 of the least possible length and of at most `longest` bytes."""
        value = 0
        for place in range(longest):
            byte = self.u8()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                require(byte != 0 or place == 0, "a varint is longer than it has to be")
                return value
        raise FormatError(f"a varint takes more than {longest} bytes")

    def array(self, dtype: str, count: int) -> np.ndarray:
        dtype_ = np.dtype(dtype)
        return np.frombuffer(self.take(count * dtype_.itemsize), dtype_)


# ------------------------------------------------------------------------------------------------------------------
# Section 2: geometry
# ------------------------------------------------------------------------------------------------------------------


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def tile_edges(latents: int) -> list[int]:
    """2.2: where the tiles of one axis begin, and where the last one ends."""
    n = max(1, latents // TILE_LATENTS + (1 if latents % TILE_LATENTS >= MIN_TILE_LATENTS else 0))
    return [TILE_LATENTS * i for i in range(n)] + [latents]


def checkerboard(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """2.4: the anchors' and the non-anchors' positions, each [count, 2] of (row, column) in row-major order."""
    parity = np.add.outer(np.arange(height), np.arange(width)) % 2
    return np.argwhere(parity == 0), np.argwhere(parity == 1)


# ------------------------------------------------------------------------------------------------------------------
# Section 1: container
# ------------------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    payload: bytes
    alpha: bytes
    lossless: bool


def inflate(data: bytes, what: str, limit: int = MAX_METADATA) -> bytes:
    """One whole zlib stream and nothing else."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise FormatError(f"{what}: {error}") from None
    require(len(plain) <= limit, f"{what} is larger than the limit")
    require(stream.eof and not stream.unused_data and not stream.unconsumed_tail, f"{what} is not one zlib stream")
    return plain


def read_container(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[dict[str, Any], list[Tile]]:
    """1: the header's values, and each tile's bytes after its CRC has been compared."""
    reader = Reader(data)
    require(len(data) >= 5 and reader.take(4) == MAGIC, "not a .fic file")
    version = reader.u8()
    require(1 <= version <= VERSION, f"version {version}")

    flags = reader.u8()
    identity = reader.take(6).hex()
    quality = reader.u8()
    width = reader.varint(CONTAINER_VARINT)
    height = reader.varint(CONTAINER_VARINT)
    require(width >= 1 and height >= 1 and width * height <= MAX_AREA, "impossible size")
    require(width * height <= max_pixels, "larger than the reader's limit")

    rows, columns = ceil_div(height, LATENT_STRIDE), ceil_div(width, LATENT_STRIDE)
    whole = flags & FLAG_FLOAT_ENTROPY  # one tile then
    count = 1 if whole else (len(tile_edges(rows)) - 1) * (len(tile_edges(columns)) - 1)
    require(len(data) >= 5 * count, "too short for its tiles")

    icc_length = reader.varint(CONTAINER_VARINT) if flags & FLAG_ICC else 0
    exif_length = reader.varint(CONTAINER_VARINT) if flags & FLAG_EXIF else 0
    further_lengths = []
    if version >= 3 and flags & FLAG_METADATA:  # 1.5
        further_lengths = [(reader.u8(), reader.varint(CONTAINER_VARINT)) for _ in range(reader.u8())]
    index = []
    for _ in range(count):
        payload_length, lossless = reader.varint(CONTAINER_VARINT), False
        if version >= 2 and flags & FLAG_LOSSLESS:  # 1.4
            payload_length, lossless = payload_length // 2, payload_length % 2 == 1
        index.append((payload_length, reader.varint(CONTAINER_VARINT) if flags & FLAG_ALPHA else 0, lossless))
    icc = reader.take(icc_length)
    exif = reader.take(exif_length)
    further = {kind: reader.take(length) for kind, length in further_lengths}

    header_crc = zlib.crc32(data[: reader.at])
    require(reader.u32() == header_crc, "the header's CRC differs")
    reserved = (FLAG_LOSSLESS if version < 2 else 0) | (FLAG_METADATA if version < 3 else 0)
    require(not flags & reserved and flags & FLAG_COLOUR_MASK <= 1, "reserved flags")
    require(not (flags & FLAG_LOSSLESS and flags & FLAG_FLOAT_ENTROPY), "lossless tiles of a floating-point model")
    require(1 <= quality <= 100, f"quality {quality}")
    if version >= 3 and flags & FLAG_METADATA:
        kinds = [kind for kind, _ in further_lengths]
        require(bool(kinds) and kinds[0] > 0 and kinds == sorted(set(kinds)), "types of metadata are not in order")
        require(kinds[-1] < METADATA_REQUIRED, f"metadata of type {kinds[-1]}, without which the picture is wrong")
    require(
        sum(payload + alpha + 4 for payload, alpha, _ in index) == reader.left, "the tiles do not end with the file"
    )

    header = {
        "version": version,
        "identity": identity,
        "quality": quality,
        "width": width,
        "height": height,
        "gray": flags & FLAG_COLOUR_MASK == 1,
        "alpha": bool(flags & FLAG_ALPHA),
        "icc": inflate(icc, "ICC") if flags & FLAG_ICC else None,
        "exif": inflate(exif, "EXIF") if flags & FLAG_EXIF else None,
        "xmp": inflate(further[METADATA_XMP], "XMP") if METADATA_XMP in further else None,
    }
    require(not flags & FLAG_FLOAT_ENTROPY, "floating-point entropy side")

    tiles = []
    for number, (payload_length, alpha_length, lossless) in enumerate(index):
        tile = Tile(reader.take(payload_length), reader.take(alpha_length), lossless)
        # 1.2: the CRC goes on from the header's, over the tile's number and its bytes.
        crc = zlib.crc32(tile.payload + tile.alpha, zlib.crc32(struct.pack("<I", number), header_crc))
        require(reader.u32() == crc, f"the CRC of tile {number} differs")
        tiles.append(tile)

    # 1.4: an empty lossless tile continues the one to its left.
    edges, begin = tile_edges(columns), 0
    for number, tile in enumerate(tiles):
        column = number % (len(edges) - 1)
        if not tile.lossless or tile.payload:
            begin = column
            continue
        require(column > 0 and tiles[number - 1].lossless, f"tile {number} continues no lossless tile")
        wide = min(width, LATENT_STRIDE * edges[column + 1]) - LATENT_STRIDE * edges[begin]
        require(wide <= MAX_LOSSLESS_WIDTH, f"tile {number} makes its run too wide")
    return header, tiles


# ------------------------------------------------------------------------------------------------------------------
# Section 4: tables
# ------------------------------------------------------------------------------------------------------------------


class TableSet:
    """4.2: a serialised set, unfolded into one row of 16384 slots a table."""

    def __init__(self, data: bytes) -> None:
        reader = Reader(data)
        self.count, skip = (int(value) for value in reader.array("<u2", 2))
        require(1 <= self.count <= MAX_TABLES and skip <= 1, "impossible table set")
        self.skip = bool(skip)
        firsts = reader.array("<i2", self.count).astype(np.int64)
        sizes = reader.array("<u2", self.count).astype(np.int64)
        require(bool((sizes >= 1).all() and (sizes <= MAX_ENTRIES).all()), "impossible size of a table")

        shape = (self.count, PROBABILITY_TOTAL)
        # What a slot's owner has: its symbol, its frequency, whether it is the sentinel; and slot − start(owner).
        self.symbol = np.zeros(shape, np.int64)
        self.frequency = np.zeros(shape, np.int64)
        self.sentinel = np.zeros(shape, bool)
        self.offset = np.zeros(shape, np.int64)
        for t, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
            frequencies = reader.array("<u2", int(size)).astype(np.int64)
            require(frequencies.min() >= 1 and frequencies.sum() == PROBABILITY_TOTAL, "frequencies do not sum to 2^14")
            require(size == 1 or first + size - 2 <= 32767, "a table's symbols leave int16")
            starts = np.cumsum(frequencies) - frequencies
            owner = np.repeat(np.arange(size), frequencies)
            self.symbol[t] = first + owner
            self.frequency[t] = frequencies[owner]
            self.sentinel[t] = owner == size - 1
            self.offset[t] = np.arange(PROBABILITY_TOTAL) - starts[owner]
        require(reader.left == 0, "bytes after the table set")
        require(not self.skip or (sizes[0] == 1 and firsts[0] == 0), "table 0 of a set with skip codes something")


# ------------------------------------------------------------------------------------------------------------------
# Section 5: the payload of a tile
# ------------------------------------------------------------------------------------------------------------------


class Payload:
    """5: a payload's streams. Call `decode` once a pass, with the same object, and `finish` after the last one."""

    def __init__(self, data: bytes) -> None:
        # 5.1
        reader = Reader(data)
        log2_lanes = reader.u8()
        require(log2_lanes <= MAX_LANES_LOG2, "impossible number of lanes")
        self.lanes = 1 << log2_lanes
        self.streams = self.varint(reader)
        require(1 <= self.streams <= MAX_STREAMS, "impossible number of streams")
        self.escape_counts = [self.varint(reader) for _ in range(self.streams)]
        word_counts = [self.varint(reader) for _ in range(self.streams - 1)]
        states = reader.array("<u4", self.streams * self.lanes).astype(np.int64)
        require(bool((states >= STATE_LOW).all()), "a starting state is too small")
        self.states = states.reshape(self.streams, self.lanes)

        require(reader.left % 2 == 0, "an odd byte remains")
        last = reader.left // 2 - sum(word_counts) - sum(self.escape_counts)
        require(last >= 0, "the last stream has a negative number of words")
        self.word_counts = [*word_counts, last]
        self.words = [reader.array("<u2", count).astype(np.int64) for count in self.word_counts]
        self.escapes = [reader.array("<i2", count).astype(np.int64) for count in self.escape_counts]
        self.word_cursors = [0] * self.streams
        self.escape_cursors = [0] * self.streams

    @staticmethod
    def varint(reader: Reader) -> int:
        value = reader.varint(PAYLOAD_VARINT)
        require(value < 2**32, "a varint is too large")
        return value

    def decode(self, tables: TableSet, indexes: np.ndarray) -> np.ndarray:
        """5.2: one pass. `indexes` [P, channels] name each symbol's table; returns the symbols, of the same shape."""
        positions = len(indexes)
        symbols = np.zeros(indexes.shape, np.int64)
        for s in range(self.streams):
            begin, end = s * positions // self.streams, (s + 1) * positions // self.streams
            own = indexes[begin:end].reshape(-1)
            coded = np.flatnonzero(own) if tables.skip else np.arange(own.size)
            values = np.zeros(own.size, np.int64)
            for j in range(0, coded.size, self.lanes):
                step = coded[j : j + self.lanes]
                values[step] = self.step(s, tables, own[step])
            symbols[begin:end] = values.reshape(end - begin, indexes.shape[1])
        return symbols

    def step(self, s: int, tables: TableSet, indexes: np.ndarray) -> np.ndarray:
        """5.3: one symbol of each of the first lanes of stream s."""
        x = self.states[s, : indexes.size]  # a view: what is written to it stays
        slot = x & (PROBABILITY_TOTAL - 1)
        symbols = tables.symbol[indexes, slot]
        x[:] = tables.frequency[indexes, slot] * (x >> PROBABILITY_BITS) + tables.offset[indexes, slot]

        escaped = tables.sentinel[indexes, slot]
        if escaped.any():
            symbols[escaped] = self.read(self.escapes[s], self.escape_cursors, s, np.count_nonzero(escaped))
        low = x < STATE_LOW
        if low.any():
            x[low] = x[low] << WORD_BITS | self.read(self.words[s], self.word_cursors, s, np.count_nonzero(low))
        return symbols

    @staticmethod
    def read(source: np.ndarray, cursors: list[int], s: int, count: int) -> np.ndarray:
        begin = cursors[s]
        cursors[s] += count
        require(cursors[s] <= source.size, "a stream's words or escapes are used up")
        return source[begin : cursors[s]]

    def finish(self) -> None:
        """5.4: after the last pass."""
        require(bool((self.states == STATE_LOW).all()), "a lane does not end in the state 2^16")
        require(self.word_cursors == self.word_counts, "words are left over")
        require(self.escape_cursors == self.escape_counts, "escapes are left over")


# ------------------------------------------------------------------------------------------------------------------
# Section 3: models
# ------------------------------------------------------------------------------------------------------------------

DTYPES = {  # safetensors' name: (NumPy's, the one that the identity hashes)
    "I8": ("i1", "torch.int8"),
    "U8": ("u1", "torch.uint8"),
    "I32": ("<i4", "torch.int32"),
    "F16": ("<f2", "torch.float16"),
    "F32": ("<f4", "torch.float32"),
}


class Layer(NamedTuple):
    weight: np.ndarray  # [outputs, inputs]
    bias: np.ndarray  # [outputs], or [100, outputs]
    shift: np.ndarray  # [outputs]


class Model:
    """3: a released model: its table sets, its shape, and the integer layers of its entropy side."""

    def __init__(self, path: Path, gaussian: bytes) -> None:
        # 3.1
        reader = Reader(path.read_bytes())
        (size,) = struct.unpack("<Q", reader.take(8))
        description = json.loads(reader.take(size))
        data = reader.take(reader.left)
        metadata = description.pop("__metadata__")
        self.config = json.loads(metadata["config"])

        # 3.3
        digest = hashlib.sha256(metadata["config"].encode())
        digest.update(GAUSSIAN_SHA256.encode())
        tensors = {}
        for name in sorted(description, key=str.encode):
            entry = description[name]
            dtype, hashed = DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
            if not name.startswith(("g_a.", "h_a.", "gain", "prior.")):
                digest.update(f"{name} {hashed} {entry['shape']}".encode() + data[begin:end])
        self.identity = digest.digest()[:6].hex()
        require(path.stem == f"{metadata['name']}-{self.identity}", f"{path.name} is not what its name says")

        # 4
        require(hashlib.sha256(gaussian).hexdigest() == GAUSSIAN_SHA256, "other Gaussian tables")
        self.gaussian = TableSet(gaussian)
        require(self.gaussian.skip and self.gaussian.count == GAUSSIAN_COUNT, "other Gaussian tables")
        self.latents = TableSet(tensors["latent_tables"].tobytes()) if "latent_tables" in tensors else self.gaussian
        require(self.latents.skip and self.latents.count == GAUSSIAN_COUNT, "other latent tables")
        self.prior = TableSet(tensors["prior_tables"].tobytes())
        require(not self.prior.skip and self.prior.count == self.config["hyper_latents"], "other prior tables")

        # 3.2
        self.groups = self.config.get("groups") or [self.config["latents"]]
        require(sum(self.groups) == self.config["latents"], "groups that are not all latents")
        self.context_shift = tensors["entropy.context_shift"].astype(np.int64)
        self.layers: dict[str, Layer] = {}
        for name in (
            *("h_s.head", "h_s.up1", "h_s.middle", "h_s.up2", "h_s.tail"),
            *("g_cm", "g_ep.first", "g_ep.second", "g_ep.means", "g_ep.indexes"),
            *(
                f"{kind}.{k}"
                for k in range(1, len(self.groups))
                for kind in ("g_ch", "g_cm", "g_ep.first", "g_ep.second", "g_ep.means", "g_ep.indexes")
            ),
        ):
            parts = (tensors[f"entropy.{name}.{part}"].astype(np.int64) for part in ("weight", "bias", "shift"))
            layer = Layer(*parts)
            require(bool((layer.shift >= 1).all() and (abs(layer.weight) <= WEIGHT_MAX).all()), f"{name}: weights")
            bias = abs(np.atleast_2d(layer.bias)).max(0)
            greatest = ACTIVATION_MAX * abs(layer.weight).sum(1) + bias + (1 << (layer.shift - 1))
            require(bool((greatest < EXACT_LIMIT).all()), f"{name}: an accumulator could be inexact")
            self.layers[name] = layer

    # Section 6. Arrays of integers are int64 here, and every value fits in 32 bits.

    def apply(self, name: str, x: np.ndarray, low: int, high: int, quality: int | None = None) -> np.ndarray:
        """6.1: a layer on x [..., inputs]; `quality` picks the bias row where there are several."""
        layer = self.layers[name]
        bias = layer.bias if quality is None else layer.bias[quality - 1]
        # The accumulator stays below 2^24. Of NumPy's ways to multiply integer matrices this is the fastest.
        acc = np.einsum("...i,oi->...o", x.astype(np.int32), layer.weight.astype(np.int32)).astype(np.int64)
        return np.clip((acc + bias + (1 << (layer.shift - 1))) >> layer.shift, low, high)

    def hyper_synthesis(self, hyper: np.ndarray) -> np.ndarray:
        """6.3, without the cut: [rows, columns, Z] to psi [4 · rows, 4 · columns, F]."""
        x = np.clip(hyper, -ACTIVATION_MAX, ACTIVATION_MAX)
        x = self.apply("h_s.head", neighbours(x), 0, ACTIVATION_MAX)
        x = shuffle(self.apply("h_s.up1", x, 0, ACTIVATION_MAX))
        x = self.apply("h_s.middle", neighbours(x), 0, ACTIVATION_MAX)
        x = shuffle(self.apply("h_s.up2", x, 0, ACTIVATION_MAX))
        return self.apply("h_s.tail", neighbours(x), -ACTIVATION_MAX, ACTIVATION_MAX)

    def of_group(self, kind: str, group: int) -> str:
        """3.2: the layer's name."""
        return kind if group == 0 else f"{kind}.{group}"

    def parameters(self, psi: np.ndarray, phi: np.ndarray, quality: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """6.4: psi [P, F] and phi [P, G] to means and scale indexes, both [P, m]."""
        first, second, means, indexes = (
            self.of_group(f"g_ep.{kind}", group) for kind in ("first", "second", "means", "indexes")
        )
        hidden = self.apply(first, np.concatenate([psi, phi], axis=1), 0, ACTIVATION_MAX, quality)
        hidden = self.apply(second, hidden, 0, ACTIVATION_MAX)
        return self.apply(means, hidden, MEAN_MIN, MEAN_MAX), self.apply(indexes, hidden, 0, GAUSSIAN_COUNT - 1)

    def context(self, latents: np.ndarray, positions: np.ndarray, group: int, of_anchors: bool) -> np.ndarray:
        """6.5 and 6.6: phi [P, G] of the anchors or the non-anchors at `positions`, from latents [h, w, M] of which the
        earlier groups are known and, for non-anchors, the group's anchors."""
        shift, begin = self.context_shift, sum(self.groups[:group])
        scaled = np.clip((latents + (1 << (shift - 1))) >> shift, -ACTIVATION_MAX, ACTIVATION_MAX)
        row, column = positions.T
        before = scaled[row, column, :begin]
        if of_anchors:
            if group == 0:
                return np.zeros((len(positions), self.config["context_features"]), np.int64)
            return self.apply(self.of_group("g_ch", group), before, -ACTIVATION_MAX, ACTIVATION_MAX)
        padded = np.pad(scaled[..., begin : begin + self.groups[group]], ((2, 2), (2, 2), (0, 0)))
        taps = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]
        seen = np.concatenate([*(padded[row + 2 + dy, column + 2 + dx] for dy, dx in taps), before], axis=1)
        return self.apply(self.of_group("g_cm", group), seen, -ACTIVATION_MAX, ACTIVATION_MAX)

    def decode_tile(self, payload: Payload, height: int, width: int, quality: int) -> np.ndarray:
        """5 and 6: a tile's payload to its latents, int64 [height, width, M] in 1/16."""
        rows, columns, channels = ceil_div(height, HYPER_STRIDE), ceil_div(width, HYPER_STRIDE), self.prior.count

        # Pass 0: the table of a hyper latent is its channel's.
        indexes = np.tile(np.arange(channels), (rows * columns, 1))
        hyper = payload.decode(self.prior, indexes).reshape(rows, columns, channels)
        psi = self.hyper_synthesis(hyper)[:height, :width]

        # Of each group the anchors, then the non-anchors. `context` reads what is known by then: it reads the group's
        # own latents at odd distances only, so the non-anchors' zeros are never seen.
        latents = np.zeros((height, width, self.config["latents"]), np.int64)
        for group, count in enumerate(self.groups):
            begin = sum(self.groups[:group])
            for half, positions in enumerate(checkerboard(height, width)):
                place = tuple(positions.T)
                phi = self.context(latents, positions, group, half == 0)
                means, indexes = self.parameters(psi[place], phi, quality, group)
                symbols = payload.decode(self.latents, indexes)
                latents[(*place, slice(begin, begin + count))] = (symbols << MEAN_BITS) + means
        payload.finish()
        return latents


def neighbours(x: np.ndarray) -> np.ndarray:
    """6.1: what a 3×3 layer sees, [rows, columns, 9 · channels], with zeros outside."""
    rows, columns, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)], axis=2)


def shuffle(x: np.ndarray) -> np.ndarray:
    """6.2: [rows, columns, 4c] to [2 · rows, 2 · columns, c]."""
    rows, columns, channels = x.shape
    x = x.reshape(rows, columns, channels // 4, 2, 2)  # r, q, k, i, j
    return x.transpose(0, 3, 1, 4, 2).reshape(2 * rows, 2 * columns, channels // 4)


@lru_cache
def load_model(identity: str, weights: Path, gaussian: Path) -> Model:
    """3.4: the model that bears this identity."""
    for name, identities in json.loads((weights / "index.json").read_text()).items():
        if identity in identities:
            return Model(weights / f"{name}-{identity}.safetensors", gaussian.read_bytes())
    raise FormatError(f"no model has the identity {identity}")


def decode_latents(data: bytes, weights: Path, gaussian: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A .fic file to its header's values and its latents, int32 [⌈H/16⌉, ⌈W/16⌉, M] in 1/16.

    `weights` is the folder of the released models, `gaussian` the path of `gaussian64.bin`.
    """
    header, tiles = read_container(data)
    model = load_model(header["identity"], weights, gaussian)
    rows = tile_edges(ceil_div(header["height"], LATENT_STRIDE))
    columns = tile_edges(ceil_div(header["width"], LATENT_STRIDE))
    latents = np.zeros((rows[-1], columns[-1], model.config["latents"]), np.int32)
    places = [(top, left) for top in range(len(rows) - 1) for left in range(len(columns) - 1)]
    for (r, c), tile in zip(places, tiles, strict=True):
        if tile.lossless:
            continue
        height, width = rows[r + 1] - rows[r], columns[c + 1] - columns[c]
        decoded = model.decode_tile(Payload(tile.payload), height, width, header["quality"])
        latents[rows[r] : rows[r + 1], columns[c] : columns[c + 1]] = decoded
    extend(latents, rows, columns, {place: tile.lossless for place, tile in zip(places, tiles, strict=True)})
    return header, latents


# ------------------------------------------------------------------------------------------------------------------
# Section 7.1 and 7.5: lossless tiles
# ------------------------------------------------------------------------------------------------------------------


def extend(latents: np.ndarray, rows: list[int], columns: list[int], lossless: dict[tuple[int, int], bool]) -> None:
    """7.1: latents [h, w, M] go on into the lossless tiles, as far as the tiles beside them see."""

    def coded(r: int, c: int) -> bool:
        return (r, c) in lossless and not lossless[r, c]

    for r, c in [place for place, is_lossless in lossless.items() if is_lossless]:
        top, bottom, left, right = rows[r], rows[r + 1], columns[c], columns[c + 1]
        for dy, inner_rows, outer_row in ((-1, slice(top, top + 3), top - 1), (1, slice(bottom - 3, bottom), bottom)):
            for dx, inner, outer in ((-1, slice(left, left + 3), left - 1), (1, slice(right - 3, right), right)):
                if coded(r + dy, c + dx):
                    latents[inner_rows, inner] = latents[outer_row, outer]
        for dy, inner_rows, outer_row in ((-1, slice(top, top + 3), top - 1), (1, slice(bottom - 3, bottom), bottom)):
            if coded(r + dy, c):
                latents[inner_rows, left:right] = latents[outer_row, left:right]
        for dx, inner, outer in ((-1, slice(left, left + 3), left - 1), (1, slice(right - 3, right), right)):
            if coded(r, c + dx):
                latents[top:bottom, inner] = latents[top:bottom, outer][:, None]


def webp_of(tile: Tile, height: int, width: int) -> bytes:
    """7.5: a lossless tile as a WebP file of its pixels' height and width."""
    image = b"\x2f" + struct.pack("<I", (width - 1) + ((height - 1) << 14)) + tile.payload
    padded = image + bytes(len(image) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(padded)) + b"WEBPVP8L" + struct.pack("<I", len(image)) + padded
