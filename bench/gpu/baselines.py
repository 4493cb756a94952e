"""What the fused and the resident parts replace: the same decode in plain PyTorch, with the entropy coder on the host.

Symbols go to the GPU once a pass, and the host waits for the indexes of all but the first, as in other codecs. The
integer networks run in float32, which is exact, with TF32, and in half precision, which is what a network would take
that need not be exact; the synthesis in half precision and channels last.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from fastcodec import container
from fastcodec.codec import Codec
from fastcodec.constants import MIN_QUALITY
from fastcodec.geometry import hyper_size
from fastcodec.kernels import checkerboard
from fastcodec.kernels.integer_layer import IntegerLayer
from fastcodec.models.swift.entropy_model import Arithmetic, EntropyModel, Parameters, reconstruct
from fastcodec.models.swift.network import quality_position
from fastcodec.rans import Decoder, TableSet

from ..common import released
from ..stages import profiled
from ._subject import Subject, near
from ._timing import spread, wall_times
from .latency import by_graph, by_launches, stages_us

GOAL_TIMES = 3.0  # as fast as exact plain PyTorch are the parameters
NETWORK_STAGES = ("hyper", "parameters", "synthesis")

Precision = Literal["float32", "tf32", "float16"]


class _HalfLayer(NamedTuple):
    weight: Tensor
    bias: Tensor


@cache
def _half(layer: IntegerLayer) -> _HalfLayer:
    """An integer layer as half precision has it: sums are scaled by 2^-shift beforehand, and not rounded."""
    scale = torch.exp2(-layer.shift.float())
    return _HalfLayer((layer.weight * scale[:, None]).half().T, (layer.bias * scale).half())


def _half_linear(x: Tensor, layer: IntegerLayer, row: int | None = None) -> Tensor:
    half = _half(layer)
    bias = half.bias if row is None else half.bias[row]
    out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), half.weight).clamp_(layer.low, layer.high)
    return out.view(*x.shape[:-1], out.shape[-1])


def _half_shift(x: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    return (x * torch.exp2(-shift.float()).half()).clamp_(low, high)


def plain_network(codec: Codec, precision: Precision) -> EntropyModel:
    """h_s, g_ch, g_cm and g_ep on the codec's device, a gather and a matrix product a layer."""
    entropy = released(codec).entropy
    tensors = {"context_shift": entropy.context_shift.to(codec.device)}
    for name, layer in entropy.layers.items():
        for part in ("weight", "bias", "shift"):
            tensors[f"{name}.{part}"] = getattr(layer, part).to(codec.device)
    network = EntropyModel(tensors, "float32")
    if precision == "float16":
        network.arithmetic = Arithmetic(torch.float16, _half_linear, _half_shift)
    return network


