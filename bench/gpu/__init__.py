"""What is measured on a GPU: `python -m bench.gpu STAGE...` (`make gpu`), or the entropy coder and the codec alone by
`python -m bench gpu`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastcodec.rans import cuda_status

from ..common import CannotRunError

SUITES = {"rans": 85.0, "codec": 90.0}  # seconds of each


def run() -> dict[str, Any]:
    """The figures that bench/results/gpu.json holds: of each suite what `measure.py` writes."""
    from . import measure

    if missing := cuda_status():
        raise CannotRunError(f"the coder finds no GPU to run on: {missing}")
    found: dict[str, Any] = {"failures": []}
    with tempfile.TemporaryDirectory() as folder:
        for suite, seconds in SUITES.items():
            path = Path(folder) / f"{suite}.json"
            measure.watch(path, seconds, measure.command(suite))
            found[suite] = measure.Found.load(path).contents()
            found["failures"] += [f"{suite}: {name}" for name in found[suite]["failures"]]
    return found
