"""Post-training conversion of a system's entropy side to integers, so that its files decode on every device.

Between the decoded symbols and the coder stand hyper-synthesis, context and parameter network. In floating point they
round differently on another device, and a probability that is off in its last place loses the stream. Here each of
their convolutions becomes one of integers:

    x_i = clamp(floor(x 2^(e_i) + 1/2), +-32767)                  entry: 16 bits, an exponent for each input channel
    acc_o = sum w_oi x_i + b_o                                    w: int16, an exponent f_o for each output channel
    y_o = clamp(floor((acc_o + 2^(s_o - 1)) / 2^(s_o)), +-(2^31 - 1)) 2^(-g)          s_o = f_o - g

All tensors between layers are float64 and hold integers times powers of two, so that the systems' own code runs them
unchanged. Every operation is exact: a product of two of 16 bits, and a sum proved below 2^53 for each channel, in any
order, so no matrix product of any library can differ. Leaky ReLU multiplies by an integer over 2^16; the next layer's
entry is the shift. Scales become table numbers by comparison with such numbers. docs/portable.md has the measurements.
"""

from __future__ import annotations

import copy
import functools
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...errors import ExactnessError, UnsupportedError
from ...kernels import rans
from .balle2018 import Hyperprior
from .base import CompressionModel, Report, channels_last, coding
from .context import RADIUS, MaskedConvolution
from .entropy_bottleneck import CodedEntropyModel, EntropyBottleneck
from .gaussian_conditional import GaussianConditional
from .he2022 import Group, ScalesFirst
from .layers import LowerBound

INPUT_MAX = 2**15 - 1
WEIGHT_MAX = 2**15 - 1
OUTPUT_MAX = 2**31 - 1
EXACT_LIMIT = 2**53
SLOPE_BITS = 16
SCALE_BITS = 16  # of the thresholds between tables

#: An activation may be this many times what calibration saw before it is clamped.
HEADROOM = 4.0
#: Channels that calibration saw nearly silent get the room of a loudest channel's share, in case they speak up.
LEAST_SHARE = 1 / 256
#: Fraction bits of a mean: a step of 1/256 costs nothing even where sigma is least.
MEAN_BITS = 8
#: What is exact in float64 as it is, and containers.
EXACT = (nn.ReLU, nn.PixelShuffle, nn.Sequential, nn.ModuleList, nn.ParameterList, LowerBound, Group, ScalesFirst)
#: Parts of the model that are never in the decoder's way to a probability.
TRANSFORMS = ("g_a.", "g_s.", "h_a.")


def floor_half(x: Tensor) -> Tensor:
    """The nearest integer, ties upwards; float64 in and out, exact below 2^52."""
    return torch.floor(x + 0.5)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of integers in float64, whose sums in any order stay below 2^53."""
    return a @ b


@torch.inference_mode()
def float64_is_exact(device: torch.device) -> bool:
    """Whether this device's float64 matrix product is one: its sums of products of 15 bits, up to just below 2^53."""
    generator = torch.Generator("cpu").manual_seed(0)
    a = torch.randint(-INPUT_MAX, INPUT_MAX + 1, (32, 4096), generator=generator, dtype=torch.int64, device="cpu")
    b = torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (4096, 32), generator=generator, dtype=torch.int64, device="cpu")
    a[0], b[:, 0] = INPUT_MAX, WEIGHT_MAX
    start = (1 << 53) - 4096 * INPUT_MAX * WEIGHT_MAX - 2  # what is left to the limit
    sums = product(a.double().to(device), b.double().to(device)) + start
    return torch.equal(sums.cpu().long(), a @ b + start)


@functools.cache
def require_exact(device: torch.device) -> None:
    """ExactnessError for a device whose float64 products are not exact. Measured once."""
    if not float64_is_exact(device):
        raise ExactnessError(f"{device}: float64 matrix products are not exact there, so integer systems cannot run")


