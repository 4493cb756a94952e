"""The coder as PyTorch operators: what `torch.compile`, fake tensors and graph capture see.

Each is dispatched by the device of its tensors, to the CPU coder or to the CUDA one. Tables go by their identity (see
`TableSet.named`), decoders by a number; a decoder's `state` is a tensor that the operator says it changes, so that no
compiler reorders the passes of a decoder or drops one. What they decode is written to tensors that the caller gives.
"""

import itertools
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _cpu, _cuda
from .passes import Pass
from .tables import TableSet

_numbers = itertools.count(1)
_decoders: weakref.WeakValueDictionary[int, "_cpu.Decoder | _cuda.Decoder"] = weakref.WeakValueDictionary()


def register(decoder: "_cpu.Decoder | _cuda.Decoder") -> int:
    """The number under which operators find a decoder, as long as it exists."""
    number = next(_numbers)
    _decoders[number] = decoder
    return number


def _decoder(number: int) -> "_cpu.Decoder | _cuda.Decoder":
    if (found := _decoders.get(number)) is None:
        raise LookupError(f"no decoder {number} in this process: keep the Decoder while it is in use")
    return found


_library = torch.library.Library("fastcodec", "DEF")
_library.define(
    "rans_encode(Tensor[] symbols, Tensor[] indexes, str[] tables, int[] begins, str preset, int lanes, int streams, "
    "int threads, str isa) -> (Tensor payloads, Tensor bounds)"
)
_library.define("rans_decode(Tensor(a!) state, int decoder, Tensor[] indexes, str tables, Tensor(b!)[] symbols) -> ()")
_library.define(
    "rans_reconstruct(Tensor(a!) state, int decoder, Tensor[] indexes, str tables, Tensor[] means, int mean_bits, "
    "Tensor? gain, Tensor(b!)[] values, Tensor(c!)[] latents, bool anchors) -> ()"
)


def _tiles(
    symbols: Sequence[Tensor], indexes: Sequence[Tensor], tables: Sequence[str], begins: Sequence[int]
) -> list[list[Pass]]:
    passes = [Pass(s, i, TableSet.find(t)) for s, i, t in zip(symbols, indexes, tables, strict=True)]
    return [passes[begin:end] for begin, end in itertools.pairwise(begins)]


@torch.library.impl(_library, "rans_encode", "CPU")
def _encode_cpu(symbols, indexes, tables, begins, preset, lanes, streams, threads, isa):
    tiles = _tiles(symbols, indexes, tables, begins)
    if (simulator := _cuda.simulator()) is not None:
        return _cuda.encode(tiles, preset, lanes, streams, simulator)
    return _cpu.encode(tiles, preset, lanes, streams, threads or None, isa or None)


@torch.library.impl(_library, "rans_encode", "CUDA")
def _encode_cuda(symbols, indexes, tables, begins, preset, lanes, streams, threads, isa):
    return _cuda.encode(
        _tiles(symbols, indexes, tables, begins), preset, lanes, streams, _cuda.target(indexes[0].device)
    )


@torch.library.register_fake("fastcodec::rans_encode")
def _encode_fake(symbols, indexes, tables, begins, preset, lanes, streams, threads, isa):
    size = torch.library.get_ctx().new_dynamic_size()
    return indexes[0].new_empty(size), torch.empty(len(begins) - 1, 2, dtype=torch.int64)


def _decode(state, decoder, indexes, tables, symbols):
    _decoder(decoder).decode(indexes, TableSet.find(tables), symbols)


def _reconstruct(state, decoder, indexes, tables, means, mean_bits, gain, values, latents, anchors):
    _decoder(decoder).reconstruct(indexes, TableSet.find(tables), means, mean_bits, gain, values, latents, anchors)


for _device in ("CPU", "CUDA"):
    _library.impl("rans_decode", _decode, _device)
    _library.impl("rans_reconstruct", _reconstruct, _device)


@torch.library.register_fake("fastcodec::rans_decode")
def _decode_fake(state, decoder, indexes, tables, symbols):
    return None


@torch.library.register_fake("fastcodec::rans_reconstruct")
def _reconstruct_fake(state, decoder, indexes, tables, means, mean_bits, gain, values, latents, anchors):
    return None


encode = torch.ops.fastcodec.rans_encode.default
decode = torch.ops.fastcodec.rans_decode.default
reconstruct = torch.ops.fastcodec.rans_reconstruct.default
