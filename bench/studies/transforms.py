"""Where more multiplications serve the transforms best: short runs from the release at equal processor time.

    python -m bench.studies.transforms PHOTOGRAPHS --cache FOLDER [--variants NAME...] [--minutes N]

A variant adds something to the released network that changes nothing at first (a residual block whose last layers are
zero, kernels that are zero outside the old ones), or trains the same network in another way. All train on the same
crops, graphics among them, for the same time of the processor, which does not depend on what else runs on the machine.
What counts is the loss on the crops that are held out, beside that of the released network trained as long.

Each result is written when its run ends, and is taken from there the next time. The table goes to docs/training.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcodec import machine
from fastcodec.files import replacing
from fastcodec.models.swift import release as released
from fastcodec.models.swift.network import Block, Convolution, FixedPointLinear, Swift, SwiftConfig
from fastcodec.models.tasks import SwiftTask
from fastcodec.train import Trainer, TrainingConfig

from ..common import argument_parser, write_json

PIXELS_AT_8, PIXELS_AT_16 = 64, 256


class MuonAndAdamW(torch.optim.Optimizer):
    """PyTorch's Muon for the weights of dense layers, as matrices [outputs, inputs * kernel area]; AdamW for the rest.

    Used by the trainer like one optimiser. Muon's steps have the root mean square of AdamW's, so rates mean the same.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]]):
        """groups: dicts of `params` and `factor`, as the trainer has them."""
        super().__init__([{**group} for group in groups], {})
        dense = {
            id(layer.weight)
            for layer in model.modules()
            if isinstance(layer, FixedPointLinear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        }
        self._pairs: list[tuple[Tensor, nn.Parameter]] = []  # a weight, and the same memory as a matrix
        matrices, others = [], []
        for group in groups:
            chosen = [p for p in group["params"] if id(p) in dense]
            self._pairs += (pairs := [(p, nn.Parameter(p.detach().view(len(p), -1))) for p in chosen])
            rest = [p for p in group["params"] if id(p) not in dense]
            matrices += [{**group, "params": [m for _, m in pairs]}] if pairs else []
            others += [{**group, "params": rest}] if rest else []
        self._muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.98))
        self.param_groups = self._muon.param_groups + self._adamw.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for weight, _ in self._pairs:
            weight.grad = None
        self._adamw.zero_grad(set_to_none)

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # the trainer gives no closure
        """One step of both."""
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else weight.grad.view_as(matrix)
        self._muon.step()
        self._adamw.step()


@dataclass(frozen=True)
class Variant:
    """grow: what is added to the network; macs: multiply-accumulates a pixel that decoding takes more; training: what
    the run's configuration has other than the rest; optimiser: in place of AdamW, made of the trainer's model and
    groups of parameters."""

    grow: Callable[[Swift], None] = lambda model: None
    macs: float = 0.0
    training: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Callable[[nn.Module, list[dict[str, Any]]], torch.optim.Optimizer] | None = None


def block_macs(channels: int, pixels: int, kernel: int = 3) -> float:
    """Multiply-accumulates a pixel of a residual block whose positions are `pixels` apart."""
    return (5 * channels**2 + kernel**2 * channels) / pixels


def quiet_block(channels: int, limit: float | None) -> Block:
    """A residual block that adds nothing yet."""
    block = Block(channels, limit)
    silence(block.project)
    silence(block.merge)
    return block


def silence(layer: nn.Module) -> None:
    """A layer gives nothing yet."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Chain(nn.Sequential):
    """Blocks in a block's place."""

    def __init__(self, limit: float | None, *blocks: nn.Module):
        super().__init__(*blocks)
        self.limit = limit


def _block_at_8(model: Swift) -> None:
    model.g_s.blocks.append(quiet_block(model.config.features, model.config.limit))


def _blocks_at_8(model: Swift) -> None:
    _block_at_8(model)
    model.g_a.blocks.append(quiet_block(model.config.features, model.config.limit))


def _block_at_16(model: Swift) -> None:
    limit = model.config.limit
    model.g_s.add_module("head", Chain(limit, quiet_block(model.config.latents, limit), model.g_s.head))


def _blocks_at_16(model: Swift) -> None:
    _block_at_16(model)
    limit = model.config.limit
    model.g_a.add_module("tail", Chain(limit, model.g_a.tail, quiet_block(model.config.latents, limit)))


