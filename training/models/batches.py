"""How many samples go through a network at a time: one rule for each network, and the slices that follow from it."""

from __future__ import annotations

from collections.abc import Iterator

SMALL_BATCH = 32  # samples per pass of a network that is small beside its activations


def prompts_at_once(heads: int) -> int:
    """Prompts per pass of a T5 with `heads` attention heads.

    With more than 8 prompts, the attention matrices of T5-XXL (64 heads) would take as much memory as its weights.
    """
    return 8 if heads >= 64 else SMALL_BATCH


def trajectories_at_once(heads: int) -> int:
    """Trajectories per pass without gradients of a transformer with `heads` attention heads: Flux (24) takes one."""
    return 1 if heads >= 24 else SMALL_BATCH


def batches(count: int, size: int) -> Iterator[slice]:
    """The slices that cut `count` samples into batches of `size`; the last one may hold fewer."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
