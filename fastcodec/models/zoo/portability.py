"""The kind of machine, on which floating-point results depend: a file names it, and its reader compares."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch


@cache
def kind_of(device: torch.device) -> str:
    """The kind of machine that a device is: processor or GPU, the instructions that PyTorch uses on it, its version.

    Libraries choose their algorithms by these. Threads are no part of it: coding uses one (`base.one_thread`).
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        processor = f"{torch.cuda.get_device_name(device)} {major}.{minor}, cuDNN {torch.backends.cudnn.version()}"
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        processor = " ".join(word for word in (platform.machine(), _vendor(), instructions) if word)
    return f"{device.type} {processor}, torch {torch.__version__}"


def _vendor() -> str:
    """The processor's maker, by which matrix libraries choose; empty where Linux does not tell."""
    try:
        found = re.search(r"^(?:vendor_id|CPU implementer)\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return ""
    return found[1] if found else ""
