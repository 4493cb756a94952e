"""The coder as PyTorch operators: what `torch.compile`, fake tensors and graph capture see.

Each is dispatched by the device of its tensors, to the CPU coder or to the CUDA one. Tables go by their identity,
decoders by a number, a SymInt, so that a compiled function is not compiled anew for every decoder. A decoder's `state`
is a tensor that the operator says it changes, so that no compiler reorders the passes of a decoder or drops one. What
they decode is written to tensors that the caller gives.

An operator's schema is flat: the functions here take its last arguments together, and name them by a NamedTuple.
`rans_encode` takes the passes of all tiles one after the other. `parameters` has one tensor for an indexed pass, its
indexes, and three for a pass of mixtures, its weights, means and scales; the latter's name in `tables` is empty.
"""

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _cpu, _cuda
from .passes import AnyPass, EncodeOptions, Mixture, MixturePass, Pass, Reconstruction
from .tables import find_tables

AnyDecoder = _cpu.CpuDecoder | _cuda.CudaDecoder

_numbers = itertools.count(1)
_decoders: weakref.WeakValueDictionary[int, AnyDecoder] = weakref.WeakValueDictionary()


def register(decoder: AnyDecoder) -> int:
    """The number under which operators find a decoder, as long as it exists."""
    number = next(_numbers)
    _decoders[number] = decoder
    return number


def _decoder(number: int) -> AnyDecoder:
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


def encode_arguments(passes: Sequence[AnyPass]) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """The first three arguments of `rans_encode`. The tables must live as long as they are in use."""
    parameters: list[Tensor] = []
    names = []
    for item in passes:
        parameters += item[1:] if isinstance(item, MixturePass) else [item.indexes]
        names.append("" if isinstance(item, MixturePass) else item.tables.identity)
    return [item.symbols for item in passes], parameters, names


def _tiles(
    symbols: Sequence[Tensor], parameters: Sequence[Tensor], tables: Sequence[str], begins: Sequence[int]
) -> list[list[AnyPass]]:
    left = iter(parameters)
    passes = [
        Pass(values, next(left), find_tables(name)) if name else MixturePass(values, *itertools.islice(left, 3))
        for values, name in zip(symbols, tables, strict=True)
    ]
    return [passes[begin:end] for begin, end in itertools.pairwise(begins)]


@torch.library.impl(_library, "rans_encode", "CPU")
def _encode_cpu(
    symbols: list[Tensor], parameters: list[Tensor], tables: list[str], begins: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    if _cuda.coder_target(torch.device("cpu")) is not None:
        return _encode_cuda(symbols, parameters, tables, begins, *options)
    payloads = _cpu.encode(_tiles(symbols, parameters, tables, begins), EncodeOptions(*options))
    ends = torch.tensor([0, *itertools.accumulate(map(len, payloads))], dtype=torch.int64, device="cpu")
    data = np.frombuffer(b"".join(payloads), dtype=np.uint8)
    return torch.from_numpy(data.copy()), torch.stack([ends[:-1], ends[1:]], dim=1)


@torch.library.impl(_library, "rans_encode", "CUDA")
def _encode_cuda(
    symbols: list[Tensor], parameters: list[Tensor], tables: list[str], begins: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    target = _cuda.coder_target(symbols[0].device)
    assert target is not None  # PyTorch chose this function by the device
    return _cuda.encode(_tiles(symbols, parameters, tables, begins), EncodeOptions(*options), target)


@torch.library.register_fake("fastcodec::rans_encode")
def _encode_fake(
    symbols: list[Tensor], parameters: list[Tensor], tables: list[str], begins: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    bounds = torch.empty(len(begins) - 1, 2, dtype=torch.int64, device="cpu")
    return symbols[0].new_empty(size, dtype=torch.uint8), bounds


def _decode(state: Tensor, decoder: int, indexes: list[Tensor], tables: str, symbols: list[Tensor]) -> None:
    _decoder(decoder).decode(indexes, find_tables(tables), symbols)


def _decode_mixtures(state: Tensor, decoder: int, *tensors: list[Tensor]) -> None:
    *parameters, symbols = tensors
    _decoder(decoder).decode_mixtures([Mixture(*mixture) for mixture in zip(*parameters, strict=True)], symbols)


def _reconstruct(state: Tensor, decoder: int, indexes: list[Tensor], tables: str, *wanted: Any) -> None:
    _decoder(decoder).reconstruct(indexes, find_tables(tables), Reconstruction(*wanted))


def _returns_nothing(*arguments: Any) -> None:
    """What a fake of these does: what they decode is written to tensors that are there."""


for _name, _function in (("decode", _decode), ("decode_mixtures", _decode_mixtures), ("reconstruct", _reconstruct)):
    for _device in ("CPU", "CUDA"):
        _library.impl(f"rans_{_name}", _function, _device)
    torch.library.register_fake(f"fastcodec::rans_{_name}", _returns_nothing)


encode = torch.ops.fastcodec.rans_encode.default
decode = torch.ops.fastcodec.rans_decode.default
decode_mixtures = torch.ops.fastcodec.rans_decode_mixtures.default
reconstruct = torch.ops.fastcodec.rans_reconstruct.default
