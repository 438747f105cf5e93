"""Joint-attention columns of chosen text tokens: exact, differentiable, without ever building the attention matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel


def spans_to_mask(spans: Sequence[Sequence[tuple[int, int]]], length: int) -> Tensor:
    """[B, length] with 1 on the tokens of each prompt's spans, given as (start, end) with end excluded."""
    mask = torch.zeros(len(spans), length)
    for row, prompt_spans in zip(mask, spans, strict=True):
        for start, end in prompt_spans:
            row[start:end] = 1
    return mask


def attention_columns(query: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
    """Softmax attention that each query pays to weighted sets of text tokens.

    query [B, H, N, d], key [B, H, S, d] (text first), tokens [B, K, L] weights with L <= S: the result is [B, H, K, N]
    with entries sum_j tokens[b, k, j] * softmax(q k^T / sqrt d)[b, h, n, j]. The softmax runs over all S keys. Where
    gradients are wanted, and for a single set, the weights enter as a value matrix (one-hot for a set of tokens), so a
    flash kernel computes it and gradients flow into query and key; many sets without gradients take text_columns().
    """
    batch, heads, _, width = query.shape
    if tokens.shape[1] > 1 and not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        each = text_columns(query, key, attend(query, key, key)[1], tokens.shape[2])
        return torch.einsum("bkl,bhln->bhkn", tokens.to(each), each)
    columns = []
    for part in tokens.split(width, dim=1):
        # as wide as the heads: flash kernels want one width for query, key and value
        values = query.new_zeros(batch, 1, key.shape[2], width)
        values[:, 0, : part.shape[2], : part.shape[1]] = part.transpose(1, 2).to(values)
        out = F.scaled_dot_product_attention(query, key, values.expand(-1, heads, -1, -1))
        columns.append(out[..., : part.shape[1]].transpose(2, 3))
    return torch.cat(columns, dim=2)


_CHUNK = 256  # queries at a time where no fused kernel tells the softmax's denominator


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt d) v, [B, H, N, d], and log sum exp(q k^T / sqrt d) of every query, [B, H, N] in fp32.

    query [B, H, N, d], key and value [B, H, S, d]. Both come out of one pass of a fused kernel, which computes the
    second anyway; torch shows it only through the kernels themselves. No gradients.
    """
    ops = torch.ops.aten
    with torch.no_grad():
        if query.device.type == "cpu":
            out, normaliser = ops._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        elif query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
            out, normaliser = ops._scaled_dot_product_flash_attention(query, key, value)[:2]
        elif query.device.type == "cuda":
            out, normaliser = ops._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
        else:
            out = F.scaled_dot_product_attention(query, key, value)
            scaled = key.transpose(-1, -2) * key.shape[-1] ** -0.5
            normaliser = torch.cat([(q @ scaled).float().logsumexp(-1) for q in query.split(_CHUNK, dim=2)], dim=2)
    return out, normaliser[..., : query.shape[2]].float()  # kernels may pad the queries


def text_columns(query: Tensor, key: Tensor, normaliser: Tensor, length: int, mean_heads: bool = False) -> Tensor:
    """Softmax attention that each query pays to each of the first `length` keys; fp32, no gradients.

    query [B, H, N, d], key [B, H, S, d] with the text first, normaliser [B, H, N]: attend()'s for these queries over
    all S keys. Returns [B, H, length, N], or the mean over heads [B, 1, length, N]. Entries are
    exp(q k^T / sqrt d - normaliser), one head at a time: the largest thing allocated beside the result is
    [B, length, N].
    """
    scale = query.shape[-1] ** -0.5
    batch, heads, queries, _ = query.shape
    columns = query.new_zeros(batch, 1 if mean_heads else heads, length, queries, dtype=torch.float32)
    with torch.no_grad():
        for head in range(heads):
            # in fp32: a logit rounded to bf16 would be off by percents after exp
            logits = torch.baddbmm(
                -normaliser[:, head, None],
                key[:, head, :length].float(),
                query[:, head].float().transpose(1, 2),
                alpha=scale,
            )
            if mean_heads:
                columns[:, 0] += logits.exp_()
            else:
                torch.exp(logits, out=columns[:, head])
    return columns.div_(heads) if mean_heads else columns


class AttentionCapture:
    """Records, in velocity(), the attention of image queries to text tokens.

    tokens: [B, L] weights of one token set per prompt (1 on a span gives the sum over it), or [B, K, L] for K sets at
    once (the identity gives every token its own map); B = 1 serves any batch. blocks: indices of double blocks, then of
    single blocks counted on from there; negative ones count from the last double block. After the call, `columns` holds
    one tensor per block in the order given: [B, heads, N] or [B, heads, K, N], N image tokens, with gradients if they
    are enabled (gradient checkpointing included).
    """

    def __init__(self, tokens: Tensor, blocks: Sequence[int]) -> None:
        if tokens.ndim not in (2, 3):
            raise ConfigError("The captured tokens must be a [B, L] or [B, K, L] tensor.")
        self.tokens = tokens
        self.blocks = tuple(blocks)
        self.columns: list[Tensor] = []
        self._recorder: AttentionRecorder | None = None

    def resolve(self, transformer: FluxTransformer2DModel) -> list[int]:
        """Indices of the captured blocks, all counted from the first double block; ConfigError if one does not
        exist."""
        double = len(transformer.transformer_blocks)
        total = double + len(transformer.single_transformer_blocks)
        indices = [block + double if block < 0 else block for block in self.blocks]
        if not indices or any(not 0 <= index < total for index in indices):
            raise ConfigError(
                f"This Flux has {total} blocks ({double} double): choose attention blocks from 0 to {total - 1}."
            )
        return indices

    def start(self, transformer: FluxTransformer2DModel, text_length: int) -> dict[str, AttentionRecorder]:
        """Prepare a pass: the joint_attention_kwargs to give to the transformer. Ends with finish()."""
        indices = self.resolve(transformer)
        install_processors(transformer)
        self._recorder = AttentionRecorder(self.tokens, text_length, frozenset(indices), {})
        return {"recorder": self._recorder}

    def finish(self, transformer: FluxTransformer2DModel) -> None:
        """Take the columns over from the pass."""
        assert self._recorder is not None, "finish() follows start()"
        columns = [self._recorder.found[index].recorded() for index in self.resolve(transformer)]
        self.columns = columns if self.tokens.ndim == 3 else [each.squeeze(2) for each in columns]


def attention_deletion(transformer: FluxTransformer2DModel, deleted: Tensor) -> dict[str, Tensor]:
    """Prepare a pass in which no query pays attention to the text tokens of `deleted` [B, L] (1: deleted), in the
    double blocks: the joint_attention_kwargs to give to the transformer.

    A[:, span] = 0 after the softmax, not renormalised (EraseAnything, Section 3): training-free erasure.
    """
    install_processors(transformer)
    return {"deleted": deleted}


@dataclass
class AttentionRecorder:
    """What one pass records; travels with the call, so that a checkpointed block replays exactly what it did."""

    tokens: Tensor
    text_length: int
    indices: frozenset[int]
    found: dict[int, BlockRecorder]

    def at(self, index: int) -> BlockRecorder | None:
        """What records one run of block `index`; None where nothing is wanted of it."""
        if index not in self.indices:
            return None
        block = BlockRecorder(self.tokens, self.text_length)
        self.found.setdefault(index, block)  # a replay computes the columns again, but the first ones carry the graph
        return block


@dataclass
class BlockRecorder:
    """What one run of a block records. It does not know of which block, so that compiled code can serve them all."""

    tokens: Tensor
    text_length: int
    columns: Tensor | None = None

    def recorded(self) -> Tensor:
        """The columns of a run that is over."""
        assert self.columns is not None, "the block has not run"
        return self.columns

    def record(self, query: Tensor, key: Tensor, _value: Tensor, _out: Tensor) -> None:
        """Take what the recorder wants: query, key, value and output are [B, heads, text + image, d]."""
        tokens = self.tokens.to(query.device)
        tokens = (tokens if tokens.ndim == 3 else tokens[:, None]).expand(query.shape[0], -1, -1)
        self.columns = attention_columns(query[:, :, self.text_length :], key, tokens)


def install_processors(transformer: FluxTransformer2DModel) -> None:
    """Let every block tell a recorder of its attention.

    They stay: they compute what diffusers' own do, to rounding, and a checkpointed block needs them in the backward
    pass.
    """
    for index, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
        if not isinstance(block.attn.processor, RecordingProcessor):
            block.attn.processor = RecordingProcessor()
            block.register_forward_pre_hook(_recorded_as(index), with_kwargs=True)


def _recorded_as(index: int) -> Any:
    """A hook that gives block `index` its own part of the pass's recorder."""

    def hook(_block: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        *args, extra = args if len(args) > 4 else (*args, kwargs.get("joint_attention_kwargs"))  # by position: a replay
        extra = dict(extra or {})
        if (recorder := extra.pop("recorder", None)) is not None and (part := recorder.at(index)) is not None:
            extra["recorder"] = part
        return tuple(args), {**kwargs, "joint_attention_kwargs": extra or None}

    return hook


class RecordingProcessor:
    """Flux's attention; the recorder of the pass, if there is one, gets queries and keys after RMS norm and RoPE.

    deleted: see `attention_deletion`.
    """

    def __call__(
        self,
        attn: Any,  # diffusers' FluxAttention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        recorder: Any = None,
        deleted: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import apply_rotary_emb  # here: the host reads this file at its start

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        query, key = attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:  # double block: the text stream has projections of its own
            text_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
            text_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
            query, key = torch.cat([text_query, query], dim=1), torch.cat([text_key, key], dim=1)
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, heads, text + image, head_dim]
        if encoder_hidden_states is not None and deleted is not None:
            # A[:, span] = 0 after the softmax is the same as values of zero there
            length = encoder_hidden_states.shape[1]
            remaining = 1 - deleted.to(value)[:, None, :, None]
            value = torch.cat([value[:, :, :length] * remaining, value[:, :, length:]], dim=2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        if recorder is not None:
            recorder.record(query, key, value, out)
        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        text, image = out.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)
