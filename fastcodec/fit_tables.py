"""The tables that a release codes its latents with: `python -m fastcodec.fit_tables RELEASE IMAGES --out FILE`.

A network gives each latent a scale, and the symbols of a scale are not quite Gaussian: the encoder rounds towards zero
where that pays, and tails are heavier. So a release may have tables of its own, one for each scale index, made from
what its encoder wrote on training images, graphics among them. The decoder's work is the same.

    frequency of k  ~  count of k + PRIOR * Gaussian probability of k          (of -k the same)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .crops import CropSource
from .engines import cpu
from .entropy.code_length import code_lengths
from .entropy.gaussian import COUNT, SCALES, support
from .errors import FastcodecError
from .geometry import Grid
from .kernels.rans import TableSet
from .models.swift import export, release

PRIOR = 1000.0  # how many symbols the Gaussian is worth
QUALITIES_AN_IMAGE = 3


def count_symbols(model: release.Model, pictures: Sequence[np.ndarray]) -> Tensor:
    """Count each magnitude that the encoder writes at a scale index: int64 [64, K], the last column all beyond.

    pictures: uint8 [height, width, 3], each coded at QUALITIES_AN_IMAGE random qualities.
    """
    engine, random = cpu.CpuEngine(model), np.random.default_rng(1)
    columns = code_lengths().shape[1]
    counts = torch.zeros(COUNT * columns, dtype=torch.int64, device="cpu")
    for picture in pictures:
        for quality in random.integers(1, 101, QUALITIES_AN_IMAGE):
            for _, *latents in engine.code_tiles([picture], Grid(*picture.shape[:2]), int(quality)):
                for symbols, indexes, _ in latents:
                    magnitude = symbols.long().abs().clamp(max=columns - 1)
                    counts += torch.bincount((indexes.long() * columns + magnitude).flatten(), minlength=len(counts))
    return counts.view(COUNT, columns)


def tables_of(counts: Tensor, prior: float = PRIOR) -> TableSet:
    """Symmetric tables for counts as of `count_symbols`, of the Gaussian ones' reach."""
    gaussian = torch.exp2(-code_lengths())
    gaussian[:, 1:] *= 2  # of a magnitude
    rows = [(0, np.zeros(0), 1.0)]
    for index in range(1, COUNT):
        reach = support(SCALES[index])
        mass = (counts[index] + prior * gaussian[index]).numpy()
        total = counts[index].sum().item() + prior
        inside = mass[: reach + 1] / total
        sides = inside[1:] / 2
        rows.append((-reach, np.concatenate([sides[::-1], inside[:1], sides]), max(1 - inside.sum(), 2.0**-20)))
    return TableSet.from_pmfs(rows, skip=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastcodec.fit_tables", description=__doc__.split("\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("images", type=Path, help="folder of training images, as fastcodec train takes it")
    parser.add_argument("--out", type=Path, required=True, help="the release with its tables")
    parser.add_argument("--count", type=int, default=300, help="photographs; a quarter as many are drawn (%(default)s)")
    args = parser.parse_args(arguments)
    try:
        model = release.read_model(args.release)
        source = CropSource(args.images, 256, seed=1, graphics=0.2)
        chosen = source.random.permutation(len(source.images))[: args.count]
        pictures = [source.images[i] for i in chosen] + source.drawn[: args.count // 4]
        tables = tables_of(count_symbols(model, pictures))
        print(export.with_latent_tables(args.release, tables, args.out))
    except FastcodecError as error:
        print(f"fit_tables: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
