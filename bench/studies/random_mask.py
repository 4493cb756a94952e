"""The random-mask study: how much rate each neighbour of a latent saves (He et al. 2021, sections 4.1, 4.2 and 5.1).

    python -m bench.studies.random_mask --data PHOTOGRAPHS --kodak KODAK --cache FOLDER --out JSON --plot PNG

One context convolution is trained under a new random mask at every step. Then the rate R_M under any mask M can be
measured on the same latents, so at the same distortion. Its saving ratio (R_0 - R_M) / R_0, R_0 being the rate under
the mask of zeros (equation 7), tells how good a pattern of neighbours is. Measured are the 24 masks of a single
neighbour (figure 4) and the six patterns of table 1.

The paper takes R_0 for the rate of a hyperprior without context. How true that is depends on how the training masks
are drawn. So three networks are trained, see `Masks`: two supernets, and the hyperprior without context itself, whose
rate is R_h here. Savings are given of R_0, as in the paper, and of R_h.

Here the transform is trained already and stays as it is: the latents are those of a released `swift` model, computed
once and kept in a cache folder. What is trained is the whole entropy side of `random-mask`: h_a, the factorised prior,
h_s, context_prediction, entropy_parameters. That takes minutes on a CPU. An interrupted training goes on from its last
checkpoint; one that has had its minutes is only measured again. docs/random-mask.md has the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastcodec import machine
from fastcodec.crops import CropSource
from fastcodec.errors import FastcodecError
from fastcodec.files import image_files
from fastcodec.images import read_picture
from fastcodec.kernels import checkerboard
from fastcodec.kernels.processor import bfloat16_is_native
from fastcodec.models.swift import release as released
from fastcodec.models.swift.network import quality_position
from fastcodec.models.zoo.context import KERNEL, NEIGHBOURS, RADIUS, RASTER_TAPS, mask_of
from fastcodec.models.zoo.entropy_bottleneck import LEAST_LIKELIHOOD
from fastcodec.models.zoo.he2021 import RandomMask

from ..common import argument_parser, write_json
from ._training import kept, rate_factor, save

STRIDE = 16  # pixels a latent
HYPER_STRIDE = 64  # pixels a hyper latent
CHECKPOINT_SECONDS = 60.0
WARMUP_STEPS = 200
HYPER_SPREAD = 3.0  # of the hyper latents at first

Tap = tuple[int, int]

# How a training mask is drawn.
#   equal odds   each neighbour is in or out with equal odds, as in the paper (section 5.1). 94 masks in 100 then have
#                8 to 16 neighbours, and the mask of zeros never comes: it is one of 2^24.
#   even counts  the number of neighbours first, 0 to 24 with equal odds, then which. One mask in 25 is that of zeros.
#   zeros        never a neighbour: no supernet but the mean-scale hyperprior, for R_h.
Masks = Literal["equal odds", "even counts", "zeros"]
SUPERNETS: tuple[Masks, ...] = ("equal odds", "even counts")


class Pattern(NamedTuple):
    """A row of the paper's table 1, with its Kodak rate in bits a pixel and its saving ratio there."""

    name: str
    taps: tuple[Tap, ...]
    paper_bpp: float
    paper_saving: float