class IntegerConvolution(nn.Module):
    """Entry, exit and proof of an integer layer. Values are float64 that hold the integers.

    weight: int16, output channels first; bias: int64 [outputs], in units of the accumulator; input_bits: int32
    [inputs], e; weight_bits: int32 [outputs], f; output_bits: int32 [], g.
    """

    weight: Tensor
    bias: Tensor
    input_bits: Tensor
    weight_bits: Tensor
    output_bits: Tensor

    def __init__(self, inputs: int, outputs: int, weight_shape: Sequence[int]):
        super().__init__()
        self.inputs, self.out_channels = inputs, outputs
        self.register_buffer("weight", torch.zeros(*weight_shape, dtype=torch.int16))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int64))
        self.register_buffer("input_bits", torch.zeros(inputs, dtype=torch.int32))
        self.register_buffer("weight_bits", torch.zeros(outputs, dtype=torch.int32))
        self.register_buffer("output_bits", torch.zeros((), dtype=torch.int32))
        self._ready: tuple[Tensor, ...] | None = None

    def set_from(self, weight: Tensor, bias: Tensor | None, largest_in: Tensor, largest_out: float) -> None:
        """Round a float layer to integers.

        weight: [outputs, inputs, ...]; largest_in [inputs], largest_out: magnitudes that calibration saw.
        Raises ExactnessError for sums that could pass 2^53.
        """
        weight = weight.detach().double().cpu()
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().cpu()
        room = largest_in.double().cpu()
        room = HEADROOM * torch.maximum(room, LEAST_SHARE * room.max()).clamp(min=2.0**-10)
        input_bits = torch.floor(torch.log2(INPUT_MAX / room))
        columns = (1, -1, *[1] * (weight.dim() - 2))
        scaled = weight * torch.exp2(-input_bits).view(columns)
        heaviest = scaled.abs().flatten(1).amax(1).clamp(min=2.0**-40)
        weight_bits = torch.floor(torch.log2(WEIGHT_MAX / heaviest))
        # The bias is one more term of the sum; it must leave room for the others.
        weight_bits = torch.minimum(weight_bits, torch.floor(torch.log2(2.0**50 / bias.double().abs().clamp(min=1e-9))))
        rows = (-1, *[1] * (weight.dim() - 1))
        whole = floor_half(scaled * torch.exp2(weight_bits).view(rows)).clamp(-WEIGHT_MAX, WEIGHT_MAX)
        output_bits = math.floor(math.log2(OUTPUT_MAX / (64 * max(largest_out, 2.0**-10))))
        self.weight.copy_(self._stored(whole))
        self.bias.copy_(floor_half(bias.double() * torch.exp2(weight_bits)))
        self.input_bits.copy_(input_bits)
        self.weight_bits.copy_(weight_bits)
        self.output_bits.fill_(min(output_bits, SCALE_BITS))
        self._ready = None
        self.check()

    def _stored(self, weight: Tensor) -> Tensor:
        """Of [outputs, inputs, ...], the part that this layer keeps, in its order."""
        return weight

    def check(self) -> None:
        """Proves every sum exact: sum |w| 32767 + |b| + 2^(s - 1) < 2^53 for each channel; ExactnessError otherwise."""
        shift = (self.weight_bits - self.output_bits).double()
        bits = torch.cat([self.input_bits, self.weight_bits, self.output_bits[None]])
        if int(bits.min()) < -100 or int(bits.max()) > 100 or int(self.weight.int().abs().max()) > WEIGHT_MAX:
            raise ExactnessError("exponents or weights are out of range")
        bound = self.weight.flatten(1).double().abs().sum(1) * INPUT_MAX + self.bias.double().abs()
        bound += torch.where(shift > 0, torch.exp2(shift - 1), 0.0)
        if not float(bound.max()) < EXACT_LIMIT:
            raise ExactnessError(f"a sum can reach {float(bound.max()):.3g}: float64 is exact below 2^53")

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._ready = None
        self.check()

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        self._ready = None
        return super()._apply(fn, recurse)

    def _constants(self) -> tuple[Tensor, ...]:
        """Entry factors, the matrix, bias with the half of rounding, exit factors, step of the output; all float64."""
        if self._ready is None:
            shift = (self.weight_bits - self.output_bits).double()
            half = torch.where(shift > 0, torch.exp2(shift - 1), 0.0)
            self._ready = (
                torch.exp2(self.input_bits.double()),
                self._matrix().double(),
                self.bias.double() + half,
                torch.exp2(-shift),
                torch.exp2(-self.output_bits.double()),
            )
        return self._ready

    def _matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def _enter(self, x: Tensor, axis: int) -> Tensor:
        factor = self._constants()[0]
        return floor_half(x.double() * _along(factor, x, axis)).clamp_(-INPUT_MAX, INPUT_MAX)

    def _leave(self, acc: Tensor, axis: int) -> Tensor:
        _, _, bias, factor, step = self._constants()
        acc = acc.add_(_along(bias, acc, axis)).mul_(_along(factor, acc, axis)).floor_()
        return acc.clamp_(-OUTPUT_MAX, OUTPUT_MAX).mul_(step)


