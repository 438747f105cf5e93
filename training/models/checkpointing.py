"""Gradient checkpointing: blocks keep only what goes into them and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint, noop_context_fn, set_checkpoint_early_stop

if TYPE_CHECKING:
    import torch
    from diffusers import FluxTransformer2DModel

Contexts = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]


def checkpoint_blocks(transformer: FluxTransformer2DModel, contexts: Contexts = noop_context_fn) -> None:
    """Checkpoint every block from now on, in passes with gradients; others are as before.

    contexts: makes the two contexts of a block, one around its first run and one around its replays. Gradients are the
    same bit by bit: Flux draws nothing at random, so a replay computes what the first run did.
    """

    def run(block: torch.nn.Module, *args: Any) -> Any:
        # to the end: a replay that stops at the last tensor it needs would leave a layer's weights cast for computing
        with set_checkpoint_early_stop(False):
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    transformer.enable_gradient_checkpointing(run)