def _adjacent(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Those within 3x3."""
    return tuple(tap for tap in taps if max(map(abs, tap)) == 1)


PATTERNS = (
    Pattern("no reference", (), 0.4332, 0.0),
    Pattern("serial, 3×3 (fig. 1a)", _adjacent(RASTER_TAPS), 0.3928, 0.093),
    Pattern("serial, 5×5 (fig. 1b)", RASTER_TAPS, 0.3817, 0.119),
    Pattern("checkerboard, 3×3 (fig. 1c)", _adjacent(checkerboard.LIVE_TAPS), 0.3651, 0.157),
    Pattern("checkerboard, 5×5 (fig. 1d)", checkerboard.LIVE_TAPS, 0.3648, 0.158),
    Pattern("all of 3×3", _adjacent(NEIGHBOURS), 0.3649, 0.158),
)


# ---- latents


@dataclass(frozen=True)
class LatentsConfig:
    """Which latents: of the released model `identity` at a quality, the channels of most energy, of random crops."""

    data: str
    kodak: str | None
    identity: str
    quality: int = 50
    channels: int = 128
    crops: int = 4000
    crop: int = 256
    seed: int = 1


@dataclass(frozen=True)
class Latents:
    """Latents y^ = round(y), int16.

    Attributes:
        train: [crops, M, h, w].
        held_out: by data set, each image's [1, M, h, w].
        share: of the entropy of all channels, each on its own, what the M chosen ones have.
    """

    train: Tensor
    held_out: dict[str, list[Tensor]]
    share: float


def cached_latents(config: LatentsConfig, cache: Path) -> Latents:
    """The latents of a configuration from the cache folder, computed first where they are not there yet."""
    return Latents(**kept(cache / f"latents-{_key(config)}.pt", lambda: vars(_latents(config))))


def _latents(config: LatentsConfig) -> Latents:
    model = released.load(wanted=bytes.fromhex(config.identity))
    t = torch.tensor([quality_position(config.quality)], dtype=torch.float32)
    gain = model.gain[config.quality - 1][:, None, None]

    def analyse(pixels: Tensor) -> Tensor:
        x = pixels.float().contiguous(memory_format=torch.channels_last) / 255
        return torch.round(model.g_a(x, t.expand(len(x))) * gain).to(torch.int16)

    def analyse_image(pixels: np.ndarray) -> Tensor:
        height, width = (side - side % HYPER_STRIDE for side in pixels.shape[:2])
        return analyse(torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None])

    source = CropSource(Path(config.data), config.crop, config.seed)
    with torch.inference_mode():
        train = torch.cat([analyse(source.batch(min(8, config.crops - i))) for i in range(0, config.crops, 8)])
        held_out = {"held-out photographs": [analyse_image(pixels) for pixels in source.validation]}
        if config.kodak is not None:
            held_out["Kodak"] = [analyse_image(read_picture(path).pixels) for path in image_files(Path(config.kodak))]
    energy = train.float().square().mean((0, 2, 3))
    chosen = energy.argsort(descending=True)[: config.channels]
    entropies = _entropies(train)
    return Latents(
        train[:, chosen].clone(),
        {name: [y[:, chosen].clone() for y in images] for name, images in held_out.items()},
        float(entropies[chosen].sum() / entropies.sum()),
    )


def _entropies(y: Tensor) -> Tensor:
    """The zeroth-order entropy of each channel in bits; y: [B, M, h, w]."""
    out = []
    for channel in y.transpose(0, 1):
        p = channel.unique(return_counts=True)[1] / channel.numel()
        out.append(-(p * p.log2()).sum())
    return torch.stack(out)


def _key(*configs: LatentsConfig | TrainingConfig) -> str:
    """A name for what is made of these configurations."""
    return hashlib.sha256(json.dumps([asdict(c) for c in configs]).encode()).hexdigest()[:12]


# ---- training


@dataclass(frozen=True)
class TrainingConfig:
    """How the entropy side is trained."""

    masks: Masks = "equal odds"
    features: int = 128  # N; M follows from the latents
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 1


class Study:
    """`random-mask` on given latents: its network, its optimiser, and how long it has been trained."""

    def __init__(self, y: Tensor, config: TrainingConfig):
        """y: integers [crops, M, h, w], h and w multiples of 4."""
        torch.manual_seed(config.seed)
        self.y, self.config = y, config
        self.step, self.seconds = 0, 0.0
        self.model = RandomMask(config.features, y.shape[1], rounding="latents")
        self.model.g_a, self.model.g_s = nn.Identity(), nn.Identity()
        self._start_from_statistics()
        self.optimiser = torch.optim.Adam(self.model.parameters(), config.learning_rate)

    @torch.no_grad()
    def _start_from_statistics(self) -> None:
        """Scale the layers that read and write latents by each channel's spread, and begin with its scale and mean.

        Otherwise what lies many scales from its mean, whose likelihood is 0 in float32, would have no gradient. And
        hyper latents that begin well under their noise stay there: the context then does their work, and the rate
        without context says nothing.
        """
        model, y = self.model, self.y.float()
        mean, spread = y.mean((0, 2, 3)), y.std((0, 2, 3)).clamp(min=0.1)
        first, *_, writer = _convolutions(model.h_a)
        for reader in (first, *_convolutions(model.context_prediction)):
            reader.weight /= spread[:, None, None]
        z = model.hyper_analysis(y[:256])
        writer.weight *= (HYPER_SPREAD / z.std((0, 2, 3)).clamp(min=1e-6))[:, None, None, None]
        last = _convolutions(model.entropy_parameters)[-1]
        last.weight *= torch.cat([spread, spread])[:, None, None, None]
        assert last.bias is not None
        last.bias.copy_(torch.cat([spread, mean]))

    def train_step(self, progress: float) -> float:
        """One step under a new random mask, at a place 0..1 of the training; returns its bits a pixel."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * rate_factor(self.step, WARMUP_STEPS, progress)
        chosen = torch.randint(len(self.y), (self.config.batch,))
        loss = self._bits(self.y[chosen].float()) / (self.config.batch * self.y[0, 0].numel() * STRIDE**2)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def _bits(self, y: Tensor) -> Tensor:
        """The code length of latents and hyper latents. y^ is what it is; only z needs noise for its rounding."""
        model = self.model.train()
        if self.config.masks != "equal odds":
            model.eval()  # in training it would draw the mask itself, with equal odds; nothing else depends on this
            model.set_mask(_mask_of_even_counts() if self.config.masks == "even counts" else mask_of([]))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_native()):
            z = model.hyper_analysis(y)
        z_hat, z_bits = model.entropy_bottleneck(z.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_native()):
            parameters = model.parameters_while_training(model.h_s(z_hat), y)
        return model.gaussian_conditional.bits(y, parameters.float()).sum() + z_bits.sum()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on as if nothing had been in between."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a study of the same configuration and latents."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]

    @torch.inference_mode()
    def rates(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Bits a pixel of latents and hyper latents under each mask at every position: float64 [masks, images].

        images: each y^ [1, M, h, w]; masks: each [5, 5]. A position refers to its neighbours whether or not an order of
        decoding would have them, as in the paper: what is measured is what they tell.
        """
        model = self.model.eval()
        model.entropy_bottleneck.fit_quantiles()
        medians = model.entropy_bottleneck.medians
        out = torch.empty(len(masks), len(images), dtype=torch.float64)
        for i, image in enumerate(images):
            y = image.float()
            z_hat = torch.round(model.hyper_analysis(y) - medians) + medians
            z_likelihood = model.entropy_bottleneck.likelihood(z_hat.double().reshape(len(medians), 1, -1))
            z_bits = -torch.log2(z_likelihood.clamp(min=LEAST_LIKELIHOOD)).sum()
            psi = model.h_s(z_hat)
            for j, mask in enumerate(masks):
                model.set_mask(mask)
                bits = model.gaussian_conditional.bits(y, model.parameters_while_training(psi, y))
                out[j, i] = (bits.sum(dtype=torch.float64) + z_bits) / (y[0, 0].numel() * STRIDE**2)
        return out


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def _mask_of_even_counts() -> Tensor:
    count = int(torch.randint(len(NEIGHBOURS) + 1, ()))
    return mask_of([NEIGHBOURS[i] for i in torch.randperm(len(NEIGHBOURS))[:count]])


def train(study: Study, checkpoint: Path, minutes: float) -> None:
    """Train until `minutes` have been spent on this study in all, going on from the checkpoint if there is one."""
    if checkpoint.exists():
        study.restore(torch.load(checkpoint, weights_only=True))
    before, start, saved, recent = study.seconds, time.monotonic(), time.monotonic(), []
    try:
        while study.seconds < 60 * minutes:
            recent.append(study.train_step(study.seconds / (60 * minutes)))
            now = time.monotonic()
            study.seconds = before + now - start
            if now - saved > CHECKPOINT_SECONDS:
                save(checkpoint, study.state())
                place = f"{study.config.masks}: {study.seconds:6.0f} s, step {study.step:6}"
                print(f"{place}: {fmean(recent):.4f} bpp", file=sys.stderr)
                saved, recent = now, []
    finally:
        save(checkpoint, study.state())


# ---- results


def saving_ratio(bpp: float, without: float) -> float:
    """What is saved of a rate without context, as a part of it (equation 7)."""
    return (without - bpp) / without


def measure(study: Study, images: Sequence[Tensor]) -> dict[str, Any]:
    """The rates of a data set, as the JSON has them.

    Savings are of R_0. heat_map: that of the neighbour at each place of the 5x5, null in the centre; by_distance: its
    means over the neighbours at equal Euclidean distance, in order of distance; table: the patterns, with each image's
    rate.
    """
    masks = [mask_of([tap]) for tap in NEIGHBOURS] + [mask_of(pattern.taps) for pattern in PATTERNS]
    rates = study.rates(images, masks)
    means = rates.mean(1).tolist()
    none = means[len(NEIGHBOURS)]  # the first pattern refers to nothing
    savings = [saving_ratio(bpp, none) for bpp in means]
    heat_map: list[list[float | None]] = [[None] * KERNEL for _ in range(KERNEL)]
    rings: dict[int, list[float]] = {}
    for (dy, dx), saving in zip(NEIGHBOURS, savings, strict=False):
        heat_map[dy + RADIUS][dx + RADIUS] = saving
        rings.setdefault(dy * dy + dx * dx, []).append(saving)
    first = len(NEIGHBOURS)
    return {
        "images": len(images),
        "bpp_without_context": none,
        "heat_map": heat_map,
        "by_distance": [{"distance": math.sqrt(d), "saving": fmean(rings[d])} for d in sorted(rings)],
        "table": [
            {
                "pattern": pattern.name,
                "neighbours": len(pattern.taps),
                "bpp": bpp,
                "saving": saving,
                "paper_bpp": pattern.paper_bpp,
                "paper_saving": pattern.paper_saving,
                "bpp_of_images": [round(value, 5) for value in by_image],
            }
            for pattern, bpp, saving, by_image in zip(
                PATTERNS, means[first:], savings[first:], rates[first:].tolist(), strict=True
            )
        ],
    }


def markdown(record: dict[str, Any]) -> str:
    """Table 1 of each data set with the paper's figures beside the supernets', in Markdown."""
    runs = record["runs"]
    headings = ["He et al., Kodak: bpp | saved of R₀", *(f"{masks}: bpp | of R₀ | of Rₕ" for masks in runs)]
    tables = []
    for name, result in next(iter(runs.values()))["results"].items():
        hyperprior = record["hyperprior"]["bpp"][name]
        lines = [
            f"{name[0].upper()}{name[1:]}, {result['images']} images; Rₕ = {hyperprior:.4f} bpp:\n",
            f"| pattern | neighbours | {' | '.join(headings)} |",
            "| --- | ---: | ---: | ---: |" + " ---: | ---: | ---: |" * len(runs),
        ]
        for rows in zip(*(run["results"][name]["table"] for run in runs.values()), strict=True):
            pattern = rows[0]
            cells = [f"{pattern['paper_bpp']:.4f} | {100 * pattern['paper_saving']:.1f} %"]
            for row in rows:
                of_hyperprior = saving_ratio(row["bpp"], hyperprior)
                cells.append(f"{row['bpp']:.4f} | {100 * row['saving']:.1f} % | {100 * of_hyperprior:.1f} %")
            lines.append(f"| {pattern['pattern']} | {pattern['neighbours']} | {' | '.join(cells)} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def plot(path: Path, record: dict[str, Any]) -> None:
    """Draw the supernets' heat maps (figure 4) and patterns, beside the paper's, on the last data set.

    Needs matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    runs = record["runs"]
    name = list(next(iter(runs.values()))["results"])[-1]
    hyperprior = record["hyperprior"]["bpp"][name]
    results = {masks: run["results"][name] for masks, run in runs.items()}
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none"}):
        figure = Figure(figsize=(5 + 4.2 * len(runs), 4.8), layout="constrained")
        *maps, bars = figure.subplots(1, len(runs) + 1, width_ratios=(*[1] * len(runs), 1.3))
        for axes, (masks, result) in zip(maps, results.items(), strict=True):
            _draw_heat_map(axes, result["heat_map"])
            axes.set_title(f"One neighbour: % of R₀ saved\n{name}, masks of {masks}")
        patterns = next(iter(results.values()))["table"][1:]
        places, height = np.arange(len(patterns)), 0.8 / (len(runs) + 1)

        def draw(series: int, label: str, colour: str, savings: list[float]) -> np.ndarray:
            where = places + (series - len(runs) / 2) * height
            drawn = bars.barh(where, [100 * saving for saving in savings], 0.9 * height, color=colour, label=label)
            bars.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
            return where

        draw(0, "He et al. 2021, Kodak", "#9a9a9a", [row["paper_saving"] for row in patterns])
        for i, ((masks, result), colour) in enumerate(zip(results.items(), ("#d1495b", "#00798c"), strict=True)):
            rows = result["table"][1:]
            where = draw(i + 1, f"{name}, {masks}", colour, [row["saving"] for row in rows])
            of_hyperprior = [100 * saving_ratio(row["bpp"], hyperprior) for row in rows]
            label = None if i else "of Rₕ instead of R₀"
            bars.plot(of_hyperprior, where, "D", color="white", markeredgecolor="black", markersize=5, label=label)
        bars.set_yticks(places, [f"{row['pattern']}: {row['neighbours']}" for row in patterns])
        bars.invert_yaxis()
        bars.spines[["top", "right"]].set_visible(False)
        bars.margins(x=0.1)
        bars.set(xlabel="% of R₀ saved", title="Patterns: neighbours referred to")
        figure.legend(loc="outside lower right", ncols=len(runs) + 2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _draw_heat_map(axes: Any, heat_map: list[list[float | None]]) -> None:
    percent = 100 * np.array(heat_map, dtype=float)  # nan in the centre
    axes.imshow(percent, cmap="YlGnBu", vmin=0)
    dark = 0.6 * np.nanmax(percent)
    for (row, column), value in np.ndenumerate(percent):
        if not np.isnan(value):
            colour = "white" if value > dark else "black"
            axes.text(column, row, f"{value:z.1f}", ha="center", va="center", color=colour)
    offsets = [f"{offset:+d}" if offset else "0" for offset in range(-RADIUS, RADIUS + 1)]
    axes.set_xticks(range(KERNEL), offsets)
    axes.set_yticks(range(KERNEL), offsets)
    axes.set(xlabel="column of the neighbour", ylabel="row of the neighbour")


# ---- the program


LATENTS_OPTIONS = ("quality", "channels", "crops", "crop")
TRAINING_OPTIONS = ("features", "batch", "learning_rate", "seed")


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser("bench.studies.random_mask", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of training images; one in 40 is held out")
    parser.add_argument("--kodak", type=Path, help="folder of images to report on, the Kodak images")
    parser.add_argument("--cache", type=Path, required=True, help="folder of latents and checkpoints: used if there")
    models = released.available()
    parser.add_argument("--model", choices=models, default=models[0], help="whose latents: its identity (%(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="of training each of the three networks, earlier runs included (%(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--plot", type=Path, help="draw the heat maps and the patterns (matplotlib)")
    for config, names in ((LatentsConfig, LATENTS_OPTIONS), (TrainingConfig, TRAINING_OPTIONS)):
        for name in names:
            default = config.__dataclass_fields__[name].default
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(default), default=default, help="(%(default)s)"
            )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    args = _parser().parse_args(arguments)
    torch.set_flush_denormal(True)
    latents_config = LatentsConfig(
        str(args.data.resolve()),
        str(args.kodak.resolve()) if args.kodak else None,
        args.model,
        args.quality,
        args.channels,
        args.crops,
        args.crop,
        args.seed,
    )
    if args.plot and find_spec("matplotlib") is None:
        return _complain("--plot needs matplotlib: pip install 'fastcodec[plots]'")
    if args.kodak and not image_files(args.kodak):
        return _complain(f"{args.kodak}: no images")
    try:
        latents = cached_latents(latents_config, args.cache)
    except FastcodecError as error:
        return _complain(str(error))
    record = {
        "source": "He et al. 2021, figure 4 and table 1",
        "model": f"swift {latents_config.identity}",
        **{name: getattr(args, name) for name in (*LATENTS_OPTIONS, *TRAINING_OPTIONS)},
        "share_of_entropy": latents.share,
        "machine": machine.describe(),
        "runs": {},
    }

    def trained(masks: Masks) -> tuple[Study, dict[str, Any]]:
        training = TrainingConfig(masks, args.features, args.batch, args.learning_rate, args.seed)
        study = Study(latents.train, training)
        train(study, args.cache / f"checkpoint-{_key(latents_config, training)}.pt", args.minutes)
        return study, {"steps": study.step, "minutes": study.seconds / 60}

    for masks in SUPERNETS:
        study, effort = trained(masks)
        results = {name: measure(study, images) for name, images in latents.held_out.items()}
        record["runs"][masks] = {**effort, "results": results}
    study, effort = trained("zeros")
    rates = {name: study.rates(images, [mask_of([])]).mean().item() for name, images in latents.held_out.items()}
    record["hyperprior"] = {**effort, "bpp": rates}
    print(markdown(record))
    if args.out:
        write_json(args.out, record)
    if args.plot:
        plot(args.plot, record)
    return 0


def _complain(problem: str) -> int:
    print(f"random_mask: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
