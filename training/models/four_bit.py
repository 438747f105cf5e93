"""NF4 weights (QLoRA, Dettmers et al. 2023, section 3) by bitsandbytes.

Imports bitsandbytes: only to be imported where that precision is asked for.
"""

from __future__ import annotations

from typing import cast

import bitsandbytes
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor


class NF4Linear(bitsandbytes.nn.Linear4bit):
    """A frozen linear layer with 4 bits per weight and an 8-bit scale for each 64 of them."""

    def __init__(self, linear: torch.nn.Linear, place: torch.device) -> None:
        """linear: whose values are taken over, on any device; quantised on `place`, where quick, and brought back."""
        home = linear.weight.device
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4", device="meta"
        )
        self.weight = bitsandbytes.nn.Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=self
        )
        self.bias = linear.bias
        self.to(place).to(home)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out], in the dtype that the weights had."""
        weight = cast(bitsandbytes.nn.Params4bit, self.weight)
        # bitsandbytes' own forward pass hides the weight from autograd until the backward pass. There a checkpointed
        # block would find the weight of its first run, and where blocks are streamed that has been overwritten.
        return F.linear(x, dequantize_4bit(weight.data, weight.quant_state), self.bias)


def to_nf4(part: torch.nn.Module, place: torch.device) -> None:
    """Replace every linear layer in `part` by its NF4 form, quantised on `place`, but for the modulation and what is
    NF4 already."""
    for name, child in part.named_children():
        if isinstance(child, NF4Linear):
            continue
        if isinstance(child, torch.nn.Linear):
            setattr(part, name, NF4Linear(child, place))
        elif not name.startswith("norm"):
            to_nf4(child, place)
