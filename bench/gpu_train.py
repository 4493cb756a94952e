"""Trains on a GPU for a given time, after measuring how: `python -m bench.gpu_train DATA --run RUN --seconds 200`.

It times steps as one CUDA graph, in both layouts of feature maps, compiled and not, and launched one by one; says which
kernels take the time; goes on with what was fastest; and leaves in RUN what `fastcodec train` does. `train.json` beside
the run's log has the figures. A way that fails, or is not ready in time, is reported and left out. --way says what is
known to be fastest, and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastcodec import machine as _machine
from fastcodec.train import Trainer, TrainingConfig

STEPS = 60  # of each way that is timed
WAYS = {  # layout, whether as a graph, whether compiled
    "nchw-compiled": ("nchw", True, True),
    "nhwc-compiled": ("nhwc", True, True),
    "nchw": ("nchw", True, False),
    "nhwc": ("nhwc", True, False),
    "launches": ("nhwc", False, False),
}
READY_SECONDS = 100  # that a way may take to begin
PROFILED = 3  # steps
SHOWN = 25  # kernels


def lay_out(trainer: Trainer) -> None:
    """Brings the networks into the layout of the trainer's config, and forgets what was made for another."""
    memory = torch.channels_last if trainer.config.layout == "nhwc" else torch.contiguous_format
    trainer.model.to(memory_format=memory)
    trainer.average.to(memory_format=memory)
    trainer.optimiser.state.clear()
    trainer._graphs.clear()


def choose(trainer: Trainer, way: str) -> None:
    """Makes the trainer's steps be of this way."""
    layout, graph, compiled = WAYS[way]
    trainer.config = replace(trainer.config, layout=layout, graph=graph, compile=compiled)
    trainer._passes = trainer._objective
    if compiled:
        torch.compiler.reset()
        trainer._passes = torch.compile(trainer._objective, dynamic=False, fullgraph=True)
    lay_out(trainer)


def timed(trainer: Trainer, way: str, progress: float) -> dict[str, Any]:
    """Milliseconds a step of this way, and the seconds that getting it ready took."""
    choose(trainer, way)
    step = trainer.graph_step if trainer.config.graph else trainer.train_step
    start = time.perf_counter()
    with alarm(READY_SECONDS):
        for _ in range(4):
            step(progress)
        torch.cuda.synchronize()
    ready = time.perf_counter()
    for _ in range(STEPS):
        step(progress)
    torch.cuda.synchronize()
    end = time.perf_counter()
    return {
        "way": way,
        "ms a step": 1000 * (end - ready) / STEPS,
        "steps a second": STEPS / (end - ready),
        "seconds to begin": ready - start,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9,
    }


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in it after so many seconds."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not ready after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kernels(trainer: Trainer, progress: float) -> list[dict[str, Any]]:
    """The kernels of a step that take longest, of steps launched one by one."""
    from torch.profiler import ProfilerActivity, profile

    trainer.train_step(progress)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            trainer.train_step(progress)
        torch.cuda.synchronize()
    rows = [row for row in seen.key_averages() if getattr(row, "self_device_time_total", 0) > 0]
    rows = [row for row in rows if str(row.device_type).endswith("CUDA")] or rows
    rows.sort(key=lambda row: -row.self_device_time_total)
    return [
        {"kernel": row.key[:150], "us": row.self_device_time_total / PROFILED, "launches": row.count / PROFILED}
        for row in rows
    ]


def fastest(trainer: Trainer, ways: list[str], profile: bool, found: dict[str, Any], save: Callable[[], None]) -> str:
    """The way whose steps take the least time. Leaves weights and step as they were."""
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    progress = trainer.config.quantise_from
    found["ways"] = []
    for way in ways:
        try:
            found["ways"].append(timed(trainer, way, progress))
            print(json.dumps(found["ways"][-1]), flush=True)
        except Exception:
            traceback.print_exc()
            found.setdefault("failures", []).append({"way": way, "error": traceback.format_exc()})
        save()
    best = min(found["ways"], key=lambda row: row["ms a step"], default={"way": "launches"})["way"]
    if profile:
        try:
            choose(trainer, best)
            found["kernels"] = kernels(trainer, progress)
            for row in found["kernels"][:SHOWN]:
                print(f"{row['us']:8.0f} us {row['launches']:6.1f}  {row['kernel'][:90]}", flush=True)
        except Exception:
            traceback.print_exc()
    trainer.model.load_state_dict(weights)
    trainer.average.load_state_dict(weights)
    trainer.step = trainer.cycle_step = 0
    trainer._totals.zero_()
    save()
    return best


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_train", description=__doc__.partition("\n")[0])
    default = TrainingConfig(Path(), Path())
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="in all, from this command's start")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--late-crop", type=int)
    parser.add_argument("--graphics", type=float, default=default.graphics)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--decay-from", type=float, default=default.decay_from)
    parser.add_argument("--quantise-from", type=float, default=0.0)
    parser.add_argument("--ema", type=float, default=default.ema)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--way", choices=WAYS, help="leave out to measure which is fastest")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those that are measured")
    parser.add_argument("--profile", action="store_true", help="also time each kernel")
    parser.add_argument("--reserve", type=float, default=12.0, help="seconds left for the end's validation and export")
    given = vars(parser.parse_args(argv))
    begun = time.perf_counter()
    seconds, reserve, way = given.pop("seconds"), given.pop("reserve"), given.pop("way")
    ways, profile = given.pop("ways"), given.pop("profile")
    found: dict[str, Any] = {"machine": _machine.describe(), "options": {k: str(v) for k, v in given.items()}}

    def save() -> None:
        (config.run / "train.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    config = TrainingConfig(**given, device="cuda", log_steps=500, checkpoint_seconds=90.0)
    trainer = Trainer(config)
    found["device"] = torch.cuda.get_device_name()
    found["seconds to load"] = round(time.perf_counter() - begun, 1)
    print(f"loaded after {found['seconds to load']} s: {len(trainer.source.images)} photographs", flush=True)
    found["validation before"] = trainer.validate()
    print(json.dumps(found["validation before"]), flush=True)
    save()
    if way is None:
        way = fastest(trainer, ways, profile, found, save)
    choose(trainer, way)
    found["way"] = way
    left = seconds - reserve - (time.perf_counter() - begun)
    trainer.config = replace(trainer.config, minutes=max(left, 1.0) / 60)
    trainer.cycle_start = time.time()
    trainer.run()
    found["validation after"] = trainer.validate()
    found["steps"] = trainer.step
    save()
    return 1 if found.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
