"""Where bfloat16 is faster than float32."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices faster in bfloat16: GPUs, and CPUs with AMX or AVX512-BF16."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda"
