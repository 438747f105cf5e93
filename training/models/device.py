"""The device to compute on, and the precision there."""

from __future__ import annotations

import gc

import torch

from .source import QUANTISED, FluxSource


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" means the first accelerator there is, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def release_unused(device: torch.device) -> None:
    """Give memory of models that were let go of back to the device: the allocator would keep it, in pieces of another
    size than what comes next needs."""
    gc.collect()
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


def weights_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of the weights: "auto" is bf16 on an accelerator and fp32 on the CPU, where bf16 is slow.

    Where the transformer is stored in fewer bits, of everything else.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if precision == "fp32" else torch.bfloat16


def use_autocast(source: FluxSource, device: torch.device) -> bool:
    """Whether to compute in bf16: on accelerators, and on a CPU that has instructions for it; never with "fp32"."""
    if source.precision == "fp32":
        return False
    if device.type != "cpu":
        return True
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return fast or source.precision in ("bf16", *QUANTISED)