def _along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = -1
    return vector.view(shape)


def _margins(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        raise UnsupportedError(f"padding {layer.padding!r} has no integer twin")
    return layer.padding


class IntegerConv2d(IntegerConvolution):
    """A convolution as a gather of rows and a matrix product: no algorithm that a library might choose otherwise."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer.in_channels, layer.out_channels, layer.weight.shape)
        self.kernel, self.stride, self.padding = layer.kernel_size, layer.stride, _margins(layer)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, inputs, h, w], to float64 [B, outputs, ...]."""
        matrix = self._constants()[1]
        height, width = (
            (size + 2 * pad - side) // step + 1
            for size, side, step, pad in zip(x.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        )
        columns = F.unfold(self._enter(x, 1), self.kernel, padding=self.padding, stride=self.stride)
        return self._leave(product(matrix, columns), 1).view(len(x), -1, height, width)

    def rows(self, x: Tensor) -> Tensor:
        """A 1x1 layer on rows: [P, inputs] to [P, outputs]."""
        return self._leave(product(self._enter(x, 1), self._constants()[1].T), 1)


class IntegerConvTranspose2d(IntegerConvolution):
    """A transposed convolution: a matrix product, whose columns are then added up where they overlap."""

    def __init__(self, layer: nn.ConvTranspose2d):
        outputs, inputs = layer.out_channels, layer.in_channels
        super().__init__(inputs, outputs, (outputs, inputs, *layer.kernel_size))
        self.kernel, self.stride, self.padding = layer.kernel_size, layer.stride, _margins(layer)
        self.output_padding = layer.output_padding

    def _matrix(self) -> Tensor:
        return self.weight.transpose(1, 2).transpose(2, 3).flatten(0, 2)  # [outputs * kernel, inputs]

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(
            (n - 1) * step - 2 * pad + side + extra
            for n, step, pad, side, extra in zip(
                x.shape[2:], self.stride, self.padding, self.kernel, self.output_padding, strict=True
            )
        )
        columns = product(self._constants()[1], self._enter(x, 1).flatten(2))
        return self._leave(F.fold(columns, size, self.kernel, padding=self.padding, stride=self.stride), 1)


class IntegerContext(IntegerConvolution):
    """A masked convolution on gathered neighbours, its live taps alone: weight int16 [outputs, inputs, taps]."""

    def __init__(self, layer: MaskedConvolution):
        self.taps = [(int(y) - RADIUS, int(x) - RADIUS) for y, x in layer.mask[0, 0].nonzero()]
        self.in_channels = layer.in_channels
        super().__init__(layer.in_channels, layer.out_channels, (layer.out_channels, layer.in_channels, len(self.taps)))

    def _stored(self, weight: Tensor) -> Tensor:
        return torch.stack([weight[:, :, y + RADIUS, x + RADIUS] for y, x in self.taps], 2)

    def _matrix(self) -> Tensor:
        return self.weight.transpose(1, 2).flatten(1)  # the channels of a tap together

    def on_rows(self, taps: Sequence[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
        """As `MaskedConvolution.on_rows`; taps must be those of the mask."""
        if list(taps) != self.taps:
            raise ValueError("an integer context sees the neighbours of its mask and no others")
        return self._rows

    def _rows(self, seen: Tensor) -> Tensor:
        by_tap = self._enter(seen.view(len(seen), len(self.taps), -1), 2)
        return self._leave(product(by_tap.flatten(1), self._constants()[1].T), 1)


class IntegerLeakyReLU(nn.Module):
    """x, or x times an integer over 2^16 where x is negative. Exact: outputs of layers have 32 bits."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = math.floor(slope * 2**SLOPE_BITS + 0.5) / 2**SLOPE_BITS

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x * self.slope, x)


class StoredTables(CodedEntropyModel):
    """The coder's integer tables as a buffer: uint8, each set's `to_bytes` behind its length, u32 little endian.

    Making them from the CDFs takes logarithms, whose last bit may differ between machines, and with it a frequency.
    """

    SIZED = (*CodedEntropyModel.SIZED, "coder_tables")
    coder_tables: Tensor

    def keep_tables(self, sets: Sequence[rans.TableSet]) -> None:
        """Store these as the tables."""
        data = b"".join(struct.pack("<I", len(part)) + part for part in (tables.to_bytes() for tables in sets))
        self.coder_tables = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.coder_tables.device)
        self._table_sets = None

    def table_sets(self) -> list[rans.TableSet]:
        """As they were stored. ExactnessError for a buffer that holds no tables."""
        if self._table_sets is None:
            data, sets = self.coder_tables.cpu().numpy().tobytes(), []
            try:
                while data:
                    end = 4 + struct.unpack_from("<I", data)[0]
                    sets.append(rans.TableSet.from_bytes(data[4:end]))
                    data = data[end:]
            except (ValueError, struct.error) as error:
                raise ExactnessError(f"the stored tables cannot be read: {error}") from None
            self._table_sets = sets  # all at once: other threads may be asking
        return self._table_sets


class IntegerEntropyBottleneck(StoredTables, EntropyBottleneck):
    """The factorised prior with its tables as they are. Its medians take part in one addition of float32 alone."""

    @classmethod
    def of(cls, bottleneck: EntropyBottleneck) -> IntegerEntropyBottleneck:
        """The twin of one, with its tables if it has them."""
        out = cls(bottleneck.channels).to(bottleneck.quantiles.dtype)
        out.load_state_dict(bottleneck.state_dict() | {"coder_tables": out.coder_tables})
        if bottleneck.updated:
            out.keep_tables(bottleneck.table_sets())
        return out


class IntegerGaussianConditional(StoredTables, GaussianConditional):
    """Means in steps of 2^-mean_bits, and table numbers by integer thresholds on the scales, int64 [levels - 1] in
    units of 2^-16."""

    SIZED = (*StoredTables.SIZED, "scale_table", "thresholds")
    thresholds: Tensor
    mean_bits: Tensor

    def __init__(self, with_means: bool = True):
        super().__init__(with_means)
        self.register_buffer("mean_bits", torch.tensor(0, dtype=torch.int32))

    @classmethod
    def of(cls, conditional: GaussianConditional, mean_bits: int) -> IntegerGaussianConditional:
        """The twin of one, with its tables if it has them."""
        out, state = cls(conditional.with_means), conditional.state_dict()
        table = conditional.scale_table.double()
        state["thresholds"] = floor_half(torch.sqrt(table[:-1] * table[1:]) * 2**SCALE_BITS).long()
        state["mean_bits"] = torch.tensor(mean_bits, dtype=torch.int32, device="cpu")
        out.load_state_dict(state | {"coder_tables": out.coder_tables})
        if conditional.updated:
            out.keep_tables(conditional.table_sets())
        return out

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        scales, means = super().split(parameters)
        if means is not None:
            unit = torch.exp2(self.mean_bits.double())
            means = floor_half(means * unit) / unit
        return scales, means

    def indexes(self, scales: Tensor) -> Tensor:
        """The table nearest in log-scale, uint8: how many thresholds lie below."""
        whole = torch.floor(scales.double() * 2**SCALE_BITS)
        return torch.bucketize(whole.contiguous(), self.thresholds.double()).to(torch.uint8)


# ---- conversion


def integerized(model: CompressionModel, images: Iterable[Tensor]) -> CompressionModel:
    """A copy of a system whose entropy side is in integers; its `report` has the cost in bits.

    images: RGB float32 [1, 3, H, W] in 0..1, multiples of the model's stride, on its device; a few photographs do. They
    decide the range of each layer's inputs, and the cost is reported on them.

    Raises ValueError without images, UnsupportedError for a system that cannot be converted, ExactnessError for weights
    that cannot.
    """
    if model.portable:
        raise UnsupportedError("this model is in integers already")
    if model.variable_rate:
        raise UnsupportedError("a variable-rate model has no integer twin: its gains lie between the layers")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ExactnessError(f"{name} is not finite")
    model.update()
    images = list(images)
    if not images:
        raise ValueError("calibration needs images")
    largest_in, largest_out, latents, before = _calibrate(model, images)
    out = skeleton(model)
    for name, layer in out.named_modules():
        source = model.get_submodule(name)
        if isinstance(layer, IntegerConvolution) and isinstance(source, nn.Conv2d | nn.ConvTranspose2d):
            weight = source.weight.transpose(0, 1) if isinstance(source, nn.ConvTranspose2d) else source.weight
            try:
                layer.set_from(weight, source.bias, largest_in[name], largest_out[name])
            except ExactnessError as error:
                raise ExactnessError(f"{name}: {error}") from None
    with coding():
        after = sum(out.encode_latents(y).bits for y in latents)
    out.report = Report(len(images), before, after)
    return out


def skeleton(model: CompressionModel) -> CompressionModel:
    """A copy of a float system with integer layers in their places, their values not set yet.

    UnsupportedError, naming the part, for a system that has parts without an integer twin.
    """
    out, device = copy.deepcopy(model), next(model.parameters()).device
    for name, layer in list(out.named_modules()):
        if name.startswith(TRANSFORMS) or not name:
            continue
        with device:  # whatever the default
            twin = _twin(layer, name)
        if twin is not layer:
            parent, _, own = name.rpartition(".")
            setattr(out.get_submodule(parent), own, twin)
    out.portable = True
    return out.eval()


def _twin(layer: nn.Module, name: str) -> nn.Module:
    """The integer layer for a float one, or the layer itself where it is exact as it is."""
    if isinstance(layer, MaskedConvolution):
        return IntegerContext(layer)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and _plain(layer):
        return IntegerConv2d(layer) if isinstance(layer, nn.Conv2d) else IntegerConvTranspose2d(layer)
    if isinstance(layer, nn.LeakyReLU):
        return IntegerLeakyReLU(layer.negative_slope)
    if type(layer) is EntropyBottleneck:
        return IntegerEntropyBottleneck.of(layer)
    if type(layer) is GaussianConditional:
        return IntegerGaussianConditional.of(layer, MEAN_BITS)
    if isinstance(layer, EXACT):
        return layer
    raise UnsupportedError(f"{name} is a {type(layer).__name__}, which has no integer twin")


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _calibrate(
    model: CompressionModel, images: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, float], list[Tensor], float]:
    """The largest magnitudes of each convolution's inputs, by channel, and of its outputs; the images' y and bits."""
    largest_in: dict[str, Tensor] = {}
    largest_out: dict[str, float] = {}
    latents, bits = [], 0.0

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            seen = inputs[0].abs().amax((0, 2, 3))
            largest_in[name] = torch.maximum(largest_in.get(name, seen), seen)
            largest_out[name] = max(largest_out.get(name, 0.0), float(y.abs().max()))

        return layer.register_forward_hook(note)

    watched = [
        watch(name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not name.startswith(TRANSFORMS)
    ]
    try:
        with coding():
            for x in images:
                y = model.g_a(channels_last(x))
                coded = model.encode_latents(y)
                if isinstance(model, Hyperprior):  # once more, by modules: coding has rows of them
                    _, z_hat, _ = model.entropy_bottleneck.encode(model.hyper_analysis(y))
                    model.parameters_while_training(model.h_s(channels_last(z_hat)), coded.y_hat)
                latents.append(y)
                bits += coded.bits
    finally:
        for handle in watched:
            handle.remove()
    return largest_in, largest_out, latents, bits
