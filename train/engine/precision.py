"""Where bfloat16 is faster than float32."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices faster in bfloat16: GPUs, and CPUs with matrix units (AMX)."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
