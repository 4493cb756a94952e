"""What this processor computes itself, so that nobody waits for an emulation of it."""

from __future__ import annotations

import os
import platform

import torch

# Values of oneDNN's setting that keep it from bfloat16 products.
_WITHOUT_BFLOAT16 = frozenset(
    (
        *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
        *("AVX512_MIC", "AVX512_MIC_4OPS", "AVX512_CORE", "AVX512_CORE_VNNI"),
    )
)


def bfloat16_is_native() -> bool:
    """Whether this processor multiplies bfloat16, and PyTorch's library for it (oneDNN) makes use of that.

    Elsewhere products of bfloat16 are computed all the same, by conversions that make them slower than float32's. Asked
    are oneDNN, the processor (oneDNN says yes to every AVX-512), and ONEDNN_MAX_CPU_ISA, by which a user limits oneDNN.
    """
    try:
        if not torch.backends.mkldnn.enabled or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and supported() and limit.upper() not in _WITHOUT_BFLOAT16
