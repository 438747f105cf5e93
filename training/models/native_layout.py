"""Black Forest Labs' layout of the transformer's weights (single files) in diffusers' names, for any size of Flux."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
# RMS norms carry a `scale` where diffusers has a `weight`
_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
# projections that the native layout stacks along their outputs
_STACKED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")  # shift, scale there; scale, shift in diffusers
# (inputs, outputs) of diffusers' linear layers as multiples of the hidden size; None: a width of its own
_WIDTHS: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "": {
        "x_embedder": (None, 1),
        "context_embedder": (None, 1),
        "proj_out": (1, None),
        "norm_out.linear": (1, 2),
        **{f"time_text_embed.{name}_embedder.linear_1": (None, 1) for name in ("timestep", "text", "guidance")},
        **{f"time_text_embed.{name}_embedder.linear_2": (1, 1) for name in ("timestep", "text", "guidance")},
    },
    "transformer_blocks": {
        **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")},
        **{f"attn.{name}": (1, 1) for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
        **{f"{name}.net.0.proj": (1, 4) for name in ("ff", "ff_context")},
        **{f"{name}.net.2": (4, 1) for name in ("ff", "ff_context")},
        "norm1.linear": (1, 6),
        "norm1_context.linear": (1, 6),
    },
    "single_transformer_blocks": {
        **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v")},
        "proj_mlp": (1, 4),
        "proj_out": (5, 1),
        "norm.linear": (1, 3),
    },
}
_STREAMS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
# names inside blocks and outside of them, native and diffusers', with dots: what a name with underscores stands for
NATIVE_LINEARS = {
    "": (*_WHOLE, _SWAPPED[0]),
    "double_blocks": (*_DOUBLE, "img_attn.qkv", "txt_attn.qkv"),
    "single_blocks": (*_SINGLE, "linear1"),
}
DIFFUSERS_LINEARS = {stream: tuple(names) for stream, names in _WIDTHS.items()}
# norms; the layer norms among them have no weights, but trainers write changes of theirs
NATIVE_NORMS = {
    "": ("final_layer.norm_final",),
    "double_blocks": (
        *(name for name in _NORMS if "_attn." in name),
        "img_norm1",
        "img_norm2",
        "txt_norm1",
        "txt_norm2",
    ),
    "single_blocks": (*(name for name in _NORMS if "_attn." not in name), "pre_norm"),
}
DIFFUSERS_NORMS = {
    "": ("norm_out.norm",),
    "transformer_blocks": (
        "attn.norm_q",
        "attn.norm_k",
        "attn.norm_added_q",
        "attn.norm_added_k",
        "norm1.norm",
        "norm1_context.norm",
        "norm2",
        "norm2_context",
    ),
    "single_transformer_blocks": ("attn.norm_q", "attn.norm_k", "norm.norm"),
}


def linear_widths(module: str) -> tuple[int | None, int | None] | None:
    """(inputs, outputs) of a linear layer in diffusers' naming as multiples of the hidden size, None where the width is
    one of its own; None if no Flux has such a layer."""
    stream, index, rest = _split(module)
    if stream in _WIDTHS:
        return _WIDTHS[stream].get(rest) if index.isdecimal() else None
    return _WIDTHS[""].get(module)


def diffusers_parts(module: str, rows: int, hidden: int) -> dict[str, list[slice]] | None:
    """Which of diffusers' linear layers a native one holds, each with its rows there (of `rows`), in diffusers' order.

    module: native name without prefix and without ".weight". None if no Flux has such a layer.
    """
    stream, index, rest = _split(module)
    if module == _SWAPPED[0]:
        return {_SWAPPED[1]: [slice(rows // 2, rows), slice(0, rows // 2)]}
    if stream not in _STREAMS:
        return {_WHOLE[module]: [slice(0, rows)]} if module in _WHOLE else None
    block = f"{_STREAMS[stream]}.{index}"
    if rest in _STACKED and rest in NATIVE_LINEARS[stream]:
        parts = _STACKED[rest]
        # all are `hidden` wide but the last of a single block: its MLP
        ends = [hidden, 2 * hidden, 3 * hidden, *[rows] * (len(parts) - 3)]
        starts = [0, *ends]
        return {f"{block}.{part}": [slice(a, b)] for part, a, b in zip(parts, starts, ends, strict=False)}
    renamed = (_DOUBLE if stream == "double_blocks" else _SINGLE).get(rest)
    return None if renamed is None else {f"{block}.{renamed}": [slice(0, rows)]}


def _split(module: str) -> tuple[str, str, str]:
    """'double_blocks.3.img_attn.qkv' → ('double_blocks', '3', 'img_attn.qkv')."""
    stream, _, rest = module.partition(".")
    index, _, rest = rest.partition(".")
    return stream, index, rest


def _places(name: str, rows: int, hidden: int) -> dict[str, list[slice]]:
    """A tensor's names in diffusers, each with the rows (of `rows`) that it gets; its own name if no Flux has it."""
    module, _, end = name.rpartition(".")
    stream, index, rest = _split(module)
    if rest in _NORMS and stream in _STREAMS:
        return {f"{_STREAMS[stream]}.{index}.{_NORMS[rest]}.weight": [slice(0, rows)]}
    parts = diffusers_parts(module, rows, hidden)
    return {name: [slice(0, rows)]} if parts is None else {f"{part}.{end}": pieces for part, pieces in parts.items()}


def native_to_diffusers(state: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """The weights under diffusers' names (views where possible); names that no Flux has are kept as they are.

    hidden: the model's hidden size. `state` has its native prefix removed.
    """
    import torch

    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for place, rows in _places(name, len(tensor), hidden).items():
            pieces = [tensor[piece] for piece in rows]
            out[place] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return out


def diffusers_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What `native_to_diffusers` makes of tensors of these shapes; weights in diffusers' layout stay as they are."""
    hidden = next((shapes[name][0] for name in ("img_in.weight", "x_embedder.weight") if shapes.get(name)), 0)
    return {
        place: (sum(len(range(shape[0])[piece]) for piece in rows), *shape[1:])
        for name, shape in shapes.items()
        for place, rows in _places(name, shape[0], hidden).items()
    }
