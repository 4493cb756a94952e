"""Coding by Gaussian mixtures: its rate against the ideal code length, and its speed on one core.

`run()` returns the figures that bench/results/mixture.json holds; docs/mixture.md has them as tables.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastcodec.rans import Decoder, MixturePass, available_isas, encode, quantise_mixtures

from . import coder, common

SHAPE = (1536, 192)  # a Kodak image's latents
REPEATS = 7

# (components, least sigma, greatest sigma, means within)
RATES = ((3, 0.11, 64, 20), (3, 0.11, 0.5, 20), (3, 0.11, 2, 2), (3, 40, 64, 20), (1, 0.11, 64, 20))
SPEEDS = ((3, 0.11, 64, 20), (3, 0.11, 2, 2), (1, 0.11, 64, 20))
LANES = (1, 2, 4, 8, 32)


def draw(
    case: tuple[int, float, float, float], shape: tuple[int, int] = SHAPE
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Symbols drawn from random mixtures, float64, and the mixtures' weights, means and sigmas.

    Weights are Dirichlet(1), means uniform within ±far, log sigma uniform from least to greatest.
    """
    (components, least, greatest, far), rng = case, np.random.default_rng(7)
    weights = np.moveaxis(rng.dirichlet([1.0] * components, shape), -1, 0)
    means = rng.uniform(-far, far, (components, *shape))
    sigmas = np.exp(rng.uniform(math.log(least), math.log(greatest), (components, *shape)))
    pick = (rng.random(shape) > np.cumsum(weights, 0)[:-1]).sum(0)[None]
    centre, width = (np.take_along_axis(values, pick, 0)[0] for values in (means, sigmas))
    symbols = np.rint(rng.normal(size=shape) * width + centre)
    return torch.from_numpy(symbols), (torch.from_numpy(weights), torch.from_numpy(means), torch.from_numpy(sigmas))


def coded(symbols: Tensor, mixtures: tuple[Tensor, Tensor, Tensor]) -> MixturePass:
    return MixturePass(symbols.to(torch.int16), *quantise_mixtures(*mixtures))


def ideal_bits(symbols: Tensor, weights: Tensor, means: Tensor, sigmas: Tensor) -> float:
    """The code length by the mixtures themselves."""
    away = (symbols - means).abs()  # of two tails the smaller, so that no digits are lost
    upper, lower = ((side - away) / sigmas for side in (0.5, -0.5))
    mass = (weights * (torch.special.ndtr(upper) - torch.special.ndtr(lower))).sum(0)
    return float(-mass.clamp(min=2.0**-40).log2().sum())


def rates() -> list[dict]:
    """Bytes of a whole payload of one lane against the ideal, and how much of the loss rounding the parameters is."""
    rows = []
    table = common.table("Rate", "K, sigmas, means", "bits a symbol", "above ideal", "of which rounded parameters")
    for case in RATES:
        symbols, mixtures = draw(case, (4 * SHAPE[0], SHAPE[1]))
        item = coded(symbols, mixtures)
        ideal = ideal_bits(symbols, *mixtures)
        rounded = ideal_bits(
            symbols, item.weights.double() / 4096, item.means.double() / 64, 2 ** ((item.scales.double() - 80) / 24)
        )
        [payload] = encode([[item]], lanes=1, streams=1)
        row = {
            "components": case[0],
            "sigmas": case[1:3],
            "means_within": case[3],
            "bits_per_symbol": ideal / symbols.numel(),
            "above_ideal_percent": 100 * (8 * len(payload) / ideal - 1),
            "rounded_parameters_percent": 100 * (rounded / ideal - 1),
        }
        rows.append(row)
        percents = (f"{row['above_ideal_percent']:.3f} %", f"{row['rounded_parameters_percent']:.3f} %")
        table.add_row(_name(case), f"{row['bits_per_symbol']:.3f}", *percents)
    common.console.print(table)
    return rows


def _name(case: tuple[int, float, float, float]) -> str:
    return f"{case[0]}, {case[1]}..{case[2]}, ±{case[3]}"


def _decoded(payload: bytes, item: MixturePass, isa: str) -> Tensor:
    decoder = Decoder([payload], threads=1, isa=isa)
    [symbols] = decoder.decode_mixtures([item[1:]])
    decoder.finish()
    return symbols


def speeds() -> list[dict]:
    """Msymbol/s through Python, each instruction set and number of lanes; one stream, one thread."""
    rows = []
    table = common.table(
        f"Msymbol/s on one core, {math.prod(SHAPE)} symbols", "K, sigmas, means", "lanes", "twin", "encode", "decode"
    )
    for case in SPEEDS:
        item = coded(*draw(case))
        count = item.symbols.numel()
        for isa in available_isas():
            for lanes in LANES:
                write = partial(encode, [[item]], lanes=lanes, streams=1, threads=1, isa=isa)
                [payload] = write()
                read = partial(_decoded, payload, item, isa)
                assert torch.equal(read(), item.symbols)
                row = {
                    "components": case[0],
                    "sigmas": case[1:3],
                    "means_within": case[3],
                    "lanes": lanes,
                    "isa": isa,
                    "encode": count / coder.seconds(write, REPEATS) / 1e6,
                    "decode": count / coder.seconds(read, REPEATS) / 1e6,
                }
                rows.append(row)
                table.add_row(_name(case), str(lanes), isa, f"{row['encode']:.0f}", f"{row['decode']:.0f}")
    common.console.print(table)
    return rows


def run() -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"rates": rates(), "speeds": speeds()}
    finally:
        torch.set_num_threads(threads)
