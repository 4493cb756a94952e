"""The fully factorised prior (Ballé et al. 2018, appendix 6.1): a learned univariate density for each channel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import rans
from ...kernels.rans.tables import MAX_TABLES
from .cdf import quantised_cdf, stack_cdfs, table_sets
from .layers import LowerBound

LEAST_LIKELIHOOD = 1e-9
_LAYERS = (1, 3, 3, 3, 3, 1)  # r_0 .. r_K of the paper's appendix
_INITIAL_SCALE = 10.0
_TAIL_MASS = 1e-9
# Beyond these the tables would leave the coder's limit of 2^14 entries; no trained prior comes near.
_MAX_REACH = 4000


class CodedEntropyModel(nn.Module):
    """Quantised CDFs as buffers, of a size that only a checkpoint knows: the base of both entropy models."""

    SIZED: tuple[str, ...] = ("_offset", "_quantized_cdf", "_cdf_length")  # CompressAI's names
    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(LEAST_LIKELIHOOD)
        for name in self.SIZED:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        self._table_sets: list[rans.TableSet] | None = None

    @property
    def updated(self) -> bool:
        """Whether the CDFs are there, from `update` or from a checkpoint."""
        return self._offset.numel() > 0

    @property
    def cdfs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The quantised CDFs, int32 [n, longest], their lengths and the symbols of their first entries, int32 [n]."""
        return self._quantized_cdf, self._cdf_length, self._offset

    def update(self) -> None:
        """Make the CDFs of the distributions as they are."""
        raise NotImplementedError

    def table_sets(self) -> list[rans.TableSet]:
        """The coder's tables. RuntimeError without CDFs."""
        if self._table_sets is None:
            if not self.updated:
                raise RuntimeError("no tables yet: call the model's update() once its training is over")
            self._table_sets = list(table_sets(*self.cdfs))
        return self._table_sets

    def _store(self, offset: Tensor, cdf: Tensor, lengths: Tensor) -> None:
        device = self._offset.device
        self._offset, self._quantized_cdf = offset.to(device, torch.int32), cdf.to(device)
        self._cdf_length, self._table_sets = lengths.to(device), None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        for name in self.SIZED:
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=getattr(self, name).device))
        self._table_sets = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class EntropyBottleneck(CodedEntropyModel):
    """p(z) = prod_i c(z_i + 1/2) - c(z_i - 1/2), c a monotone network for each channel, K = 5 layers:

        c = f_5 . f_4 . f_3 . f_2 . f_1
        f_k(x) = g_k(H_k x + b_k),  g_k(x) = x + a_k * tanh(x),  f_5(x) = sigmoid(H_5 x + b_5)
        H_k = softplus(matrices[k]),  a_k = tanh(factors[k])

    Symbols are round(z - median); quantiles holds the bounds of each channel's table and its median.
    """

    target: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        scale = _INITIAL_SCALE ** (1 / (len(_LAYERS) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for k, (inputs, outputs) in enumerate(itertools.pairwise(_LAYERS)):
            matrix = torch.full((channels, outputs, inputs), math.log(math.expm1(1 / scale / outputs)))
            self.matrices.append(nn.Parameter(matrix))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
            if k < len(_LAYERS) - 2:
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-_INITIAL_SCALE, 0.0, _INITIAL_SCALE]).repeat(channels, 1, 1))
        target = math.log(2 / _TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-target, 0.0, target], dtype=torch.float32))

    @property
    def medians(self) -> Tensor:
        """float32 [C, 1, 1]."""
        return self.quantiles.detach()[:, :, 1:2]

    def logits(self, x: Tensor) -> Tensor:
        """The cumulative density c before its sigmoid: [C, 1, n] to [C, 1, n], in x's dtype."""
        for k, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(matrix.to(x.dtype)) @ x + bias.to(x.dtype)
            if k < len(self.factors):
                x = x + torch.tanh(self.factors[k].to(x.dtype)) * torch.tanh(x)
        return x

    def likelihood(self, z: Tensor) -> Tensor:
        """p(z) of each element; z: [C, 1, n]."""
        lower, upper = self.logits(z - 0.5), self.logits(z + 0.5)
        # The difference of sigmoids, taken on the side where both are small: the other one cancels to 0 in the tails.
        sign = torch.where(lower + upper > 0, -1.0, 1.0).to(lower.dtype).detach()
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """For training: z [B, C, H, W] with uniform noise for rounding, and the bits of each element, like z."""
        noisy = z + torch.rand_like(z) - 0.5
        by_channel = noisy.transpose(0, 1).reshape(self.channels, 1, -1)
        likelihood = self.likelihood_lower_bound(self.likelihood(by_channel))
        likelihood = likelihood.view(self.channels, z.shape[0], *z.shape[2:]).transpose(0, 1)
        return noisy, -torch.log2(likelihood)

    @torch.no_grad()
    def fit_quantiles(self) -> None:
        """Find the median and the bounds beyond which lie 1e-9 / 2 of the mass, by bisection in float64.

        To be called after training, instead of training them by an auxiliary loss.
        """
        low = torch.full((self.channels, 1, 3), -float(_MAX_REACH), dtype=torch.float64, device=self.quantiles.device)
        high = -low
        for _ in range(60):
            middle = (low + high) / 2
            below = self.logits(middle) < self.target.double()
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        self.quantiles.copy_(high)

    @torch.no_grad()
    def update(self) -> None:
        """Make the CDFs of the density as it is: for each channel, the symbols between its outer quantiles."""
        self._store(*self._cdfs(self.quantiles))

    def _cdfs(self, quantiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets, CDFs and their lengths of the integers about the medians between the outer quantiles [C, 1, 3]."""
        low, median, high = quantiles.detach().double().unbind(2)
        below = (median - low).ceil().clamp(0, _MAX_REACH)
        above = (high - median).ceil().clamp(0, _MAX_REACH)
        reach = int(torch.maximum(below, above).max())
        symbols = torch.arange(-reach, reach + 1, dtype=torch.float64, device=median.device)
        pmf = self.likelihood((median + symbols)[:, None, :])[:, 0].cpu().numpy()
        cdfs = []
        for row, first, last in zip(pmf, (reach - below).int().tolist(), (reach + above).int().tolist(), strict=True):
            inside = row[first[0] : last[0] + 1]
            cdfs.append(quantised_cdf(inside, max(1 - float(inside.sum()), _TAIL_MASS)))
        return (-below[:, 0], *stack_cdfs(cdfs))

    @torch.no_grad()
    def encode(self, z: Tensor) -> tuple[list[rans.Pass], Tensor, float]:
        """z [1, C, H, W] to its passes, the decoded z^ (like z) and the code length in bits that p(z^) gives."""
        symbols = torch.round(z - self.medians)
        z_hat = symbols + self.medians
        likelihood = self.likelihood(z_hat.double().reshape(self.channels, 1, -1))
        bits = -torch.log2(likelihood.clamp(min=LEAST_LIKELIHOOD)).sum()
        rows = symbols[0].flatten(1).T.to(torch.int32)
        passes = [
            rans.Pass(rows[:, channels].contiguous(), indexes, tables)
            for channels, indexes, tables in self._groups(len(rows))
        ]
        return passes, z_hat, float(bits)

    def decode(self, decoder: rans.Decoder, height: int, width: int) -> Tensor:
        """The inverse of `encode`: z^, float32 [1, C, height, width]."""
        groups = self._groups(height * width)
        rows = torch.cat([decoder.decode([indexes], tables)[0] for _, indexes, tables in groups], 1)
        return rows.T.reshape(1, self.channels, height, width).float() + self.medians

    def _groups(self, positions: int) -> list[tuple[slice, Tensor, rans.TableSet]]:
        """Channels that one set of tables holds, with the indexes of a pass over them: a channel's table is its own."""
        groups = []
        for number, tables in enumerate(self.table_sets()):
            begin = number * MAX_TABLES
            indexes = torch.arange(tables.count, dtype=torch.uint8, device=self.quantiles.device)
            groups.append((slice(begin, begin + tables.count), indexes.expand(positions, -1).contiguous(), tables))
        return groups

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        # CompressAI had three layouts: matrices.0, before it _matrix0, and before that _matrices.0.
        for ours, older, oldest in (
            ("matrices", "_matrix", "_matrices"),
            ("biases", "_bias", "_biases"),
            ("factors", "_factor", "_factors"),
        ):
            for k in range(len(getattr(self, ours))):
                for name in (f"{older}{k}", f"{oldest}.{k}"):
                    if prefix + name in state_dict:
                        state_dict[f"{prefix}{ours}.{k}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
