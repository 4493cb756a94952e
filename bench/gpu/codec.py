"""The suite "codec": batches, energy, every kernel of a decode, and what plain PyTorch and a coder on the host take."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from ._subject import Subject
from ._timing import Machine
from .baselines import PlainDecoder, beside_plain
from .latency import by_launches, stages_us
from .measure import Suite
from .rates import decode_rate, encode_rate, energy

# Operations of dense products that a multiprocessor's tensor cores do in a cycle, with float32 and int32 sums, from
# NVIDIA's figures for A100, H100 and B200 (whitepapers): peak / (multiprocessors * boost clock). Left out: generations
# whose rate depends on the product line.
TENSOR_RATES = {
    80: {"fp16": 2048, "int8": 4096},
    90: {"fp16": 4096, "int8": 8192},
    100: {"fp16": 8192, "int8": 16384},
}
STAGE_KINDS = {"hyper": "int8", "parameters": "int8", "synthesis": "fp16"}  # of the products


def tensor_peak(machine: Machine, kind: str, mhz: float | None) -> float | None:
    """Operations a second of all tensor cores at this clock; None where that is not known."""
    rate = TENSOR_RATES.get(machine.capability, {}).get(kind)
    return rate * machine.multiprocessors * mhz * 1e6 if rate and mhz else None


def launches(it: Subject, count: int) -> dict[str, Any]:
    """The kernels and copies of a decode launch by launch: of each stage, in order of their first launch, their time;
    and the stage's place under the roof of tensor cores, its products counted in plain PyTorch.
    """
    batch = it.batch(count)
    files = batch.files["latency"]
    profiles = by_launches(it, files, it.pixels(batch.pictures))
    mhz = it.machine.nvml.sm_mhz()  # right behind the work
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for stage, item in profiles[-1].located():
        row = rows[stage, item.name]
        row[0], row[1] = row[0] + 1, row[1] + item.length
    us, operations = stages_us(profiles), PlainDecoder(it.codec, files).operations()
    roofs = {}
    for stage, kind in STAGE_KINDS.items():
        reached, peak = operations[stage] / us[stage] * 1e6 if us[stage] else None, tensor_peak(it.machine, kind, mhz)
        of_peak = reached / peak if reached and peak else None
        roofs[stage] = {"operations": operations[stage], "a_second": reached, "kind": kind, "of_tensor_peak": of_peak}
    return {
        "sm_mhz": mhz,
        "stages_us": us,
        "roofs": roofs,
        "launches": [
            {"stage": stage, "launch": name[:120], "count": number, "us": time}
            for (stage, name), (number, time) in rows.items()
        ],
    }


def parts(folder: Path, subject: Subject | None = None) -> Suite:
    """All of them, what matters most first: time may end."""
    it, suite = subject or Subject(folder), Suite()
    for count in it.sizes.batches:
        suite.add(f"decode rate, batch {count}", decode_rate, it, count)
    for count in it.sizes.studied:
        suite.add(f"beside plain PyTorch, batch {count}", beside_plain, it, count)
        suite.add(f"launches, batch {count}", launches, it, count)
    for count in it.sizes.batches:
        suite.add(f"encode rate, batch {count}", encode_rate, it, count)
    suite.add("energy", energy, it, it.sizes.energy_batch)
    return suite