@contextmanager
def _matrix_products(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PlainDecoder:
    """Decodes files of one size and quality, of a tile each.

    given: what another one's `values` hold; then the coder is left out, so that a network that is not exact, whose
    tables are not the encoder's, runs through. After `decode`, `values` are hyper latents and then each pass's latents
    in 1/16, int32 [files, positions, channels]; `parameters` those of each pass; `pixels` uint8 [files, height, width,
    3].
    """

    def __init__(
        self, codec: Codec, files: list[bytes], precision: Precision = "float32", given: Sequence[Tensor] | None = None
    ):
        parsed, self._codec, self._precision, self._given = [container.read(f) for f in files], codec, precision, given
        header, device = parsed[0].header, codec.device
        [tile] = header.grid.tiles()
        self._payloads = [file.tile(0).payload for file in parsed]
        self._size, self._pixels = (tile.height, tile.width), (header.height, header.width)
        self._quality = header.quality
        self._network = plain_network(codec, precision)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._g_s = copy.deepcopy(released(codec).g_s).to(device, dtype)
        for weight in self._g_s.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._gain = (released(codec).inverse_gain[header.quality - MIN_QUALITY] / 16).to(device, dtype)
        self._t = torch.full((len(files),), float(quality_position(header.quality)), dtype=dtype, device=device)
        self._counter: FlopCounterMode | None = None
        self._operations: dict[str, int] = defaultdict(int)
        self._decoder: Decoder | None = None
        self.coder_seconds = 0.0  # of the host, in the last `decode`

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        before = self._counter.get_total_flops() if self._counter else 0
        with record_function(name):
            yield
        if self._counter:
            self._operations[name] += self._counter.get_total_flops() - before

    def operations(self) -> dict[str, int]:
        """Operations of the dense products of each stage, two a multiplication."""
        self._operations.clear()
        with FlopCounterMode(display=False) as self._counter:
            self.decode()
        self._counter = None
        return self._operations

    def decode(self) -> None:
        """Payloads to pixels; waits for the GPU for each pass's indexes."""
        self.values: list[Tensor] = []
        self.parameters: list[Parameters] = []
        self._decoder, self.coder_seconds = Decoder(self._payloads) if self._given is None else None, 0.0
        with torch.no_grad(), _matrix_products(self._precision):
            halves = self._decode_latents()
            with self._stage("synthesis"):
                y = checkerboard.merge(halves[0], halves[1], *self._size) * self._gain
                height, width = self._pixels
                x = self._g_s(y.permute(0, 3, 1, 2), self._t)[:, :, :height, :width]
                self.pixels = (x * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        if self._decoder:
            self._decoder.finish()

    def _symbols(self, indexes: Tensor, tables: TableSet) -> Tensor:
        """The next pass's: its indexes home, and symbols to the device."""
        assert self._decoder is not None
        home, start = list(indexes.cpu()), time.perf_counter()
        symbols = torch.stack(self._decoder.decode(home, tables))
        self.coder_seconds += time.perf_counter() - start
        return symbols.to(self._codec.device, non_blocking=True)

    def _hyper_latents(self) -> Tensor:
        config, (height, width) = released(self._codec).config, (hyper_size(side) for side in self._size)
        indexes = torch.arange(config.hyper_latents, dtype=torch.uint8).expand(len(self._payloads), height * width, -1)
        with self._stage("rans"):
            z = (
                self._given[0]
                if self._given
                else self._symbols(indexes.contiguous(), released(self._codec).hyper_tables)
            )
        self.values.append(z)
        return z.view(len(z), height, width, -1)

    def _latents(self, parameters: Parameters) -> Tensor:
        with self._stage("rans"):
            if self._given:
                latents = self._given[len(self.values)]
            else:
                symbols = self._symbols(parameters.indexes, released(self._codec).tables)
                latents = reconstruct(symbols, parameters.means)
        self.values.append(latents)
        self.parameters.append(parameters)
        return latents

    def _decode_latents(self) -> list[Tensor]:
        """The latents of anchors and of non-anchors."""
        network, size, quality = self._network, self._size, self._quality
        z = self._hyper_latents()
        with self._stage("hyper"):
            psi, psi_others = network.hyper_synthesis(z, *size)
        before: list[Tensor] = []
        for group in range(len(network.groups)):
            with self._stage("parameters"):
                known, known_others = before or (None, None)
                parameters = network.anchor_parameters(psi, quality, group, known)
            anchors = self._latents(parameters)
            with self._stage("parameters"):
                parameters = network.non_anchor_parameters(psi_others, anchors, size, quality, group, known_others)
            decoded = [anchors, self._latents(parameters)]
            before = [torch.cat(pair, 2) for pair in zip(before, decoded, strict=True)] if before else decoded
        return before


def equal(one: Sequence[Parameters], other: Sequence[Parameters]) -> bool:
    """Whether two networks gave the same for every pass."""
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a.means, b.means.to(a.means.dtype)) and torch.equal(a.indexes, b.indexes) for a, b in pairs)


def beside_plain(it: Subject, count: int) -> dict[str, Any]:
    """A decode by the host's clock, and by stages, kernels alone: ours, and plain PyTorch's in three precisions.

    "equal": whether every mean and index is what exact arithmetic gives.
    """
    batch = it.batch(count)
    files, out = batch.files["latency"], it.pixels(batch.pictures)
    ours = stages_us(by_launches(it, files, out))
    exact = PlainDecoder(it.codec, files)
    for _ in range(it.sizes.warm_ups):
        exact.decode()
    near(exact.pixels.permute(0, 3, 1, 2), list(out.permute(0, 2, 3, 1).cpu().numpy()), "plain PyTorch")
    graph, wall = by_graph(it, files, out)["wall"], spread(wall_times(it.machine, exact.decode, it.sizes.repeats))
    row: dict[str, Any] = {
        "ours": {"wall": graph, "stages_us": ours},
        "coder_on_host": {"wall": wall, "coder_ms": 1e3 * exact.coder_seconds},
        "times_ours": wall["median_ms"] / graph["median_ms"],
    }
    precisions: tuple[Precision, ...] = ("float32", "tf32", "float16")
    for precision in precisions:
        plain = PlainDecoder(it.codec, files, precision, exact.values)
        plain.decode()
        us = stages_us([profiled(plain.decode) for _ in range(it.sizes.profiles)])
        times = {stage: us[stage] / ours[stage] for stage in NETWORK_STAGES if ours[stage]}
        row[precision] = {"stages_us": us, "times_ours": times, "equal": equal(exact.parameters, plain.parameters)}
    best = min((row[p]["times_ours"].get("parameters", 0.0) for p in precisions if row[p]["equal"]), default=0.0)
    return {**row, "goal_times": GOAL_TIMES, "reached": best >= GOAL_TIMES}
