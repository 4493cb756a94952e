"""The trainer: `fastcodec train DIR`. Rate-distortion loss, EMA weights, resume; for swift and the systems of the zoo.

    loss = bits / pixel + lambda(t) * 255^2 * MSE                    (He et al. 2021, equation 1)

With swift lambda is drawn anew for every image; models/tasks.py has the differences between models. A run is a cycle of
fixed wall-clock length: warm-up, constant rate, then decay, over the last part of which swift's entropy side trains in
the integer arithmetic that it will run in. A share of the crops are not photographs but drawn (`fastcodec.graphics`):
text, windows, charts, flat colours, noise. A killed run resumes from its last checkpoint, at its place in the cycle; a
finished one starts another cycle from its weights. Every interval it writes one JSON line to `log.jsonl` in the run's
folder: the step, the loss, the rates, and the loss on two validation splits that training never sees, photographs and
graphics.

On a GPU the pixels lie on the device (crops.py), and a whole step, from cutting the crops to the averaged weights, is
one CUDA graph, captured anew when the cycle changes what a step computes: the host only sets the rate and draws
pictures. Both ways run `_compute`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import metrics
from .arguments import fraction, integers, positive
from .codec import Codec
from .crops import CropSource, ResidentCrops, drawing_pool
from .errors import FastcodecError, ModelMismatchError
from .files import image_files
from .images import read_picture
from .kernels.processor import bfloat16_is_native
from .models import tasks, zoo
from .models.modules import in_layout

LOSS_LIMIT = 1.0  # twice a photograph's usual loss
EAGER_STEPS = 4  # before a capture: PyTorch chooses algorithms, and the optimiser makes its state
PARTS = ("loss", "bpp", "z_bpp", "psnr", "norm", "skipped")  # of a step, as `_compute` returns them


def _option(default: Any, about: str, **argument: Any) -> Any:
    """A field of the configuration that is an option of the command line, with argparse's words for it."""
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        argument = {"type": type(default), **argument}
        about = f"{about} (%(default)s)"
    return field(default=default, metadata={"help": about, **argument})


@dataclass
class TrainingConfig:
    """One training run, and the options of `fastcodec train`."""

    data: Path
    run: Path
    minutes: float = _option(110.0, "length of the cycle by the clock, all that it does included", type=positive)
    steps: int | None = _option(None, "length of the cycle in steps, in place of --minutes", type=int)
    batch: int = _option(8, "images a step")
    crop: int = _option(256, "crop side in pixels, a multiple of 64")
    late_crop: int | None = _option(
        None, "crop side in the last part of the cycle, in smaller batches of about as many pixels", type=int
    )
    late_from: float = _option(0.7, "where that part begins, as a fraction of the cycle", type=fraction)
    graphics: float = _option(
        0.2,
        "share of the crops that are drawn, not photographs: text, windows, charts; 0 for none",
        type=fraction,
        metavar="FRACTION",
    )
    learning_rate: float = _option(6e-4, "at its greatest")
    warmup_steps: int = 300
    decay_from: float = _option(0.55, "fraction of the cycle at which the rate starts to fall", type=fraction)
    quantise_from: float = _option(0.7, "fraction of the cycle at which the entropy side turns integer")
    ema: float = _option(0.998, "decay of averaged weights", type=fraction)
    checkpoint_seconds: float = _option(300.0, "between checkpoints")
    log_steps: int = _option(100, "between lines of the log")
    device: str = _option("cpu", "where to train", choices=("cpu", "cuda"))
    layout: str = _option("nchw", "of feature maps in memory; nhwc: channels last", choices=("nchw", "nhwc"))
    graph: bool = _option(True, "on a GPU: launch each operation, without a CUDA graph of a step", action="store_false")
    compile: bool = _option(
        False, "compile both passes first (torch.compile), which takes a minute and pays on a GPU", action="store_true"
    )
    seed: int = _option(1, "of weights, crops and noise")
    model: str = _option(
        "swift",
        f"swift, or a system of the papers: {', '.join(zoo.SYSTEMS)}",
        choices=("swift", *zoo.SYSTEMS),
        metavar="NAME",
    )
    quality: int | None = _option(None, "1 to 8, of a system of the papers: its channels and lambda (3)", type=int)
    groups: tuple[int, ...] | None = _option(
        None,
        "channels of each group of swift's latents (those of the release, or all in one)",
        type=integers(1),
        metavar="N,N,...",
    )
    entropy_side: bool = _option(
        False,
        "train swift's prior, hyper-synthesis, contexts and parameter networks alone; the transforms stay",
        action="store_true",
    )
    start: Path | None = _option(  # noqa: RUF009 (it makes a field)
        None, "a release (.safetensors), or a system's weights (a state dict), to go on from", type=Path
    )
    evaluate: Path | None = _option(  # noqa: RUF009
        None, "images to code at every checkpoint, for the log", type=Path, metavar="DIR"
    )


