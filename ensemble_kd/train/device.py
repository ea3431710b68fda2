"""Which device, and which arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
            return bool(torch.cpu._is_avx512_bf16_supported())
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The forward pass's arithmetic: `auto`, `float32` or `bfloat16` (weights stay float32)."""
    if precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
