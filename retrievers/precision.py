"""Which number format a model computes in on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadInput

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def dtype(precision: str, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a setting.

    `auto` is bfloat16 where the device multiplies matrices in it, else float32: a processor that only emulates
    bfloat16 is slower with it than with float32.

    Raises:
        BadInput: `precision` is none of `PRECISIONS`.
    """
    import torch

    if precision not in PRECISIONS:
        raise BadInput(f"Unknown precision `{precision}`.", f"Use one of: {', '.join(PRECISIONS)}.")
    if precision == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def _computes_bfloat16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())
