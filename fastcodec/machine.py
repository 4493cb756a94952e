"""The machine of a measurement: figures of time mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The processor, its cores and memory, and the versions that decide on speed. Nothing that names the machine."""
    import torch

    from .kernels.processor import bfloat16_is_native

    return {
        "cpu": processor_fact("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "pillow": metadata.version("pillow"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "native" if bfloat16_is_native() else "emulated",
    }


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_fact(name: str) -> str:
    """What Linux says of the first processor under a name, a regular expression; empty where it says nothing."""
    try:
        found = re.search(rf"^(?:{name})\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return ""
    return found[1] if found else ""


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