def widen_depthwise(block: Block, kernel: int) -> None:
    """The same block with a larger depthwise kernel, zero outside the old one."""
    old = block.depthwise
    new = Convolution(old.in_channels, old.out_channels, kernel, padding=kernel // 2, groups=old.groups)
    with torch.no_grad():
        new.weight.copy_(F.pad(old.weight, (kernel // 2 - 1,) * 4))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    block.depthwise = new


def _wider_depthwise(kernel: int, at_8: bool, at_16: bool) -> Callable[[Swift], None]:
    def grow(model: Swift) -> None:
        for block in (*model.g_a.blocks, *model.g_s.blocks) if at_8 else ():
            widen_depthwise(block, kernel)
        for block in (model.g_a.tail, model.g_s.head) if at_16 else ():
            widen_depthwise(block, kernel)

    return grow


class Filtered(nn.Module):
    """A synthesis, and a small residual network on its pixels that adds nothing yet."""

    def __init__(self, synthesis: nn.Module, channels: int = 16):
        super().__init__()
        self.synthesis = synthesis
        self.first, self.second = (nn.Conv2d(*ends, 3, padding=1) for ends in ((3, channels), (channels, 3)))
        silence(self.second)

    def forward(self, y: Tensor, t: Tensor, fast: bool = False) -> Tensor:
        x = self.synthesis(y, t, fast)
        return x + self.second(F.silu(self.first(x)))


def _post_filter(model: Swift) -> None:
    model.add_module("g_s", Filtered(model.g_s))


C, M = SwiftConfig.features, SwiftConfig.latents
VARIANTS = {
    "as it is": Variant(),
    "g_s: a block more at 1/8": Variant(_block_at_8, block_macs(C, PIXELS_AT_8)),
    "both: a block more at 1/8": Variant(_blocks_at_8, block_macs(C, PIXELS_AT_8)),
    "g_s: a block more at 1/16": Variant(_block_at_16, block_macs(M, PIXELS_AT_16)),
    "both: a block more at 1/16": Variant(_blocks_at_16, block_macs(M, PIXELS_AT_16)),
    "depthwise 5x5 at 1/8": Variant(_wider_depthwise(5, True, False), 3 * 16 * C / PIXELS_AT_8),
    "depthwise 7x7 at 1/16": Variant(_wider_depthwise(7, False, True), 40 * M / PIXELS_AT_16),
    "a filter behind": Variant(_post_filter, 2 * 9 * 3 * 16),
    "crops of 384 late": Variant(training={"late_crop": 384, "late_from": 0.5}),
    "EMA 0.9995": Variant(training={"ema": 0.9995}),
    "rate 4e-4": Variant(training={"learning_rate": 4e-4}),
    "Muon": Variant(optimiser=MuonAndAdamW),
}


class GrownTask(SwiftTask):
    """`swift` with what a variant adds."""

    def __init__(self, variant: Variant):
        super().__init__()
        self.variant = variant

    def create(self, crops: Callable[[int], Tensor], start: Path | None) -> Swift:
        model = super().create(crops, start)
        self.variant.grow(model)
        return model

    def blank(self, description: Mapping[str, Any]) -> Swift:
        model = super().blank(description)
        self.variant.grow(model)
        return model


def train(name: str, config: TrainingConfig, seconds: float) -> dict[str, Any]:
    """Train a variant for so much of the processor's time and measure it: what the JSON has of it."""
    variant = VARIANTS[name]
    trainer = Trainer(replace(config, **variant.training), GrownTask(variant))
    if variant.optimiser is not None:
        trainer.optimiser = variant.optimiser(trainer.model, trainer.parameter_groups())
    begin = time.process_time()
    while (used := time.process_time() - begin) < seconds:
        trainer.train_step(used / seconds)
        if trainer.step % 100 == 0:
            print(f"{name}: step {trainer.step}, {used:.0f} s", file=sys.stderr, flush=True)
    found = trainer.validate()
    return {"macs": variant.macs, "steps": trainer.step, "cpu_seconds": used, **found}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Losses beside those of the first one, in Markdown."""
    lines = ["| variant | kMAC more | steps | photographs | | graphics |", "| --- " + "| ---: " * 5 + "|"]
    base = next(iter(results.values()))
    for name, result in results.items():
        change = 100 * (result["validation_loss"] / base["validation_loss"] - 1)
        lines.append(
            f"| {name} | {result['macs'] / 1000:.2f} | {result['steps']} | {result['validation_loss']:.5f} "
            f"| {change:+.2f} % | {result['graphics_loss']:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argument_parser("bench.studies.transforms", __doc__)
    parser.add_argument("data", type=Path, help="folder of training images; one in 40 is held out")
    parser.add_argument("--cache", type=Path, required=True, help="folder of results: used if there")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, metavar="NAME", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--release", type=Path, help="weights to begin from (default: those in use)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the processor, each (%(default)s)")
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    args = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    start = args.release or released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    results = {}
    for name in args.variants or VARIANTS:
        words = name.replace(" ", "-").replace("/", "-")
        path = args.cache / f"{words}-{args.minutes:g}.json"
        if not path.exists():
            run = args.cache / words
            config = TrainingConfig(
                args.data, run, start=start, learning_rate=2e-4, decay_from=0.2, quantise_from=0.0, warmup_steps=100
            )
            result = train(name, config, 60 * args.minutes)
            with replacing(path) as stream:
                stream.write(json.dumps(result).encode())
        results[name] = json.loads(path.read_text("utf-8"))
    print(table(results))
    if args.out:
        record = {"model": start.stem, "minutes": args.minutes, "machine": machine.describe(), "variants": results}
        write_json(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
