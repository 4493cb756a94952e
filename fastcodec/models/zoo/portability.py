"""The kind of machine, on which floating-point results depend: a file names it, and its reader compares."""

from __future__ import annotations

import platform
from functools import cache

import torch

from ...machine import processor_fact


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
        vendor = processor_fact("vendor_id|CPU implementer")  # by which matrix libraries choose
        processor = " ".join(word for word in (platform.machine(), vendor, instructions) if word)
    return f"{device.type} {processor}, torch {torch.__version__}"
