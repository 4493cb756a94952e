"""The coder as PyTorch operators: what `torch.compile`, fake tensors and graph capture see.

Each is dispatched by the device of its tensors, to the CPU coder or to the CUDA one. Tables go by their identity,
decoders by a number, a SymInt, so that a compiled function is not compiled anew for every decoder. A decoder's `state`
is a tensor that the operator says it changes, so that no compiler reorders the passes of a decoder or drops one. What
they decode is written to tensors that the caller gives.

`rans_encode` takes the passes of all tiles one after the other. `parameters` has one tensor for an indexed pass, its
indexes, and three for a pass of mixtures, its weights, means and scales; the latter's name in `tables` is empty.
"""

import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import _cpu, _cuda
from .passes import MixturePass, Pass
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
    "rans_encode(Tensor[] symbols, Tensor[] parameters, str[] tables, int[] begins, str preset, int lanes, "
    "int streams, int threads, str isa) -> (Tensor payloads, Tensor bounds)"
)
_library.define(
    "rans_decode(Tensor(a!) state, SymInt decoder, Tensor[] indexes, str tables, Tensor(b!)[] symbols) -> ()"
)
_library.define(
    "rans_decode_mixtures(Tensor(a!) state, SymInt decoder, Tensor[] weights, Tensor[] means, Tensor[] scales, "
    "Tensor(b!)[] symbols) -> ()"
)
_library.define(
    "rans_reconstruct(Tensor(a!) state, SymInt decoder, Tensor[] indexes, str tables, Tensor[] means, int mean_bits, "
    "Tensor? gain, Tensor(b!)[] values, Tensor(c!)[] latents, bool anchors) -> ()"
)


def encode_arguments(passes: Sequence[Pass | MixturePass]) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """The first three arguments of `rans_encode`. The tables must live as long as they are in use."""
    parameters, names = [], []
    for item in passes:
        parameters += item[1:] if isinstance(item, MixturePass) else [item.indexes]
        names.append("" if isinstance(item, MixturePass) else item.tables.identity)
    return [item.symbols for item in passes], parameters, names


def _tiles(
    symbols: Sequence[Tensor], parameters: Sequence[Tensor], tables: Sequence[str], begins: Sequence[int]
) -> list[list[Pass | MixturePass]]:
    left = iter(parameters)
    passes = [
        Pass(values, next(left), TableSet._find(name)) if name else MixturePass(values, *itertools.islice(left, 3))
        for values, name in zip(symbols, tables, strict=True)
    ]
    return [passes[begin:end] for begin, end in itertools.pairwise(begins)]


@torch.library.impl(_library, "rans_encode", "CPU")
def _encode_cpu(symbols, parameters, tables, begins, preset, lanes, streams, threads, isa):
    tiles = _tiles(symbols, parameters, tables, begins)
    if (simulator := _cuda.simulator()) is not None:
        return _cuda.encode(tiles, preset, lanes, streams, simulator)
    payloads = _cpu.encode(tiles, preset, lanes, streams, threads or None, isa or None)
    ends = torch.tensor([0, *itertools.accumulate(map(len, payloads))], dtype=torch.int64, device="cpu")
    data = np.frombuffer(b"".join(payloads), dtype=np.uint8)
    return torch.from_numpy(data.copy()), torch.stack([ends[:-1], ends[1:]], dim=1)


@torch.library.impl(_library, "rans_encode", "CUDA")
def _encode_cuda(symbols, parameters, tables, begins, preset, lanes, streams, threads, isa):
    tiles = _tiles(symbols, parameters, tables, begins)
    return _cuda.encode(tiles, preset, lanes, streams, _cuda.target(symbols[0].device))


@torch.library.register_fake("fastcodec::rans_encode")
def _encode_fake(symbols, parameters, tables, begins, preset, lanes, streams, threads, isa):
    size = torch.library.get_ctx().new_dynamic_size()
    return symbols[0].new_empty(size, dtype=torch.uint8), torch.empty(
        len(begins) - 1, 2, dtype=torch.int64, device="cpu"
    )


def _decode(state, decoder, indexes, tables, symbols):
    _decoder(decoder).decode(indexes, TableSet._find(tables), symbols)


def _decode_mixtures(state, decoder, weights, means, scales, symbols):
    _decoder(decoder).decode_mixtures(weights, means, scales, symbols)


def _reconstruct(state, decoder, indexes, tables, means, mean_bits, gain, values, latents, anchors):
    _decoder(decoder).reconstruct(indexes, TableSet._find(tables), means, mean_bits, gain, values, latents, anchors)


for _device in ("CPU", "CUDA"):
    _library.impl("rans_decode", _decode, _device)
    _library.impl("rans_decode_mixtures", _decode_mixtures, _device)
    _library.impl("rans_reconstruct", _reconstruct, _device)


@torch.library.register_fake("fastcodec::rans_decode")
def _decode_fake(state, decoder, indexes, tables, symbols):
    return None


@torch.library.register_fake("fastcodec::rans_decode_mixtures")
def _decode_mixtures_fake(state, decoder, weights, means, scales, symbols):
    return None


@torch.library.register_fake("fastcodec::rans_reconstruct")
def _reconstruct_fake(state, decoder, indexes, tables, means, mean_bits, gain, values, latents, anchors):
    return None


encode = torch.ops.fastcodec.rans_encode.default
decode = torch.ops.fastcodec.rans_decode.default
decode_mixtures = torch.ops.fastcodec.rans_decode_mixtures.default
reconstruct = torch.ops.fastcodec.rans_reconstruct.default
