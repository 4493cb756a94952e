"""Trains on a GPU for a given time, after measuring how: `python -m bench.gpu.train DATA --run RUN --seconds 200`.

It times steps as one CUDA graph, in both layouts of feature maps, compiled and not, and launched one by one, on few of
the images; says which kernels take the time; goes on with what was fastest; and leaves in RUN what `fastcodec train`
does. `train.json` beside the run's log has the figures. A way that fails, or is not ready in time, is reported and left
out. --way says what is known to be fastest, and nothing is measured.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastcodec import machine
from fastcodec.crops import image_files
from fastcodec.train import Trainer, TrainingConfig

from ..common import argument_parser
from ..stages import profiled

STEPS = 60  # of each way that is timed
WAYS: dict[str, dict[str, Any]] = {
    "nchw-compiled": {"layout": "nchw", "graph": True, "compile": True},
    "nhwc-compiled": {"layout": "nhwc", "graph": True, "compile": True},
    "nchw": {"layout": "nchw", "graph": True, "compile": False},
    "nhwc": {"layout": "nhwc", "graph": True, "compile": False},
    "launches": {"layout": "nhwc", "graph": False, "compile": False},
}
FEW_IMAGES = 80  # that a way is timed on
READY_SECONDS = 100  # that a way may take to begin
PROFILED = 3  # steps
SHOWN = 25  # kernels


def timed(config: TrainingConfig, way: str) -> dict[str, Any]:
    """Milliseconds a step of this way, and the seconds that getting it ready took."""
    torch.compiler.reset()
    trainer = Trainer(replace(config, **WAYS[way]))
    step = trainer.graph_step if trainer.config.graph else trainer.train_step
    start = time.perf_counter()
    with alarm(READY_SECONDS):
        for _ in range(4):
            step(config.quantise_from)
        torch.cuda.synchronize()
    ready = time.perf_counter()
    for _ in range(STEPS):
        step(config.quantise_from)
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


def kernels(config: TrainingConfig, way: str) -> list[dict[str, Any]]:
    """The kernels of a step that take longest, of steps launched one by one."""
    trainer = Trainer(replace(config, **{**WAYS[way], "graph": False}))

    def steps() -> None:
        for _ in range(PROFILED):
            trainer.train_step(config.quantise_from)

    steps()
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for item in profiled(steps).work:
        row = rows[item.name[:150]]
        row[0], row[1] = row[0] + item.length / PROFILED, row[1] + 1 / PROFILED
    found = [{"kernel": name, "us": us, "launches": count} for name, (us, count) in rows.items()]
    return sorted(found, key=lambda row: -rows[str(row["kernel"])][0])


def fastest(
    config: TrainingConfig, ways: list[str], profile: bool, found: dict[str, Any], save: Callable[[], None]
) -> str:
    """The way whose steps take the least time."""
    found["ways"] = []
    with tempfile.TemporaryDirectory() as folder:
        for file in image_files(config.data)[:FEW_IMAGES]:
            (Path(folder) / "-".join(file.relative_to(config.data).parts)).symlink_to(file.resolve())
        config = replace(config, data=Path(folder), run=Path(folder) / "run")
        for way in ways:
            try:
                found["ways"].append(timed(config, way))
                print(json.dumps(found["ways"][-1]), flush=True)
            except Exception:
                traceback.print_exc()
                found.setdefault("failures", []).append({"way": way, "error": traceback.format_exc()})
            save()
        best = min(found["ways"], key=lambda row: row["ms a step"], default={"way": "launches"})["way"]
        if profile:
            try:
                found["kernels"] = kernels(config, best)
                for row in found["kernels"][:SHOWN]:
                    print(f"{row['us']:8.0f} us {row['launches']:6.1f}  {row['kernel'][:90]}", flush=True)
            except Exception:
                traceback.print_exc()
    torch.cuda.empty_cache()
    save()
    return best


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser("bench.gpu.train", __doc__)
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
    found: dict[str, Any] = {"machine": machine.describe(), "options": {k: str(v) for k, v in given.items()}}
    found["device"] = torch.cuda.get_device_name()
    config = TrainingConfig(**given, device="cuda", log_steps=500, checkpoint_seconds=90.0)
    config.run.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (config.run / "train.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    found["way"] = way or fastest(config, ways, profile, found, save)
    loading = time.perf_counter()
    trainer = Trainer(replace(config, **WAYS[found["way"]]))
    found["seconds to load"] = round(time.perf_counter() - loading, 1)
    print(f"loaded in {found['seconds to load']} s: {len(trainer.source.images)} photographs", flush=True)
    found["validation before"] = trainer.validate()
    print(json.dumps(found["validation before"]), flush=True)
    save()
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
