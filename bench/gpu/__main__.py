"""What a GPU that is there for minutes is used for, in stages, the most valuable first: `make gpu STAGES="..."`.

    python -m bench.gpu compile smoke train+ latency --out FOLDER --data FOLDER --seconds 250

Each stage is a process group of its own with a time limit: one that hangs is killed with all that it started, one that
fails costs only itself, and the next begins. A `+` behind a name starts the stage and goes on: training beside the
tests, say. Stages that measure stop it meanwhile (SIGSTOP), so that nothing else is on the GPU. All of it ends within
--seconds; a stage gets what is left.

FOLDER has gpu-stages.json, written anew after each stage, gpu.log with all that they printed, and the stages' own
files. The screen shows a line when a stage begins and ends, and the last lines of one that did not pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from fastcodec import machine

from .. import common
from ..common import argument_parser

GRACE = 5.0  # seconds between asking a stage to end and killing it
SHOWN = 40  # last lines of a stage that did not pass
TESTS = ("-m", "pytest", "-m", "gpu", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "--timeout=60")
CODER_TESTS, CODEC_TESTS = "tests/test_gpu_rans.py", "tests/test_gpu_codec.py"


@dataclass(frozen=True)
class Stage:
    """What Python runs, and for how long at most. measures: nothing else may use the GPU meanwhile."""

    name: str
    command: tuple[str, ...]
    seconds: float
    measures: bool = False
    keeps: tuple[Path, ...] = ()  # files that go to the folder of results when it has ended


def stages(out: Path, data: Path | None, seconds: float, train: Sequence[str] = ()) -> dict[str, Stage]:
    """All that there are, by name."""
    parallel = ("-n", str(max(1, min(9, (os.cpu_count() or 2) - 4)))) if find_spec("xdist") else ()
    run = Path("build/gpu/run")
    trainer = ("-m", "bench.gpu.train", str(data), "--run", str(run), "--seconds", str(max(1.0, seconds - 15)), *train)

    def suite(name: str, seconds: int) -> tuple[str, ...]:
        return ("-m", "bench.gpu.measure", name, f"--seconds={seconds}", f"--out={out / f'{name}.json'}")

    found = [
        Stage("compile", ("-m", "bench.gpu.compile"), 75.0),
        Stage("smoke", (*TESTS, *parallel, f"--junitxml={out / 'smoke.xml'}", CODEC_TESTS, CODER_TESTS), 120.0),
        Stage("latency", suite("latency", 60), 80.0, True),
        Stage(
            "train", trainer, seconds, keeps=tuple(run / n for n in ("swift.safetensors", "train.json", "log.jsonl"))
        ),
        Stage("tests", (*TESTS, *parallel, f"--junitxml={out / 'tests.xml'}", "tests"), 170.0),
        Stage("sanitizer", (*TESTS, "-k", "sanitizer", CODER_TESTS), 90.0),
        Stage("codec", suite("codec", 75), 95.0, True),
        Stage("rans", suite("rans", 75), 95.0, True),
        Stage("papers", ("-m", "bench", "papers"), 60.0, True),
    ]
    return {stage.name: stage for stage in found}


@dataclass
class Outcome:
    """How a stage ended: "passed", "failed (N)", "killed by signal N", "out of time", or "not begun"."""

    name: str
    status: str = "not begun"
    seconds: float = 0.0
    last: list[str] = field(default_factory=list)


class Running:
    """A stage's process group, whose output goes to the log as it comes."""

    def __init__(self, stage: Stage, log: IO[str], limit: float):
        self.stage, self.begun, self.limit = stage, time.monotonic(), min(stage.seconds, limit)
        self._last: deque[str] = deque(maxlen=SHOWN)
        self._process = subprocess.Popen(
            [sys.executable, *stage.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=common.ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def _read(self, log: IO[str]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(line.rstrip()[:300])
            log.write(f"[{self.stage.name}] {line}")
            log.flush()

    def signal(self, number: int) -> None:
        """To all that the stage has started; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self) -> Outcome:
        """Until it has ended or its time is out; then it is ended, and what is left of its group is killed."""
        status = None
        try:
            self._process.wait(max(0.0, self.limit - (time.monotonic() - self.begun)))
        except subprocess.TimeoutExpired:
            status = "out of time"
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        seconds = time.monotonic() - self.begun
        self.signal(signal.SIGKILL)
        code = self._process.wait()
        self._reader.join(GRACE)
        if status is None:
            status = "passed" if code == 0 else f"failed ({code})" if code > 0 else f"killed by signal {-code}"
        return Outcome(self.stage.name, status, round(seconds, 1), list(self._last) if status != "passed" else [])


def run(chosen: Sequence[tuple[Stage, bool]], out: Path, seconds: float, say: Callable[[str], None]) -> list[Outcome]:
    """Runs stages (each with whether it goes on beside those that follow) and reports; never raises for a stage."""
    out.mkdir(parents=True, exist_ok=True)
    begun, outcomes = time.monotonic(), [Outcome(stage.name) for stage, _ in chosen]
    beside: list[tuple[int, Running]] = []

    def left() -> float:
        return seconds - (time.monotonic() - begun)

    def save() -> None:
        found = {"machine": machine.describe(), "stages": [asdict(outcome) for outcome in outcomes]}
        unfinished = out / "gpu-stages.part"
        unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(out / "gpu-stages.json")

    def ended(number: int, running: Running) -> None:
        outcome = outcomes[number] = running.wait()
        for file in running.stage.keeps:
            if (common.ROOT / file).exists():
                shutil.copy(common.ROOT / file, out)
        say(f"{outcome.name}: {outcome.status} after {outcome.seconds:.0f} s, at {time.monotonic() - begun:.0f} s")
        for line in outcome.last:
            say(f"    {line}")
        save()

    with open(out / "gpu.log", "w", encoding="utf-8") as log:
        for number, (stage, goes_on) in enumerate(chosen):
            if left() <= 0:
                say(f"{stage.name}: not begun, no time is left")
                continue
            say(f"{stage.name}: begins at {time.monotonic() - begun:.0f} s")
            if stage.measures:
                for _, other in beside:
                    other.signal(signal.SIGSTOP)
            try:
                running = Running(stage, log, left())
                if goes_on:
                    beside.append((number, running))
                else:
                    ended(number, running)
            finally:
                for _, other in beside:
                    other.signal(signal.SIGCONT)
        for number, running in beside:
            ended(number, running)
    save()
    return outcomes


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all stages passed."""
    parser = argument_parser("bench.gpu", __doc__)
    names = ", ".join(stages(Path(), None, 0.0))
    parser.add_argument("stages", nargs="+", metavar="STAGE", help=f"of {names}; with + it goes on beside the next")
    default = Path(os.environ.get("OUT") or common.RESULTS)
    parser.add_argument("--out", type=Path, default=default, help="folder of results ($OUT, else bench/results)")
    parser.add_argument("--data", type=Path, help="folder of training images, for `train`")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all of it (%(default)s)")
    parser.add_argument("--train", default="", help="more options of bench.gpu.train, in one string")
    arguments = parser.parse_args(argv)
    known = stages(arguments.out.resolve(), arguments.data, arguments.seconds, arguments.train.split())
    chosen = []
    for name in arguments.stages:
        if name.removesuffix("+") not in known:
            parser.error(f"no stage named {name}; there are {names}")
        chosen.append((known[name.removesuffix("+")], name.endswith("+")))
    if arguments.data is None and any(stage.name == "train" for stage, _ in chosen):
        parser.error("train needs --data")
    outcomes = run(chosen, arguments.out.resolve(), arguments.seconds, lambda line: print(line, flush=True))
    shown = common.table("Stages", "stage", "outcome", "seconds")
    for outcome in outcomes:
        shown.add_row(outcome.name, outcome.status, f"{outcome.seconds:.0f}")
    common.console.print(shown)
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