class Trainer:
    """Owns the model, its optimiser and its averaged weights, and the place in the cycle.

    task: another one than the configuration names.
    """

    def __init__(self, config: TrainingConfig, task: tasks.Task[Any] | None = None):
        self.config = config
        self.step, self.cycle_start, self.cycle_step = 0, time.time(), 0
        self.task = task or tasks.task(config.model, config.quality, config.groups, config.entropy_side)
        self.device = torch.device(config.device)
        self.on_gpu = on_gpu = self.device.type == "cuda"
        config.run.mkdir(parents=True, exist_ok=True)
        self.pool = drawing_pool() if on_gpu and config.graphics else None
        self.source = CropSource(config.data, config.crop, config.seed, config.graphics, self.pool)
        checkpoint = config.run / "last.pt"
        state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
        if state is None:
            torch.manual_seed(config.seed)
            self.model: nn.Module = self.task.create(self.source.batch, config.start)
        else:
            trained = state.get("name", "swift")
            if trained != self.task.name:
                raise ModelMismatchError(f"{checkpoint}: a run of {trained}, not of {self.task.name}")
            self.model = self.task.blank(state["config"])
            self.model.load_state_dict(state["model"])
        memory = torch.channels_last if config.layout == "nhwc" else torch.contiguous_format
        in_layout(self.model.to(self.device), memory)
        # A copy built from scratch: deepcopy of a module would share nothing either, but would copy gradients too.
        blank = self.task.blank(self.task.describe(self.model))
        self.average: nn.Module = in_layout(blank.to(self.device), memory)
        self.average.load_state_dict(state["average"] if state else self.model.state_dict())
        self.average.requires_grad_(False)
        # A GPU reads the rate where a graph does; fused, it skips a step itself where `found_inf` says so.
        options: dict[str, bool] = {"fused": True, "capturable": True} if on_gpu else {}
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.parameter_groups(), lr=config.learning_rate, betas=(0.9, 0.98), **options
        )
        for group in self.optimiser.param_groups if on_gpu else ():
            group["lr"] = torch.tensor(group["lr"], device=self.device)
        if state is not None:
            self.step = state["step"]
            if not state["finished"]:  # interrupted: go on at the same place of the cycle
                rates = [group["lr"] for group in self.optimiser.param_groups]
                self.optimiser.load_state_dict(state["optimiser"])
                for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
                    group.update(lr=rate, capturable=on_gpu, fused=on_gpu or None)
                for moments in self.optimiser.state.values():  # the run may have been on another kind of device
                    moments["step"] = moments["step"].to(self.device)
                self.cycle_step = state["cycle_step"]
                self.cycle_start = time.time() - state["cycle_seconds"]
        self.source.random = np.random.default_rng((config.seed, self.step))
        torch.manual_seed(config.seed + self.step)
        # Where a CPU does not multiply bfloat16, float32 is quicker.
        self.bfloat16 = self.task.autocast and (on_gpu or bfloat16_is_native())
        self._passes = self._objective
        if config.compile:
            self._passes = torch.compile(self._objective, dynamic=False, fullgraph=True)
        self._pull = torch.zeros((), device=self.device)  # of the averages towards the weights, in this step
        self._totals = torch.zeros(len(PARTS), device=self.device, dtype=torch.float64)
        self._resident: ResidentCrops | None = None
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        if on_gpu:
            torch.set_float32_matmul_precision("high")  # TF32 holds the integers of the entropy side exactly
            torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
            self._resident = ResidentCrops(self.source, self.device)

    def parameter_groups(self) -> list[dict]:
        """The parameters as an optimiser takes them, by `factor`: how many times the rate they learn at."""
        groups: dict[str, list] = {"rest": [], "quick": []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups["quick" if name.startswith(self.task.quick) else "rest"].append(parameter)
        return [
            {"params": groups[name], "weight_decay": 0.0, "factor": factor}
            for name, factor in (("rest", 1.0), ("quick", 4.0))
            if groups[name]
        ]

    def progress(self) -> float:
        """Place in the cycle, 0..1: by the clock, or by steps where the run has a number of them."""
        if self.config.steps is not None:
            return min(1.0, self.cycle_step / self.config.steps)
        return min(1.0, (time.time() - self.cycle_start) / (60 * self.config.minutes))

    def rate_factor(self, progress: float) -> float:
        """Learning-rate schedule: linear warm-up in steps, then constant, then a cosine to 1 %."""
        warmup = min(1.0, (self.cycle_step + 1) / self.config.warmup_steps)
        if progress <= self.config.decay_from:
            return warmup
        fall = (progress - self.config.decay_from) / (1 - self.config.decay_from)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))

    def train_step(self, progress: float) -> dict[str, float]:
        """One optimiser step; returns its loss, rates and distortion."""
        batch, crop, _ = self._prepare(progress)
        values = self._compute(self._images(batch, crop), _places(batch, self.device))
        parts = dict(zip(PARTS, values.tolist(), strict=True))
        if not parts.pop("skipped"):
            self.step += 1
            self.cycle_step += 1
            return parts
        parts.pop("norm")
        return parts | {"skipped": 1.0}

    def graph_step(self, progress: float) -> None:
        """One optimiser step on a GPU, not waited for; its parts are added up for `_take_means`."""
        kind = self._prepare(progress)
        if kind not in self._graphs:
            self._graphs = {kind: self._capture(partial(self._resident_step, *kind[:2]))}  # the last is done with
        self._graphs[kind].replay()
        if self._resident is not None and self.pool is not None:
            self._resident.redraw(self.pool)
        self.step += 1
        self.cycle_step += 1

    def _images(self, batch: int, crop: int) -> Tensor:
        """Crops of the training images, float [batch, 3, crop, crop] in 0..1."""
        if self._resident is None:
            return self.source.batch(batch, crop).to(self.device).float() / 255
        x = self._resident.batch(batch, crop)
        return x.contiguous() if self.config.layout == "nchw" else x

    def _resident_step(self, batch: int, crop: int) -> None:
        parts = self._compute(self._images(batch, crop), _places(batch, self.device))
        self._totals += torch.where(parts[-1] > 0, 0.0, parts)  # a skipped step's parts are not numbers
        self._totals[-1] += parts[-1]

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph, after a few that are launched as usual."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(EAGER_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.step += EAGER_STEPS
        self.cycle_step += EAGER_STEPS
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph

    def _prepare(self, progress: float) -> tuple[int, int, bool]:
        """Sets rates and arithmetic of a step. Returns what its shape depends on: batch, crop, in integers or not."""
        config = self.config
        quantise = progress >= config.quantise_from
        self.task.quantise(self.model, quantise)
        for group in self.optimiser.param_groups:
            rate = config.learning_rate * group["factor"] * self.rate_factor(progress)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        step = self.step + 1
        self._pull.fill_(1 - min(config.ema, (1 + step) / (10 + step)))
        if config.late_crop is None or progress < config.late_from:
            return config.batch, config.crop, quantise
        return max(1, round(config.batch * (config.crop / config.late_crop) ** 2)), config.late_crop, quantise

    def _compute(self, x: Tensor, t: Tensor) -> Tensor:
        """A step on images x, float [B, 3, H, W] in 0..1, at places t of the range of qualities: all its arithmetic.

        Returns PARTS, float64. Nothing is read by the host if the device is a GPU. A step whose gradients are not
        finite leaves weights, averages and the optimiser's state alone.
        """
        loss, parts = self._passes(x, t)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        skipped = (~torch.isfinite(norm)).float()
        values = torch.stack([*parts, norm, skipped]).double()
        if self.on_gpu:
            self.optimiser.found_inf = skipped  # type: ignore[attr-defined]  # read by fused ones, declared by none
        elif skipped:
            return values
        self.optimiser.step()
        with torch.no_grad():
            means: list[Tensor] = list(self.average.parameters())
            weights: list[Tensor] = list(self.model.parameters())
            way = torch._foreach_sub(weights, means)
            torch._foreach_mul_(way, self._pull)
            torch._foreach_add_(means, way)
        return values

    def _objective(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`_loss` of the model in training."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            out = self.task.run(self.model, x, t)
        return self._loss(out, x, t)

    def _loss(self, out: dict[str, Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The mean loss with its outliers held back, and of PARTS loss, bpp, z_bpp and psnr, means over the images."""
        pixels = x.shape[2] * x.shape[3]
        mse = (out["x_hat"] - x).square().flatten(1).mean(1)
        bpp = (out["y_bits"] + out["z_bits"]) / pixels
        per_image = bpp + self.task.lagrangian(self.model, t) * 255.0**2 * mse
        weighed = per_image * self.task.importance(t)
        # Beyond the limit an image pulls the less, the further it is: else a few drawn ones would decide alone, and
        # what costs most is coded losslessly anyway.
        pull = (LOSS_LIMIT / weighed.detach()).clamp(max=1).square()
        parts = weighed, bpp, out["z_bits"] / pixels, -10 * torch.log10(mse.clamp(min=1e-10))
        return (weighed * pull).mean(), [part.detach().mean() for part in parts]

    def _take_means(self, steps: int) -> dict[str, float]:
        """The means of the parts of the last `steps` graph steps: waits for the GPU."""
        *totals, skipped = self._totals.tolist()
        self._totals.zero_()
        means = dict(zip(PARTS, (total / max(1.0, steps - skipped) for total in totals), strict=False))
        return means | ({"skipped": skipped / steps} if skipped else {})

    def validate(self) -> dict:
        """Loss, bpp and PSNR of the averaged weights at the task's qualities, on each validation split."""
        photographs = self._measure(self.source.validation_batch(self.config.crop))
        drawn = self._measure(self.source.validation_graphics(self.config.crop))
        return {
            "validation_loss": photographs.pop("loss"),
            **photographs,
            **{f"graphics_{name}": drawn[name] for name in ("loss", "bpp", "psnr")},
        }

    @torch.no_grad()
    def _measure(self, images: Tensor) -> dict:
        """The mean loss of the averaged weights on images uint8 [n, 3, H, W], and bpp and PSNR by quality."""
        self.task.quantise(self.average, True)
        x = images.to(self.device).float() / 255
        rows = []
        with torch.random.fork_rng([self.device] if self.on_gpu else []):
            torch.manual_seed(0)
            for point in self.task.points:
                t = torch.full((len(x),), point, device=self.device)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    parts = [
                        torch.stack(self._loss(self.task.run(self.average, xs, ts), xs, ts)[1])
                        for xs, ts in zip(x.split(12), t.split(12), strict=True)
                    ]
                rows.append(dict(zip(PARTS, torch.stack(parts).double().mean(0).tolist(), strict=False)))
        return {
            "loss": float(np.mean([r["loss"] for r in rows])),
            "bpp": [round(r["bpp"], 4) for r in rows],
            "z_bpp": [round(r["z_bpp"], 4) for r in rows],
            "psnr": [round(r["psnr"], 3) for r in rows],
        }

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint atomically."""
        state = {
            "name": self.task.name,
            "config": self.task.describe(self.model),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "cycle_step": self.cycle_step,
            "cycle_seconds": time.time() - self.cycle_start,
            "finished": finished,
        }
        path = self.config.run / "last.pt"
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def log(self, **record: Any) -> None:
        """Append a line to log.jsonl and show it."""
        line = json.dumps({"step": self.step, "progress": round(self.progress(), 4), **record})
        with open(self.config.run / "log.jsonl", "a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    def run(self) -> None:
        """Train to the end of the cycle, or until interrupted; either way the state is on disk afterwards."""
        stop: list[bool] = []
        before = {name: signal.signal(name, lambda *_: stop.append(True)) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._run_cycle(stop)
        finally:
            if self.pool is not None:
                self.pool.shutdown(wait=False, cancel_futures=True)
            for name, handler in before.items():
                signal.signal(name, handler)

    def _run_cycle(self, stop: list[bool]) -> None:
        config, last_save = self.config, time.time()
        graphed = self._resident is not None and config.graph
        started, started_step, sums = time.time(), self.step, []
        logged_step = self.step
        parameters = sum(p.numel() for p in self.model.parameters())
        self.log(event="start", parameters=parameters, dtype="bfloat16" if self.bfloat16 else "float32")
        while not stop and (progress := self.progress()) < 1.0:
            if graphed:
                self.graph_step(progress)
            else:
                sums.append(self.train_step(progress))
            if self.step - logged_step >= config.log_steps:
                if graphed:
                    mean = self._take_means(self.step - logged_step)
                else:
                    mean = {k: float(np.mean([s[k] for s in sums if k in s])) for k in sums[-1]}
                    sums = []
                logged_step = self.step
                rate = (self.step - started_step) / (time.time() - started)
                mean = {k: round(v, 4) for k, v in mean.items()}
                self.log(**mean, lr=float(self.optimiser.param_groups[0]["lr"]), steps_per_s=round(rate, 2))
            if time.time() - last_save > config.checkpoint_seconds:
                self.save()
                self.log(event="validation", **self.validate())
                self._evaluate()
                last_save = time.time()
        self.save(finished=not stop)
        self._export()
        self.log(event="stopped" if stop else "finished", **self.validate())
        if not stop:
            self._evaluate()

    def _export(self) -> None:
        """The averaged weights as they are used, beside the checkpoint; a word in the log where they cannot be."""
        try:
            self.task.export(self._average_on_host(), self.config.run, self.step)
        except FastcodecError as error:
            self.log(event="not exported", error=str(error))

    def _average_on_host(self) -> nn.Module:
        model = self.task.blank(self.task.describe(self.average))
        model.load_state_dict(self.average.state_dict())
        return model

    def _evaluate(self) -> None:
        """Real files of the images in `config.evaluate` with the averaged weights, for the log only."""
        if self.config.evaluate is None:
            return
        codec = Codec(self.task.coder(self._average_on_host(), self.config.run))
        pictures = [read_picture(path) for path in image_files(self.config.evaluate, recursive=True)]
        for quality in self.task.qualities:
            bpp, psnr = [], []
            for picture in pictures:
                data = codec.encode(picture, quality)
                bpp.append(8 * len(data) / (picture.width * picture.height))
                psnr.append(metrics.psnr(picture.pixels, codec.decode(data, out="picture").pixels))
            at = {} if quality is None else {"quality": quality}
            self.log(event="evaluation", **at, bpp=float(np.mean(bpp)), psnr=float(np.mean(psnr)))


def _places(batch: int, device: torch.device) -> Tensor:
    """Places t on the range of qualities, one in each of `batch` equal slices: every batch sees the whole curve."""
    return (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastcodec train`."""
    parser.add_argument("data", type=Path, help="folder of training images, searched recursively")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for checkpoints and log.jsonl; resumed if it exists"
    )
    for option in fields(TrainingConfig):
        if option.metadata:
            off = "no-" if option.default is True else ""
            name = f"--{off}{option.name.replace('_', '-')}"
            parser.add_argument(name, dest=option.name, default=option.default, **option.metadata)


def main(arguments: argparse.Namespace) -> int:
    """Run `fastcodec train`."""
    torch.set_flush_denormal(True)
    names = {field.name for field in fields(TrainingConfig)}
    Trainer(TrainingConfig(**{name: value for name, value in vars(arguments).items() if name in names})).run()
    return 0
