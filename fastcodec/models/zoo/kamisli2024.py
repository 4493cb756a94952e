"""bmshj2018-hyperprior-vbr, mbt2018-mean-vbr and mbt2018-vbr: Kamisli, Racapé, Choi, "Variable-rate learned image
compression with multi-objective optimization and quantization-reconstruction offsets", DCC 2024 (arXiv 2402.18930).

One network for all rates: a gain G, the inverse of the quantisation step, multiplies the latents.

    q  = round(G (y - mu)),  coded by N(0, (G sigma)^2)
    y^ = sign(q) (|q| - offset(G sigma, G)) / G + mu          offset: a small network; 0 where q is 0
    z^ = d round((z - median) / d) + median,  d = step(1 / G)  another one, in the models with a variable step for z
    phi = g_cm(y^) + context(G)                               in the serial model

G at the trained levels, eight of them, is a parameter of the model. A rate is a quality, 1..100: level s of L has the
quality 1 + round(99 s / (L - 1)), and between two levels log G runs linearly.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...constants import MAX_QUALITY, MIN_QUALITY
from ...kernels import rans
from ...quality import checked_quality
from .balle2018 import Hyperprior, ScaleHyperprior
from .cdf import table_sets
from .entropy_bottleneck import EntropyBottleneck
from .gaussian_conditional import LEAST_SCALE, GaussianConditional
from .layers import LowerBound
from .minnen2018 import JointAutoregressive, MeanScaleHyperprior

_LEVELS = 8
_LEAST_GAIN = 0.1
_LEAST_Z_STEP = 0.5


class GainedGaussianConditional(GaussianConditional):
    """Codes y by the Gaussians of G y, and reconstructs with offsets. Until `at` gives it a gain, as its base class."""

    gain = 1.0
    offset: Callable[[Tensor], Tensor] | None = None

    def at(self, gain: float, offset: Callable[[Tensor], Tensor]) -> GainedGaussianConditional:
        """The same with a gain. offset: of rows (G sigma, G), float32 [P, 2], to [P]."""
        self.table_sets()  # shared from now on
        out = copy.copy(self)
        out.gain, out.offset = gain, offset
        return out

    def encode(self, y: Tensor, parameters: Tensor) -> tuple[rans.Pass, Tensor, float]:
        coded, y_hat, bits = super().encode(y * self.gain, parameters * self.gain)
        if self.offset is not None:
            y_hat = self._reconstructed(coded.symbols, parameters, self.offset)
        return coded, y_hat, bits

    def decode(self, decoder: rans.Decoder, parameters: Tensor) -> Tensor:
        if self.offset is None:
            return super().decode(decoder, parameters)
        scales, _ = self.split(parameters * self.gain)
        (tables,) = self.table_sets()
        (symbols,) = decoder.decode([self.indexes(scales)], tables)
        return self._reconstructed(symbols, parameters, self.offset)

    def _reconstructed(self, symbols: Tensor, parameters: Tensor, offset: Callable[[Tensor], Tensor]) -> Tensor:
        scales, means = self.split(parameters)
        q, coded = symbols.float(), symbols != 0
        magnitudes, gained = q[coded].abs(), (scales[coded] * self.gain).clamp(min=LEAST_SCALE)
        offsets = offset(torch.stack([gained, torch.full_like(gained, self.gain)], 1))
        q[coded] = q[coded].sign() * (magnitudes - offsets)
        y_hat = q * (1 / self.gain)
        return y_hat if means is None else y_hat + means


class SteppedBottleneck(EntropyBottleneck):
    """A factorised prior of z in steps of d: that of z / d in steps of 1, under the density of z."""

    step = 1.0

    @torch.no_grad()
    def at(self, step: float) -> SteppedBottleneck:
        """The same with another step, and the tables for it."""
        out = copy.copy(self)
        out._set_step(step)
        return out

    def _set_step(self, step: float) -> None:
        self.step = step
        offsets, cdfs, lengths = self._cdfs(self.quantiles / step)
        self._table_sets = list(table_sets(cdfs, lengths, offsets))

    @property
    def medians(self) -> Tensor:
        return super().medians / self.step

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x * self.step)

    def encode(self, z: Tensor) -> tuple[list[rans.Pass], Tensor, float]:
        passes, z_hat, bits = super().encode(z / self.step)
        return passes, z_hat * self.step, bits

    def decode(self, decoder: rans.Decoder, height: int, width: int) -> Tensor:
        return super().decode(decoder, height, width) * self.step


def _small_network(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers = [part for ends in itertools.pairwise(widths) for part in (nn.Linear(*ends), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class VariableRate(Hyperprior):
    """Variable rate, added to a system of one rate: the base of three. `at` gives a system of one rate, which codes.

    variable_z: whether the hyper latents have a step of their own, as CompressAI's published weights have.
    """

    variable_rate = True
    layout: tuple[tuple[str, str], ...] = (("gains", "Gain"), ("offsets.", "QuantABCD."))
    gaussian_conditional: GainedGaussianConditional
    entropy_bottleneck: EntropyBottleneck

    def __init__(self, n: int, m: int, variable_z: bool = False):
        if variable_z:
            self.layout = (*self.layout, *_Z_LAYOUT)
        super().__init__(n, m)  # type: ignore[arg-type]  # that of the system of one rate, which comes next
        self.variable_z = variable_z
        self.gaussian_conditional = GainedGaussianConditional(self.gaussian_conditional.with_means)
        self.gains = nn.Parameter(torch.logspace(math.log10(_LEAST_GAIN), 0, _LEVELS))
        self.offsets = _small_network(2, 12, 12, 1)
        if variable_z:
            self.entropy_bottleneck = SteppedBottleneck(n)
            self.z_step = nn.Sequential(*_small_network(1, 10, 10, 1), nn.Softplus())
            self.z_step_bound = LowerBound(_LEAST_Z_STEP)
        self._rates: dict[int, VariableRate] = {}

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        return super().from_shapes(state, variable_z="gayn2zqstep.0.weight" in state, **options)

    def quality_of(self, level: int) -> int:
        """The quality at which the gain is that of a trained level, from 0 on. ValueError for a level not there."""
        if not 0 <= level < len(self.gains):
            raise ValueError(f"there are the levels 0 to {len(self.gains) - 1}, not {level}")
        return MIN_QUALITY + round((MAX_QUALITY - MIN_QUALITY) * level / max(1, len(self.gains) - 1))

    def gain(self, quality: int) -> float:
        """G at a quality: that of the level there, or log-linear between those of the levels around it."""
        gains = self.gains.detach().abs().tolist()
        points = [self.quality_of(level) for level in range(len(gains))]
        level = max(level for level, point in enumerate(points) if point <= quality)
        if points[level] == quality or level == len(gains) - 1:
            return gains[level]
        share = (quality - points[level]) / (points[level + 1] - points[level])
        return gains[level] ** (1 - share) * gains[level + 1] ** share

    def at(self, quality: int) -> VariableRate:
        quality = checked_quality(quality)
        if quality not in self._rates:
            self._rates[quality] = self._with_gain(self.gain(quality))
        return self._rates[quality]

    @torch.no_grad()
    def _with_gain(self, gain: float) -> VariableRate:
        """A copy that shares all weights, but for the entropy models, which have the gain."""
        rate = copy.copy(self)
        rate._modules = dict(self._modules)
        rate.gaussian_conditional = self.gaussian_conditional.at(gain, lambda rows: self.offsets(rows)[:, 0])
        if isinstance(self.entropy_bottleneck, SteppedBottleneck):
            step = self.z_step_bound(self.z_step(self.gains.new_tensor([1 / gain])))
            rate.entropy_bottleneck = self.entropy_bottleneck.at(float(step))
        return rate

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError("variable-rate systems are loaded from CompressAI's weights, not trained here")

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        self._rates.clear()
        kept = {name: tensor for name, tensor in state_dict.items() if name != "QuantOffset"}  # unused, in old files
        return super().load_state_dict(kept, strict, assign)

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        self._rates.clear()
        return super()._apply(*arguments, **options)


#: Our prefixes of names and CompressAI's, which in its bottleneck of this kind are those of an older one.
_Z_LAYOUT = (
    ("z_step.", "gayn2zqstep."),
    ("z_step_bound.", "lower_bound_zqstep."),
    ("entropy_bottleneck.matrices.", "entropy_bottleneck._matrix"),
    ("entropy_bottleneck.biases.", "entropy_bottleneck._bias"),
    ("entropy_bottleneck.factors.", "entropy_bottleneck._factor"),
)


class ScaleHyperpriorVariableRate(VariableRate, ScaleHyperprior):
    """Ballé 2018 (CompressAI: bmshj2018-hyperprior-vbr)."""


class MeanScaleHyperpriorVariableRate(VariableRate, MeanScaleHyperprior):
    """Minnen 2018 without context (CompressAI: mbt2018-mean-vbr)."""


class JointAutoregressiveVariableRate(VariableRate, JointAutoregressive):
    """Minnen 2018, serial (CompressAI: mbt2018-vbr): the context, too, is told the gain."""

    layout = (*VariableRate.layout, ("gain_context.", "scale_to_context."))
    gaussian_conditional: GainedGaussianConditional

    def __init__(self, n: int, m: int, variable_z: bool = False):
        super().__init__(n, m, variable_z)
        self.gain_context = nn.Linear(1, 2 * m)
        self._context_of_gain: Tensor | None = None

    def merged(self, psi: Tensor, phi: Tensor) -> Tensor:
        """g_ep's input for rows [P, 2M], which is all that coding has."""
        return super().merged(psi, phi if self._context_of_gain is None else phi + self._context_of_gain)

    @torch.no_grad()
    def _with_gain(self, gain: float) -> VariableRate:
        rate = super()._with_gain(gain)
        rate._context_of_gain = self.gain_context(self.gains.new_tensor([gain]))
        return rate
