"""Which context model saves how many bits at equal latents: the choice of the default model's entropy side.

    python -m bench.studies.context_models PHOTOGRAPHS --cache FOLDER [--variants NAME...] [--steps N]

The transforms stay as released. Latents y of random crops, photographs and graphics, each at a random quality, are
computed once and kept, and so is h_a. What is trained on them is the rest of the entropy side. h_s and the prior begin
as released, and so do context and parameter networks as far as a variant has the same: today's checkerboard begins as
the release, all others worse than that. With --afresh these networks begin at random in every variant. All train for
the same number of steps on the same crops in the same order. Rates are then those of rounded residuals on the held-out
crops, hyper latents included; the distortion is the same for all, up to what rounding does.

Each variant's result is written when it ends, beside the latents, and is taken from there the next time. The table
goes to docs/architecture.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcodec import machine
from fastcodec.crops import CropSource
from fastcodec.entropy.fixed_point import ACTIVATION_BITS, ACTIVATION_MAX, MEAN, SCALE_INDEX
from fastcodec.entropy.gaussian import COUNT, GREATEST_SCALE, LEAST_SCALE
from fastcodec.files import replacing
from fastcodec.kernels.checkerboard import LIVE_TAPS
from fastcodec.models.swift import export
from fastcodec.models.swift import release as released
from fastcodec.models.swift.network import (
    FixedPointLinear,
    Group,
    HyperAnalysis,
    HyperSynthesis,
    QualityTable,
    Swift,
    gaussian_bits,
)

from ..common import argument_parser, write_json
from . import coding_orders as orders
from ._training import kept, rate_factor
from .coding_orders import CLASSES, Order, class_at, starts

POSITION_PIXELS = 256
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
WARMUP_STEPS = 100
IMPORTANCE = 1.2  # of exp(-IMPORTANCE * t), as in training (docs/architecture.md)


@dataclass(frozen=True)
class Variant:
    """One entropy side.

    Attributes:
        groups: channels of each, most energetic first.
        order: what is coded when.
        kernel: side of the square of neighbours that are read of the channels being coded.
        across: likewise of the other groups.
        features: channels of phi, the context's features.
        hidden: width of the parameter networks.
        deep: a further layer in each of them.
        hyper_latents: None: those of the release, from where they are; else so many, begun at random.
        components: Gaussians a latent, with weights and widths that depend on its scale alone: a table's shape.
        quality_prior: the hyper latents' prior depends on the quality.
    """

    groups: tuple[int, ...] = (256,)
    order: Order = field(default_factory=lambda: orders.checkerboard(1))
    kernel: int = 5
    across: int = 1
    features: int = 256
    hidden: int = 256
    deep: bool = False
    hyper_latents: int | None = None
    components: int = 1
    quality_prior: bool = False


def _groups(*sizes: int, only_first: bool = False, **options: Any) -> Variant:
    return Variant(sizes, orders.checkerboard(len(sizes), only_first), **options)


ELIC = (16, 16, 32, 64, 128)
VARIANTS = {
    "checkerboard": Variant(),
    "no context": Variant(order=orders.one_pass(1)),
    "checkerboard 3x3": Variant(kernel=3),
    "checkerboard 7x7": Variant(kernel=7),
    "checkerboard, hidden 512": Variant(hidden=512),
    "checkerboard, a layer more": Variant(deep=True),
    "2 groups, even": _groups(128, 128),
    "2 groups, 64": _groups(64, 192),
    "2 groups, 32": _groups(32, 224),
    "2 groups, 64, across 3x3": _groups(64, 192, across=3),
    "2 groups, 64, only first": _groups(64, 192, only_first=True),
    "3 groups, 32 64 160": _groups(32, 64, 160),
    "3 groups, 64 64 128": _groups(64, 64, 128),
    "4 groups, even": _groups(64, 64, 64, 64),
    "5 groups, uneven": _groups(*ELIC),
    "5 groups, uneven, only first": _groups(*ELIC, only_first=True),
    "4 groups, no checkerboard": Variant((64,) * 4, orders.channels_only(4)),
    "4 steps in space": Variant(order=orders.four_steps(1)),
    "dual, even": Variant((128, 128), orders.dual(), across=3),
    "quadtree, 3x3": Variant((64,) * 4, orders.quadtree(), kernel=3, across=3),
    "quadtree": Variant((64,) * 4, orders.quadtree(), across=3),
    "quadtree, interleaved": Variant((64,) * 4, orders.quadtree(), across=3),
    "dual, interleaved": Variant((128, 128), orders.dual(), across=3),
    "two Gaussians": Variant(components=2),
    "prior by quality": Variant(quality_prior=True),
    "Z = 64, afresh": Variant(hyper_latents=64),
    "Z = 32, afresh": Variant(hyper_latents=32),
    "Z = 128, afresh": Variant(hyper_latents=128),
}
INTERLEAVED = "interleaved"  # in a variant's name: every n-th channel makes a group, not a run of them


# ---- latents


@dataclass(frozen=True)
class Latents:
    """Latents y, before rounding, scaled by the gain of their quality.

    Attributes:
        y: float16 [crops, M, h, w] of random crops.
        t: float32 [crops], their places on the range of qualities.
        held_out: by split, float16 [POINTS, images, M, h, w].
    """

    y: Tensor
    t: Tensor
    held_out: dict[str, Tensor]


def cached_latents(data: Path, release: Path, crops: int, crop: int, cache: Path) -> Latents:
    """The latents of a release from the cache folder, computed first where they are not there yet."""
    path = cache / f"latents-{release.stem.removeprefix('swift-')}-{crops}x{crop}.pt"
    return Latents(**kept(path, lambda: vars(_latents(data, release, crops, crop))))


@torch.inference_mode()
def _latents(data: Path, release: Path, crops: int, crop: int) -> Latents:
    model = export.restore(release).eval()
    source = CropSource(data, crop, seed=1, graphics=0.2)
    t = torch.rand(crops, generator=torch.Generator().manual_seed(1))

    def analyse(pixels: Tensor, t: Tensor) -> Tensor:
        x = pixels.float().contiguous(memory_format=torch.channels_last) / 255
        return (model.g_a(x, t) * torch.exp(model.log_gain(t))[:, :, None, None]).half()

    def at_points(pixels: Tensor) -> Tensor:
        rows = [torch.full((len(pixels),), point) for point in POINTS]
        return torch.stack([torch.cat(list(map(analyse, pixels.split(8), row.split(8)))) for row in rows])

    return Latents(
        torch.cat([analyse(source.batch(len(row)), row) for row in t.split(8)]),
        t,
        {
            "photographs": at_points(source.validation_batch(min(2 * crop, 512))),
            "graphics": at_points(source.validation_graphics(crop)),
        },
    )


# ---- the entropy side


class EntropySide(nn.Module):
    """h_a, h_s, the prior, and a context and parameter network for each pass of an order, in fixed-point ranges."""

    channels: Tensor
    scale: Tensor

    def __init__(self, variant: Variant, start: Swift, channels: Tensor, afresh: bool = False):
        """start: the released model; channels: int64 [M], the order in which the variant's groups take them; afresh:
        context and parameter networks begin at random."""
        super().__init__()
        self.variant, order = variant, variant.order
        self.starts = starts(variant.groups)
        self.register_buffer("channels", channels)
        config = start.config
        if variant.hyper_latents is None:
            self.h_a, self.h_s = start.h_a, start.h_s
            locations, log_scales = start.prior.location.data, start.prior.log_scale.data
            logits = start.prior.logit.data
        else:
            config = type(config)(**{**asdict(config), "hyper_latents": variant.hyper_latents})
            self.h_a, self.h_s = HyperAnalysis(config), HyperSynthesis(config)
            locations = torch.linspace(-4, 4, 3).repeat(config.hyper_latents, 1)
            log_scales, logits = torch.full_like(locations, 1.0), torch.zeros_like(locations)
        self.prior = HyperPrior(locations, log_scales, logits, 4 if variant.quality_prior else None)
        shift = _groups_of(start)[-1].get_buffer("context_shift")[channels]
        self.register_buffer("scale", torch.exp2(-shift.float()))
        self.psi = config.hyper_features
        self.contexts, self.networks = nn.ModuleDict(), nn.ModuleDict()
        for number in range(len(order.passes)):
            if number > 0:
                self.contexts[str(number)] = Context(variant, number)
            net = order.nets[number]
            if str(net) not in self.networks:
                reads_context = any(order.nets[n] == net and n > 0 for n in range(len(order.passes)))
                inputs = self.psi + variant.features * reads_context
                self.networks[str(net)] = ParameterNetwork(variant, inputs, 1 / self.scale)
        if not afresh:
            self._begin_as(_groups_of(start)[0])
        # Of the further components: logit and log of the width, linear in the scale index.
        self.shape = nn.Parameter(torch.tensor([-2.0, 0.0, -0.4, 0.0])) if variant.components == 2 else None

    @torch.no_grad()
    def _begin_as(self, group: Group) -> None:
        """Carry over what a model of one group has learned. What is wider begins as if it was not."""
        for context in self.contexts.values():
            assert isinstance(context, Context)
            context.begin_as(group.context, self.channels)
        for network in self.networks.values():
            assert isinstance(network, ParameterNetwork)
            network.begin_as(group, self.channels)

    def forward(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """y: [B, M, h, w], h and w multiples of 4; t: [B]. Returns the bits of latents and hyper latents, each [B]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.variant.hyper_latents is not None):
            z = self.h_a(y, t)
        if self.training:
            z_bits = self.prior.bits(z + torch.rand_like(z) - 0.5, t)
        else:
            z_bits = self.prior.bits(z.round(), t)
        z_hat = z + (torch.round(z) - z).detach()
        psi = self.h_s(z_hat.clamp(-127, 127)).permute(0, 2, 3, 1)
        grid = y.permute(0, 2, 3, 1)[..., self.channels]
        known = torch.zeros_like(grid)  # y^ as the contexts read it, of what is decoded; nothing learns through it
        bits = y.new_zeros(len(y))
        for number, pairs in enumerate(self.variant.order.passes):
            decoded = []
            for c in sorted({c for c, _ in pairs}):
                phi = self.contexts[str(number)](known, c) if number > 0 else None
                for part in self._parts([g for at, g in pairs if at == c]):
                    target = _of_class(grid, c)[..., part].flatten(1, 2)
                    mean, index = self.predict(number, _of_class(psi, c).flatten(1, 2), phi, t, part)
                    residual = target - mean
                    symbol = residual.detach().round()
                    noisy = residual + torch.rand_like(residual) - 0.5 if self.training else symbol
                    bits = bits + self._bits(noisy, index).flatten(1).sum(1)
                    decoded.append((c, part, mean.detach() + symbol))
            for c, part, y_hat in decoded:
                view = _of_class(known, c)
                limit = ACTIVATION_MAX / 2.0**ACTIVATION_BITS
                view[..., part] = (y_hat * self.scale[part]).clamp(-limit, limit).view(*view.shape[:3], -1)
        return bits, z_bits.flatten(1).sum(1)

    def _parts(self, groups: Sequence[int]) -> list[slice]:
        """The channels of groups: one slice where all are coded."""
        if len(groups) == len(self.variant.groups):
            return [slice(None)]
        return [slice(self.starts[g], self.starts[g + 1]) for g in groups]

    def predict(self, number: int, psi: Tensor, phi: Tensor | None, t: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Means and scale indexes of a pass's positions of one class, of some channels."""
        return self.networks[str(self.variant.order.nets[number])](psi, phi, t, part)

    def _bits(self, residual: Tensor, index: Tensor) -> Tensor:
        if self.shape is None:
            return gaussian_bits(residual, index)
        logit, logit_slope, width, width_slope = self.shape
        place = index / COUNT
        share = torch.sigmoid(logit + logit_slope * place)
        step = math.log(GREATEST_SCALE / LEAST_SCALE) / (COUNT - 1)
        wider = index + torch.exp(width + width_slope * place) / step
        likelihood = (1 - share) * torch.exp2(-gaussian_bits(residual, index))
        return -torch.log2(likelihood + share * torch.exp2(-gaussian_bits(residual, wider)))

    def macs(self) -> float:
        """Multiply-accumulates a pixel of contexts and parameter networks, zeros left out; h_s is not among them."""
        variant, total = self.variant, 0
        for number, pairs in enumerate(variant.order.passes):
            for c in {c for c, _ in pairs}:
                coded = sum(variant.groups[g] for at, g in pairs if at == c)
                inputs = self.psi + variant.features * (number > 0)
                total += (inputs + (1 + variant.deep) * variant.hidden + 2 * coded) * variant.hidden
                if number > 0:
                    context = self.contexts[str(number)]
                    assert isinstance(context, Context)
                    total += context.inputs(c) * variant.features
        return total / CLASSES / POSITION_PIXELS


class ParameterNetwork(nn.Module):
    """Means and scale indexes of the passes that share it, from psi and phi."""

    def __init__(self, variant: Variant, inputs: int, gain: Tensor):
        super().__init__()
        hidden, latents = variant.hidden, len(gain)
        self.first, self.bias = FixedPointLinear(inputs, hidden), QualityTable(8, hidden)
        self.second = FixedPointLinear(hidden, hidden)
        self.further = nn.Sequential(*(FixedPointLinear(hidden, hidden) for _ in range(variant.deep)))
        self.means = FixedPointLinear(hidden, latents, output=MEAN, gain=gain)
        self.indexes = FixedPointLinear(hidden, latents, output=SCALE_INDEX, gain=torch.full((latents,), 8.0))
        nn.init.constant_(self.indexes.bias, 1.5)

    def begin_as(self, group: Group, channels: Tensor) -> None:
        """As a group of a released model, as far as that is as wide."""
        _copy_corner(self.first, group.first)
        points = group.quality_bias.points
        self.bias.points[:, : points.shape[1]] = points
        _copy_corner(self.second, group.second)
        for layer in self.further:
            assert isinstance(layer, FixedPointLinear)
            layer.weight.copy_(torch.eye(len(layer.weight)))
        _copy_corner(self.means, group.means, channels)
        _copy_corner(self.indexes, group.indexes, channels)

    def forward(self, psi: Tensor, phi: Tensor | None, t: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        if phi is None:  # the context of the first pass is zero, and is not multiplied
            weight, bias = self.first.scaled(self.bias(t))
            hidden = F.linear(psi, weight[:, : psi.shape[2]]) + bias[:, None, :]
            hidden = hidden.clamp(0, ACTIVATION_MAX / 2.0**ACTIVATION_BITS)
        else:
            hidden = self.first(torch.cat([psi, phi], 2), self.bias(t))
        hidden = self.further(self.second(hidden))
        return _rows(self.means, hidden, part), _rows(self.indexes, hidden, part)


class Context(nn.Module):
    """phi of one pass: a convolution over what is decoded before it, as a product with the known neighbours alone.

    One bank of weights serves all classes; a class reads the rows of its own known (neighbour, group) pairs.
    """

    def __init__(self, variant: Variant, number: int):
        super().__init__()
        pairs, known = variant.order.passes[number], variant.order.known_before(number)
        self.radius = max(variant.kernel, variant.across) // 2
        self.starts, self.rows = starts(variant.groups), {}
        for c in {c for c, _ in pairs}:
            own = {g for at, g in pairs if at == c}
            self.rows[c] = [
                (dy, dx, g)
                for dy in range(-self.radius, self.radius + 1)
                for dx in range(-self.radius, self.radius + 1)
                for g in range(len(variant.groups))
                if max(abs(dy), abs(dx)) <= (variant.kernel if g in own else variant.across) // 2
                and (class_at(c, dy, dx), g) in known
            ]
        taps = (2 * self.radius + 1) ** 2
        fan_in = max(self.inputs(c) for c in self.rows)
        weight = torch.randn(variant.features, taps, self.starts[-1]) / math.sqrt(max(1, fan_in))
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(variant.features))

    def begin_as(self, layer: FixedPointLinear, channels: Tensor) -> None:
        """The context convolution of a checkerboard, where this one reads its neighbours."""
        r, released_taps = self.radius, layer.weight.unflatten(1, (len(LIVE_TAPS), -1))
        self.weight.zero_()
        for i, (dy, dx) in enumerate(LIVE_TAPS):
            if max(abs(dy), abs(dx)) <= r:
                self.weight[:, (dy + r) * (2 * r + 1) + dx + r] = released_taps[:, i, channels]
        if any(abs(dy) + abs(dx) == 1 for rows in self.rows.values() for dy, dx, _ in rows):
            self.bias.copy_(layer.bias)

    def inputs(self, c: int) -> int:
        """How many known latents a position of class c reads."""
        return sum(self.starts[g + 1] - self.starts[g] for _, _, g in self.rows[c])

    def forward(self, known: Tensor, c: int) -> Tensor:
        """known: [B, h, w, M]; returns [B, positions of the class, features]."""
        r, (height, width) = self.radius, known.shape[1:3]
        padded = F.pad(known, (0, 0, r, r, r, r))
        inputs, weights = [], []
        for dy, dx, groups in self._runs(c):
            top, left = r + c // 2 + dy, r + c % 2 + dx
            inputs.append(padded[:, top : top + height : 2, left : left + width : 2, groups].flatten(1, 2))
            weights.append(self.weight[:, (dy + r) * (2 * r + 1) + dx + r, groups])
        out = F.linear(torch.cat(inputs, 2), torch.cat(weights, 1), self.bias)
        limit = ACTIVATION_MAX / 2.0**ACTIVATION_BITS
        return out.clamp(-limit, limit)

    def _runs(self, c: int) -> list[tuple[int, int, slice]]:
        """The rows of a class, neighbouring groups of a neighbour as one."""
        runs: list[tuple[int, int, slice]] = []
        for dy, dx, g in self.rows[c]:
            begin, end = self.starts[g], self.starts[g + 1]
            if runs and runs[-1][:2] == (dy, dx) and runs[-1][2].stop == begin:
                runs[-1] = (dy, dx, slice(runs[-1][2].start, end))
            else:
                runs.append((dy, dx, slice(begin, end)))
        return runs


class HyperPrior(nn.Module):
    """The factorised prior of the release, whose parameters may depend on the quality."""

    def __init__(self, location: Tensor, log_scale: Tensor, logit: Tensor, points: int | None):
        super().__init__()
        flat = torch.stack([location, log_scale, logit]).clone()
        self.shape = flat.shape
        self.table: nn.Parameter | QualityTable
        if points is None:
            self.table = nn.Parameter(flat)
        else:
            self.table = table = QualityTable(points, flat.numel())
            table.points.data.copy_(flat.flatten().expand(points, -1))

    def bits(self, z: Tensor, t: Tensor) -> Tensor:
        """z: [B, Z, h, w]; code lengths of the intervals z +- 1/2."""
        if isinstance(self.table, QualityTable):
            location, log_scale, logit = self.table(t).view(-1, *self.shape)[:, :, None, None].unbind(1)
        else:
            location, log_scale, logit = (p[None, None, None] for p in self.table)
        z = z.movedim(1, -1).unsqueeze(-1)
        weight, inverse = logit.softmax(-1), torch.exp(-log_scale)
        upper, lower = (torch.sigmoid((z + d - location) * inverse) for d in (0.5, -0.5))
        probability = (weight * (upper - lower)).sum(-1)
        return -torch.log2(probability + (probability.clamp(min=1e-9) - probability).detach())


def _copy_corner(layer: FixedPointLinear, begin: FixedPointLinear, rows: Tensor | None = None) -> None:
    """The smaller layer's weights (some of its rows) into the wider one, which gives the same where it has the same."""
    weight, bias = (begin.weight, begin.bias) if rows is None else (begin.weight[rows], begin.bias[rows])
    outputs, inputs = min(len(weight), len(layer.weight)), min(weight.shape[1], layer.weight.shape[1])
    layer.weight[:outputs, inputs:] = 0
    layer.weight[:outputs, :inputs] = weight[:outputs, :inputs]
    layer.bias[:outputs] = bias[:outputs]


def _groups_of(model: Swift) -> list[Group]:
    return [group for group in model.groups if isinstance(group, Group)]


def _of_class(grid: Tensor, c: int) -> Tensor:
    """The positions of one class: a view [B, h / 2, w / 2, channels]."""
    return grid[:, c // 2 :: 2, c % 2 :: 2]


def _rows(layer: FixedPointLinear, x: Tensor, part: slice) -> Tensor:
    """Some outputs of a layer."""
    if part == slice(None):
        return layer(x)
    weight, bias = layer.scaled()
    output = layer.output
    unit = 2.0**output.bits
    return F.linear(x, weight[part], bias[part]).clamp(output.low / unit, output.high / unit)


# ---- training


@dataclass(frozen=True)
class Effort:
    """How a variant is trained."""

    steps: int = 800
    batch: int = 8
    learning_rate: float = 1e-3
    afresh: bool = False


def train(name: str, latents: Latents, start: Swift, effort: Effort) -> dict[str, Any]:
    """Train one variant and measure it: what the JSON has of it."""
    variant, steps, rate = VARIANTS[name], effort.steps, effort.learning_rate
    torch.manual_seed(1)
    order = _channel_order(latents.y, len(variant.groups), INTERLEAVED in name)
    model = EntropySide(variant, start, order, effort.afresh)
    released_parts = ("h_a.", "h_s.", "prior.") if variant.hyper_latents is None else ()
    gentle = [p for n, p in model.named_parameters() if n.startswith(released_parts or ("-",))]
    rest = [p for n, p in model.named_parameters() if not n.startswith(released_parts or ("-",))]
    optimiser = torch.optim.AdamW(
        [{"params": rest, "factor": 1.0}] + ([{"params": gentle, "factor": 0.2}] if gentle else []),
        lr=rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    random, begin = torch.Generator().manual_seed(2), time.process_time()
    pixels = latents.y[0, 0].numel() * POSITION_PIXELS
    recent = 0.0
    for step in range(steps):
        factor = rate_factor(step, WARMUP_STEPS, step / steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * factor * group["factor"]
        chosen = torch.randint(len(latents.y), (effort.batch,), generator=random)
        t = latents.t[chosen]
        bits, z_bits = model(latents.y[chosen].float(), t)
        loss = ((bits + z_bits) / pixels * torch.exp(-IMPORTANCE * t)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        recent = 0.98 * recent + 0.02 * loss.item() if step else loss.item()
        if step % 200 == 199:
            print(f"{name}: step {step + 1}, {recent:.4f}", file=sys.stderr, flush=True)
    seconds = time.process_time() - begin
    return {
        "groups": list(variant.groups),
        "passes": len(variant.order.passes),
        "kmac": model.macs() / 1000,
        "steps": steps,
        "cpu_seconds": seconds,
        **{split: measure(model, y) for split, y in latents.held_out.items()},
    }


@torch.inference_mode()
def measure(model: EntropySide, held_out: Tensor) -> dict[str, list[float]]:
    """Bits a pixel at each of POINTS, and of hyper latents; held_out: [POINTS, images, M, h, w]."""
    model.eval()
    pixels = held_out[0, 0, 0].numel() * POSITION_PIXELS
    bpp, z_bpp = [], []
    for point, images in zip(POINTS, held_out, strict=True):
        total = torch.zeros(2, dtype=torch.float64)
        for y in images.split(8):
            parts = model(y.float(), torch.full((len(y),), point))
            total += torch.stack([part.double().sum() for part in parts])
        bits, z_bits = (total / len(images) / pixels).tolist()
        bpp.append(bits + z_bits)
        z_bpp.append(z_bits)
    model.train()
    return {"bpp": bpp, "z_bpp": z_bpp}


def _channel_order(y: Tensor, groups: int, interleaved: bool) -> Tensor:
    """Channels by falling energy: int64 [M]. Interleaved: every groups-th channel makes a group."""
    energy = torch.stack([part.float().square().mean((0, 2, 3)) for part in y.split(512)]).mean(0)
    ranked = energy.argsort(descending=True)
    return torch.cat([ranked[g::groups] for g in range(groups)]) if interleaved else ranked


# ---- the program


def table(results: dict[str, dict[str, Any]], base: str) -> str:
    """Rates beside those of a variant, in Markdown: the means over POINTS of the relative changes."""
    lines = ["| variant | passes | kMAC | photographs | graphics | z | CPU seconds |", "| --- " + "| ---: " * 6 + "|"]
    for name, result in results.items():
        change = [
            100 * sum(a / b - 1 for a, b in zip(result[s]["bpp"], results[base][s]["bpp"], strict=True)) / len(POINTS)
            for s in ("photographs", "graphics")
        ]
        z = 100 * sum(a / b for a, b in zip(*(result["photographs"][k] for k in ("z_bpp", "bpp")), strict=True))
        lines.append(
            f"| {name} | {result['passes']} | {result['kmac']:.2f} | {change[0]:+.2f} % | {change[1]:+.2f} % "
            f"| {z / len(POINTS):.1f} % | {result['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argument_parser("bench.studies.context_models", __doc__)
    parser.add_argument("data", type=Path, help="folder of training images; one in 40 is held out")
    parser.add_argument("--cache", type=Path, required=True, help="folder of latents and results: used if there")
    parser.add_argument("--release", type=Path, help="weights, in one group of channels (default: those in use)")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, metavar="NAME", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, default=Effort.steps, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=Effort.batch, help="crops a step (%(default)s)")
    parser.add_argument("--afresh", action="store_true", help="context and parameter networks begin at random")
    parser.add_argument("--crops", type=int, default=4000, help="(%(default)s)")
    parser.add_argument("--crop", type=int, default=256, help="side in pixels (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=Effort.learning_rate, help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    args = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    release = args.release or released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    if len(export.restore(release).groups) > 1:
        parser.error(f"{release}: in groups of channels already; --release takes weights of one group")
    effort = Effort(args.steps, args.batch, args.learning_rate, args.afresh)
    latents, results = cached_latents(args.data, release, args.crops, args.crop, args.cache), {}
    for name in args.variants or VARIANTS:
        path = args.cache / f"{name.replace(' ', '-')}-{args.steps}{'-afresh' if args.afresh else ''}.json"
        if not path.exists():
            result = train(name, latents, export.restore(release), effort)
            with replacing(path) as stream:
                stream.write(json.dumps(result).encode())
        results[name] = json.loads(path.read_text("utf-8"))
    print(table(results, next(iter(results))))
    if args.out:
        record = {
            "model": release.stem,
            **asdict(effort),
            **{key: getattr(args, key) for key in ("crops", "crop")},
            "machine": machine.describe(),
            "variants": results,
        }
        write_json(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
