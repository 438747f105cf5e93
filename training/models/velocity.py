"""The velocity of Flux: every call of the transformer goes through `velocity`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .attention import AttentionCapture, attention_deletion, install_processors
from .concept_attention import ConceptCapture
from .text import TextEmbeds

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


class _Stopped(Exception):
    """Ends a truncated pass; never leaves this module."""


def position_ids(grid: tuple[int, int], device: torch.device) -> Tensor:
    """[rows * columns, 3] rotary position ids (0, row, column) of image tokens; text tokens are all at (0, 0, 0)."""
    rows, columns = grid
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(-1, 3)


@overload
def velocity(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    t: Tensor | float,
    embeds: TextEmbeds,
    guidance: float,
    grid: tuple[int, int],
    *,
    capture: AttentionCapture | ConceptCapture | None = None,
    deleted: Tensor | None = None,
) -> Tensor: ...
@overload
def velocity(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    t: Tensor | float,
    embeds: TextEmbeds,
    guidance: float,
    grid: tuple[int, int],
    *,
    capture: AttentionCapture | ConceptCapture | None = None,
    stop_after_block: int | None,
    deleted: Tensor | None = None,
) -> Tensor | None: ...
def velocity(
    transformer: FluxTransformer2DModel,
    latents: Tensor,
    t: Tensor | float,
    embeds: TextEmbeds,
    guidance: float,
    grid: tuple[int, int],
    *,
    capture: AttentionCapture | ConceptCapture | None = None,
    stop_after_block: int | None = None,
    deleted: Tensor | None = None,
) -> Tensor | None:
    """v(x_t, c, t), an estimate of noise - image.

    latents: x_t packed, [B, N, 64] with N = rows * columns of `grid`; t: float or [B] in [0, 1], 1 is noise; embeds: B
    or 1 prompts; guidance: fed to the guidance embedding where the model has one. capture records attention on the way;
    stop_after_block (counted as in AttentionCapture) ends the pass when that block's attention is recorded, and returns
    None. deleted: [B, L] text tokens (1: deleted) that no query pays attention to in double blocks (see
    `attention_deletion`). Returns [B, N, 64] in the dtype of `latents`. Gradients, autocast and the adapter's state are
    the caller's.
    """
    batch, device = latents.shape[0], latents.device
    dtype = next(transformer.x_embedder.parameters()).dtype
    embeds = embeds.to(device=device, dtype=dtype).expand(batch)
    t = torch.as_tensor(t, dtype=torch.float32, device=device).expand(batch)
    install_processors(transformer)  # in every pass: on some CPUs diffusers' own differ from them in the last bits
    out: Any = None
    extra: dict[str, Any] = {}
    if capture is not None:
        extra |= capture.start(transformer, embeds.t5.shape[1])
    if deleted is not None:
        extra |= attention_deletion(transformer, deleted.to(device))
    stopping = nullcontext() if stop_after_block is None else _stop_after(transformer, stop_after_block)
    with suppress(_Stopped), _exact_time(transformer, t), stopping:
        out = transformer(
            hidden_states=latents.to(dtype),
            encoder_hidden_states=embeds.t5,
            pooled_projections=embeds.pooled,
            timestep=t,
            guidance=torch.full_like(t, guidance) if transformer.config.guidance_embeds else None,
            img_ids=position_ids(grid, device),
            txt_ids=torch.zeros(embeds.t5.shape[1], 3, device=device),
            joint_attention_kwargs=extra or None,
            return_dict=False,
        )[0]
    if capture is not None:
        capture.finish(transformer)
    return None if out is None else out.to(latents.dtype)


@contextmanager
def _exact_time(transformer: FluxTransformer2DModel, t: Tensor) -> Iterator[None]:
    # diffusers rounds t * 1000 to the activations' dtype first: in bf16 up to 2 off, which the sinusoids of the time
    # embedding resolve. The host embeds t in fp32, and so do we; in fp32 there is no difference.
    def exact(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (t * 1000, *args[1:])

    handle = transformer.time_text_embed.register_forward_pre_hook(exact)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stop_after(transformer: FluxTransformer2DModel, block: int) -> Iterator[None]:
    chain = [*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer.norm_out]
    index = block + len(transformer.transformer_blocks) if block < 0 else block

    def stop(*_: object) -> None:
        raise _Stopped

    replayed = transformer.gradient_checkpointing and torch.is_grad_enabled()
    if replayed or "forward" in vars(chain[index]):
        # A checkpointed block must return to be replayed, and a compiled one is one graph: at the start of what comes
        # next, before that is streamed in for nothing.
        handle = chain[index + 1].register_forward_pre_hook(stop, prepend=True)
    else:
        handle = chain[index].attn.register_forward_hook(stop)  # all that is recorded is done
    try:
        yield
    finally:
        handle.remove()
