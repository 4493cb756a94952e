"""Other entropy coders for GPUs: torch_ans, and nvCOMP's ANS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcodec.rans import TableSet

from ._subject import same
from ._timing import Machine


class AbsentError(Exception):
    """A peer is not installed, or not for GPUs."""


class Coded(NamedTuple):
    """What a peer gets: symbols and indexes of equal shape on the GPU, and the tables of the indexes."""

    symbols: Tensor
    indexes: Tensor
    tables: TableSet


class Peer(NamedTuple):
    """Its two calls, its bytes, and what it was given."""

    encode: Callable[[], object]
    decode: Callable[[], object]
    byte_count: int
    coded: str


def torch_ans(machine: Machine, batch: Coded) -> Peer:
    """torch_ans's fastest coder: 32 interleaved states a stream, a stream a warp, inverse tables."""
    try:
        from torch_ans import utils
    except ImportError as error:
        raise AbsentError("not installed") from error
    # Its inverse tables need alphabets of one size: that of the widest table in use, at the centre of each.
    tables, used = batch.tables, int(batch.indexes.max()) + 1
    reach = max(-tables.first_symbol(i) for i in range(used))
    frequencies = torch.zeros(used, 2 * reach + 1)
    for i in range(used):
        values = torch.from_numpy(tables.frequencies(i)[:-1].astype(np.float32))
        begin = reach + tables.first_symbol(i)
        frequencies[i, begin : begin + len(values)] = values
    sizes = torch.full((used,), 2 * reach + 1, dtype=torch.int32)
    firsts = torch.full((used,), -reach, dtype=torch.int32)
    rows = max(1, min(machine.multiprocessors * 64, batch.symbols.numel() // 64))  # a warp each: all a GPU holds
    symbols, indexes = (t.reshape(-1).int() for t in (batch.symbols, batch.indexes))
    symbols, indexes = (t[: t.numel() // rows * rows].view(rows, -1) for t in (symbols, indexes))
    peer = utils.TorchANSInterface(
        impl="rans32_16",
        freq_precision=14,
        num_parallel_states=rows,
        num_interleaves=32,
        inverse_cdf_precision="auto",
        device=str(machine.device),
    )
    peer.init_params(frequencies.to(machine.device), sizes.to(machine.device), firsts.to(machine.device))
    stream = peer.encode(symbols, dist_indexes=indexes)
    same(peer.decode(stream.clone(), dist_indexes=indexes).to(symbols.dtype), symbols, "torch_ans's symbols")
    copies = [stream.clone() for _ in range(32)]  # decoding changes the stream
    return Peer(
        lambda: peer.encode(symbols, dist_indexes=indexes),
        lambda: peer.decode(copies.pop(), dist_indexes=indexes),
        int(stream[:, 0].sum()),
        "the same symbols and indexes, tables widened to one alphabet",
    )


def nvcomp_ans(machine: Machine, batch: Coded) -> Peer:
    """nvCOMP's ANS: bytes, one distribution for each chunk of 64 KiB. It gets the symbols' low bytes."""
    try:
        from nvidia import nvcomp
    except ImportError as error:
        raise AbsentError("not installed") from error
    data = batch.symbols.reshape(-1).to(torch.uint8)
    stream = torch.cuda.current_stream(machine.device).cuda_stream
    peer = nvcomp.Codec(algorithm="ANS", device_id=machine.device.index, cuda_stream=stream)
    array = nvcomp.as_array(data)
    compressed = peer.encode(array)
    machine.synchronize()
    decoded = torch.as_tensor(peer.decode(compressed), device=machine.device).view(torch.uint8).reshape(-1)
    same(decoded, data, "nvCOMP's bytes")
    return Peer(
        lambda: peer.encode(array),
        lambda: peer.decode(compressed),
        int(compressed.buffer_size),
        "the symbols' low bytes, one distribution a chunk: no indexes, so more bits",
    )


PEERS: dict[str, Callable[[Machine, Coded], Peer]] = {"torch_ans": torch_ans, "nvCOMP ANS": nvcomp_ans}


def seconds(machine: Machine, call: Callable[[], object], repeats: int) -> float:
    """Median time of a peer's call on the GPU, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        machine.hold(2e-3)  # their Python takes longer than a launch
        times.append(machine.enclosed(call))
    return float(np.median(times[1:]))
