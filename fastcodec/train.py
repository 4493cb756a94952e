"""The trainer: `fastcodec train DIR`. Rate-distortion loss, EMA weights, resume; for swift and the systems of the zoo.

    loss = bits / pixel + lambda(t) * 255^2 * MSE                    (He et al. 2021, equation 1)

With swift lambda is drawn anew for every image; models/tasks.py says what differs between models. A run is a cycle of
fixed wall-clock length: warm-up, constant rate, then decay, over the last part of which swift's entropy side trains in
the integer arithmetic that it will run in. A share of the crops are not photographs but drawn (`fastcodec.graphics`):
text, windows, charts, flat colours, noise. A killed run resumes from its last checkpoint, at its place in the cycle; a
finished one starts another cycle from its weights. Every interval it writes one JSON line to `log.jsonl` in the run's
folder: the step, the loss, the rates, and the loss on two validation splits that training never sees, photographs and
graphics.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import graphics, metrics
from .codec import Codec
from .errors import FastcodecError, ImageError, ModelMismatchError
from .images import read_picture
from .models import released, tasks, zoo

VALIDATION_EVERY = 40  # one image in so many is held out of training
DRAWN_PICTURES = 384  # graphics that are held in memory; each step draws one of them anew
DRAWN_SIDE = 512
LOSS_LIMIT = 1.0  # twice a photograph's usual loss
VALIDATION_GRAPHICS = 36  # drawn pictures that are held out,
VALIDATION_SEED = 2021  # and their seed
EVALUATION_QUALITIES = (10, 40, 70, 100)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass
class TrainingConfig:
    """One training run. `minutes` is the length of a cycle in wall-clock time."""

    data: Path
    run: Path
    minutes: float = 110.0
    batch: int = 8
    crop: int = 256
    graphics: float = 0.2  # share of the crops that are drawn
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    decay_from: float = 0.55  # fraction of the cycle at which the rate starts to fall
    quantise_from: float = 0.7  # fraction of the cycle at which the entropy side turns integer
    ema: float = 0.998
    checkpoint_seconds: float = 300.0
    log_steps: int = 100
    device: str = "cpu"
    seed: int = 1
    model: str = "swift"
    quality: int | None = None  # of a system of the zoo
    start: Path | None = None  # a released model's file, or a state dict of the zoo, to go on from
    evaluate: Path | None = None  # a folder measured at every checkpoint, for the log only


class CropSource:
    """Random crops with flips from a folder of images, decoded once and held in memory as uint8, and from graphics.

    graphics: the share of crops that are drawn, 0 to 1.
    """

    def __init__(self, folder: Path, crop: int, seed: int, graphics: float = 0.0):
        if not 0 <= graphics <= 1:
            raise ValueError(f"graphics {graphics} is not a share of the crops, 0 to 1")
        images = [im for im in map(_load, _image_files(folder)) if im is not None and min(im.shape[:2]) >= crop]
        if len(images) < VALIDATION_EVERY:
            raise ImageError(f"{folder}: {len(images)} images of at least {crop} pixels; need {VALIDATION_EVERY}")
        self.validation = images[::VALIDATION_EVERY]
        self.images = [im for i, im in enumerate(images) if i % VALIDATION_EVERY]
        self.crop, self.graphics = crop, graphics
        self.random = np.random.default_rng(seed)
        self.drawn: list[np.ndarray] = []
        if graphics:
            count = DRAWN_PICTURES if crop >= DRAWN_SIDE // 2 else 32
            self.drawn = [self._draw() for _ in range(count)]

    def _draw(self) -> np.ndarray:
        """A drawn picture, larger than a crop where the photograph allows; some kinds lie over the photograph."""
        photograph = self.images[self.random.integers(len(self.images))]
        side = max(self.crop, min(DRAWN_SIDE, 2 * self.crop))
        if min(photograph.shape[:2]) < side:
            side = self.crop
        return graphics.draw(self.random, side, side, photograph=_random_part(self.random, photograph, side))

    def batch(self, size: int, crop: int | None = None) -> Tensor:
        """uint8 [size, 3, crop, crop]."""
        crop = crop or self.crop
        out = np.empty((size, crop, crop, 3), np.uint8)
        if self.drawn:
            self.drawn[self.random.integers(len(self.drawn))] = self._draw()
        for i in range(size):
            pool = self.drawn if self.drawn and self.random.random() < self.graphics else self.images
            image = pool[self.random.integers(len(pool))]
            patch = _random_part(self.random, image, crop)
            if self.random.random() < 0.5:
                patch = patch[:, ::-1]
            if self.random.random() < 0.25:
                patch = patch.transpose(1, 0, 2)
            out[i] = patch
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def validation_batch(self, crop: int) -> Tensor:
        """The central crops of the held-out images: uint8 [n, 3, crop, crop]."""
        patches = []
        for image in self.validation:
            top, left = ((side - crop) // 2 for side in image.shape[:2])
            patches.append(image[top : top + crop, left : left + crop])
        return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)

    def validation_graphics(self, crop: int) -> Tensor:
        """Drawn pictures of every kind, the same for every seed: uint8 [n, 3, crop, crop].

        Pillow's own fonts make them equal on every machine; those over photographs lie over held-out ones.
        """
        pictures = []
        for i in range(max(VALIDATION_GRAPHICS, len(graphics.KINDS))):
            random = np.random.default_rng((VALIDATION_SEED, i))  # so that no picture depends on how another is drawn
            photograph = _random_part(random, self.validation[i % len(self.validation)], crop)
            kind = graphics.KINDS[i % len(graphics.KINDS)]
            pictures.append(
                graphics.draw(random, crop, crop, kind=kind, photograph=photograph, fonts=graphics.PILLOW_FONTS)
            )
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _random_part(random: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """A square of the image at a random place."""
    top, left = (random.integers(n - side + 1) for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def _load(path: Path) -> np.ndarray | None:
    """RGB pixels; None, with a word on stderr, for a file that is not an image: one must not end a run of hours."""
    try:
        pixels = read_picture(path).pixels
    except FastcodecError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


class Trainer:
    """Owns the model, its optimiser and its averaged weights, and the place in the cycle."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.task = tasks.task(config.model, config.quality)
        self.device = torch.device(config.device)
        config.run.mkdir(parents=True, exist_ok=True)
        self.source = CropSource(config.data, config.crop, config.seed, config.graphics)
        self.step, self.cycle_start, self.cycle_step = 0, time.time(), 0
        checkpoint = config.run / "last.pt"
        state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
        if state is None:
            torch.manual_seed(config.seed)
            self.model = self.task.create(self.source.batch, config.start)
        else:
            trained = state.get("name", "swift")
            if trained != self.task.name:
                raise ModelMismatchError(f"{checkpoint}: a run of {trained}, not of {self.task.name}")
            self.model = self.task.blank(state["config"])
            self.model.load_state_dict(state["model"])
        self.model.to(self.device)
        # A copy built from scratch: deepcopy of a module would share nothing either, but would copy gradients too.
        self.average = self.task.blank(self.task.describe(self.model)).to(self.device)
        self.average.load_state_dict(state["average"] if state else self.model.state_dict())
        self.average.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self._groups(), lr=config.learning_rate, betas=(0.9, 0.98))
        if state is not None:
            self.step = state["step"]
            if not state["finished"]:  # interrupted: go on at the same place of the cycle
                self.optimiser.load_state_dict(state["optimiser"])
                self.cycle_step = state["cycle_step"]
                self.cycle_start = time.time() - state["cycle_seconds"]
        self.source.random = np.random.default_rng((config.seed, self.step))
        torch.manual_seed(config.seed + self.step)

    def _groups(self) -> list[dict]:
        groups: dict[str, list] = {"rest": [], "quick": []}
        for name, parameter in self.model.named_parameters():
            groups["quick" if name.startswith(self.task.quick) else "rest"].append(parameter)
        return [
            {"params": groups[name], "weight_decay": 0.0, "factor": factor}
            for name, factor in (("rest", 1.0), ("quick", 4.0))
            if groups[name]
        ]

    def progress(self) -> float:
        """Place in the cycle, 0..1, by the clock."""
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
        config = self.config
        x = self.source.batch(config.batch).to(self.device).float() / 255
        # One image in each of `batch` equal slices of the quality range: every batch sees the whole curve.
        t = (torch.arange(config.batch) + torch.rand(config.batch)) / config.batch
        t = t[torch.randperm(config.batch)].to(self.device)
        quantise = progress >= config.quantise_from
        self.task.quantise(self.model, quantise)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * group["factor"] * self.rate_factor(progress)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.autocast):
            out = self.task.run(self.model, x, t)
        loss, parts = self._loss(out, x, t)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            return parts | {"skipped": 1.0}
        self.optimiser.step()
        self.step += 1
        self.cycle_step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        return parts | {"norm": norm.item()}

    def _loss(self, out: dict[str, Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, dict[str, float]]:
        pixels = x.shape[2] * x.shape[3]
        mse = (out["x_hat"] - x).square().flatten(1).mean(1)
        bpp = (out["y_bits"] + out["z_bits"]) / pixels
        per_image = bpp + self.task.lagrangian(self.model, t) * 255.0**2 * mse
        weighed = per_image * self.task.importance(t)
        # Beyond the limit an image pulls no harder than at it: else a few drawn ones would decide alone.
        pull = (LOSS_LIMIT / weighed.detach()).clamp(max=1)
        return (weighed * pull).mean(), {
            "loss": weighed.mean().item(),
            "bpp": bpp.mean().item(),
            "z_bpp": out["z_bits"].mean().item() / pixels,
            "psnr": (-10 * torch.log10(mse)).mean().item(),
        }

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
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        rows = []
        for point in self.task.points:
            t = torch.full((len(x),), point, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.autocast):
                parts = [
                    self._loss(self.task.run(self.average, xs, ts), xs, ts)[1]
                    for xs, ts in zip(x.split(12), t.split(12), strict=True)
                ]
            rows.append({k: float(np.mean([p[k] for p in parts])) for k in ("loss", "bpp", "z_bpp", "psnr")})
        torch.random.set_rng_state(state)
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

    def log(self, **record) -> None:
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
            for name, handler in before.items():
                signal.signal(name, handler)

    def _run_cycle(self, stop: list[bool]) -> None:
        config, sums, last_save = self.config, [], time.time()
        started, started_step = time.time(), self.step
        self.log(event="start", parameters=sum(p.numel() for p in self.model.parameters()))
        while not stop and (progress := self.progress()) < 1.0:
            sums.append(self.train_step(progress))
            if self.step % config.log_steps == 0:
                mean = {k: round(float(np.mean([s[k] for s in sums if k in s])), 4) for k in sums[-1]}
                rate = (self.step - started_step) / (time.time() - started)
                self.log(**mean, lr=self.optimiser.param_groups[0]["lr"], steps_per_s=round(rate, 2))
                sums = []
            if time.time() - last_save > config.checkpoint_seconds:
                self.save()
                self.log(event="validation", **self.validate())
                self._evaluate()
                last_save = time.time()
        self.save(finished=not stop)
        self.log(event="stopped" if stop else "finished", **self.validate())
        if not stop:
            self.task.export(self.average, config.run)
            self._evaluate()

    def _evaluate(self) -> None:
        """Real files of the images in `config.evaluate` with the averaged weights, for the log only."""
        if self.config.evaluate is None:
            return
        if self.task.name != "swift":
            self._evaluate_system()
            return
        release = self.config.run / "evaluated.safetensors"
        released.export(self.average, release)
        codec = Codec(released.read_model(release))
        pictures = [read_picture(path) for path in _image_files(self.config.evaluate)]
        for quality in EVALUATION_QUALITIES:
            bpp, psnr = [], []
            for picture in pictures:
                data = codec.encode_picture(picture, quality).data
                bpp.append(8 * len(data) / (picture.width * picture.height))
                psnr.append(metrics.psnr(picture.pixels, codec.decode_picture(data).pixels))
            self.log(event="evaluation", quality=quality, bpp=float(np.mean(bpp)), psnr=float(np.mean(psnr)))

    def _evaluate_system(self) -> None:
        """`_evaluate` for a system of the zoo."""
        model = self.task.blank(self.task.describe(self.average))
        model.load_state_dict(self.average.state_dict())
        model.update(fit_quantiles=True)
        codec, bpp, psnr = zoo.Codec(model), [], []
        for picture in map(read_picture, _image_files(self.config.evaluate)):
            data = codec.encode_picture(picture).data
            bpp.append(8 * len(data) / (picture.width * picture.height))
            psnr.append(metrics.psnr(picture.pixels, codec.decode_picture(data).pixels))
        self.log(event="evaluation", bpp=float(np.mean(bpp)), psnr=float(np.mean(psnr)))


def _fraction(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastcodec train`."""
    default = TrainingConfig(Path(), Path())
    parser.add_argument("data", type=Path, help="folder of training images, searched recursively")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for checkpoints and log.jsonl; resumed if it exists"
    )
    parser.add_argument("--minutes", type=float, default=default.minutes, help="length of the cycle (%(default)s)")
    parser.add_argument("--batch", type=int, default=default.batch, help="images a step (%(default)s)")
    parser.add_argument(
        "--crop", type=int, default=default.crop, help="crop side in pixels, a multiple of 64 (%(default)s)"
    )
    parser.add_argument(
        "--graphics",
        type=_fraction,
        default=default.graphics,
        metavar="FRACTION",
        help="share of the crops that are drawn, not photographs: text, windows, charts (%(default)s; 0: none)",
    )
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="(%(default)s)")
    parser.add_argument("--quantise-from", type=float, default=default.quantise_from, help="fraction (%(default)s)")
    parser.add_argument(
        "--model",
        choices=("swift", *zoo.SYSTEMS),
        default=default.model,
        metavar="NAME",
        help=f"swift, or a system of the papers: {', '.join(zoo.SYSTEMS)} (%(default)s)",
    )
    parser.add_argument("--quality", type=int, help="1 to 8, of a system of the papers: its channels and lambda (3)")
    parser.add_argument("--start", type=Path, help="a release (.safetensors), or a system's weights, to go on from")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="images to code at every checkpoint, for the log")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default.device, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed)


def main(arguments: argparse.Namespace) -> int:
    """Run `fastcodec train`."""
    fields = TrainingConfig.__dataclass_fields__
    torch.set_flush_denormal(True)
    Trainer(TrainingConfig(**{k: v for k, v in vars(arguments).items() if k in fields})).run()
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
