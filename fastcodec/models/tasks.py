"""Tasks of the trainer: how a model is made, run, weighed and exported.

`SwiftTask` is the project's own model, one network for all qualities; `ZooTask` one system of the papers at one rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from . import Model, zoo
from .swift import export, release
from .swift.network import Swift, SwiftConfig
from .swift.warm_start import regroup, warm_start

#: lambda of CompressAI's zoo by quality, for R + lambda * 255^2 * MSE.
LAMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)


Trained = TypeVar("Trained", bound=nn.Module)


class Task(Protocol[Trained]):
    """One model to be trained. t, float [B] in 0..1, is each image's place on the range of qualities."""

    name: str
    #: Parameters whose names begin so learn at four times the rate.
    quick: tuple[str, ...]
    #: Values of t at which the validation split is measured.
    points: tuple[float, ...]
    #: Qualities of the files that are measured for the log; None for the one of a system with one rate.
    qualities: tuple[int | None, ...]
    #: Whether images may be computed in bfloat16 where PyTorch thinks fit. The entropy side never is.
    autocast: bool

    def create(self, crops: Callable[[int], Tensor], start: Path | None) -> Trained:
        """A model to begin with. crops: n -> uint8 [n, 3, H, W] of the training images; start: a file to go on from."""

    def describe(self, model: Trained) -> dict[str, Any]:
        """The description that `blank` takes, for a checkpoint."""

    def blank(self, description: Mapping[str, Any]) -> Trained:
        """A model of that shape, whose weights will be loaded."""

    def run(self, model: Trained, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """A training pass. x: RGB [B, 3, H, W] in 0..1. Returns x_hat like x; y_bits and z_bits, [B]."""

    def lagrangian(self, model: Trained, t: Tensor) -> Tensor:
        """lambda of R + lambda * 255^2 * MSE for each image."""

    def importance(self, t: Tensor) -> Tensor:
        """The weight of each image's loss."""

    def quantise(self, model: Trained, on: bool) -> None:
        """Switches to the arithmetic of inference, where it differs."""

    def export(self, model: Trained, folder: Path, step: int) -> None:
        """Writes the weights as they are used beside a run's checkpoint. FastcodecError where they cannot be."""

    def coder(self, model: Trained, folder: Path) -> Model:
        """The model as a codec takes it; it may leave a file in the run's folder. Raises what `export` raises."""


class SwiftTask(Task[Swift]):
    """`swift`: lambda over the whole range of qualities, the entropy side in integers at the end.

    groups: the channels of each group of latents, in a new model or in one that goes on from a release; None: those of
    the release. entropy_side: transforms, gains and hyper-analysis stay as they are, and nothing runs the synthesis, so
    that a step takes less than half of the time; contexts and parameter networks learn at four times the rate.
    """

    name = "swift"
    points = (0.0, 0.25, 0.5, 0.75, 1.0)
    qualities = (10, 40, 70, 100)
    autocast = True

    def __init__(self, groups: tuple[int, ...] | None = None, entropy_side: bool = False):
        self.groups, self.entropy_side = groups, entropy_side
        self.quick = ("groups.",) if entropy_side else ("log_gain", "log_inverse_gain", "prior")

    def create(self, crops: Callable[[int], Tensor], start: Path | None) -> Swift:
        if start is None:
            return self._learning(warm_start(SwiftConfig(groups=self.groups), crops(64)))
        model = export.restore(start)
        if self.groups not in (None, model.config.groups):
            model = regroup(model, self.groups, crops(64))
        return self._learning(model)

    def describe(self, model: Swift) -> dict[str, Any]:
        return asdict(model.config)

    def blank(self, description: Mapping[str, Any]) -> Swift:
        return self._learning(Swift(SwiftConfig(**description)))

    def _learning(self, model: Swift) -> Swift:
        """The model, with gradients for the parameters that learn."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not self.entropy_side or name.startswith(("groups.", "h_s.", "prior.")))
        return model

    def run(self, model: Swift, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        if self.entropy_side and torch.is_grad_enabled():
            return {"x_hat": x, **model.rates(x, t)}
        return model(x, t)

    def lagrangian(self, model: Swift, t: Tensor) -> Tensor:
        return model.lagrangian(t)

    def importance(self, t: Tensor) -> Tensor:
        # Losses span a factor of ten over the quality range; dividing by the expected size weighs qualities alike.
        return torch.exp(-1.2 * t)

    def quantise(self, model: Swift, on: bool) -> None:
        model.set_quantise(on)

    def export(self, model: Swift, folder: Path, step: int) -> None:
        export.export(model, folder / "swift.safetensors", about={"steps": str(step)})

    def coder(self, model: Swift, folder: Path) -> release.Model:
        path = folder / "evaluated.safetensors"
        export.export(model, path)
        return release.read_model(path)


class ZooTask(Task[zoo.CompressionModel]):
    """A system of `fastcodec.models.zoo` with the channels and the lambda of one quality of CompressAI's.

    A finished run writes NAME-QUALITY.pth, a state dict for `zoo.load` and for CompressAI. Raises ValueError for a
    name or a quality that is not there.
    """

    quick = ()
    points = (0.0,)
    qualities = (None,)
    autocast = False

    def __init__(self, name: str, quality: int):
        zoo.create(name, quality)
        self.name, self.quality = name, quality
        self.lambda_ = LAMBDAS[quality - 1]

    def create(self, crops: Callable[[int], Tensor], start: Path | None) -> zoo.CompressionModel:
        model = zoo.create(self.name, self.quality)
        if start is not None:
            model.load_state_dict(torch.load(start, map_location="cpu", weights_only=True))
        return model

    def describe(self, model: zoo.CompressionModel) -> dict[str, Any]:
        return {"quality": self.quality}

    def blank(self, description: Mapping[str, Any]) -> zoo.CompressionModel:
        return zoo.create(self.name, description["quality"])

    def run(self, model: zoo.CompressionModel, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        return model(x)

    def lagrangian(self, model: zoo.CompressionModel, t: Tensor) -> Tensor:
        return torch.full_like(t, self.lambda_)

    def importance(self, t: Tensor) -> Tensor:
        # The loss of a quality of about one, as the rates of learning expect it.
        return torch.full_like(t, 1 / math.sqrt(self.lambda_ / LAMBDAS[0]))

    def quantise(self, model: zoo.CompressionModel, on: bool) -> None:
        pass

    def export(self, model: zoo.CompressionModel, folder: Path, step: int) -> None:
        trained = zoo.create(self.name, self.quality)
        trained.load_state_dict(model.state_dict())
        trained.update(fit_quantiles=True)
        torch.save(trained.state_dict(), folder / f"{self.name}-{self.quality}.pth")

    def coder(self, model: zoo.CompressionModel, folder: Path) -> zoo.CompressionModel:
        model.update(fit_quantiles=True)
        return model


def task(
    name: str = "swift", quality: int | None = None, groups: tuple[int, ...] | None = None, entropy_side: bool = False
) -> Task[Any]:
    """The task of a model's name; quality, 1 to 8, is for the systems of the zoo alone, groups and entropy_side for
    swift. ValueError for others."""
    if name != "swift":
        if groups is not None:
            raise ValueError(f"{name} has its own groups of channels")
        if entropy_side:
            raise ValueError("only swift's entropy side can be trained alone")
        return ZooTask(name, 3 if quality is None else quality)
    if quality is not None:
        raise ValueError("swift is one network for all qualities")
    return SwiftTask(groups, entropy_side)
