"""Regional compilation: the blocks' forward passes are compiled, each kind once, and all blocks of a kind run that."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

# Graphs of one kind of block: with gradients and without, with the adapter and without, recorded and not, each for
# inputs that need gradients or not, of one sample or several. PyTorch's own limit would leave the last ones uncompiled.
GRAPHS = 64


def compile_blocks(transformer: FluxTransformer2DModel, backend: str | Callable = "inductor") -> None:
    """Compile every block's forward pass from now on, when it is first called.

    What is compiled knows nothing of the block that it was made for, weights are inputs: the next block of the kind
    runs it too, and deeper models take no longer. Hooks of blocks run outside of it, and so do checkpointing, which
    replays compiled blocks, and streaming. Values agree with those of uncompiled blocks to rounding.
    backend: torch.compile's. Raises ConfigError where it lacks a compiler.
    """
    if backend == "inductor":
        _require_compiler(next(transformer.parameters()).device)
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.forward = torch.compile(block.forward, backend=backend)


def restore_blocks(transformer: FluxTransformer2DModel) -> None:
    """The inverse of `compile_blocks`."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        vars(block).pop("forward", None)


def _require_compiler(device: torch.device) -> None:
    if device.type in ("cuda", "xpu") and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "The setting compile needs the package triton (on Windows triton-windows): install it, or switch compile "
            "off."
        )
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            "The setting compile needs a C++ compiler on the CPU: install g++ (on Windows Visual Studio's build "
            "tools), or switch compile off."
        ) from error
