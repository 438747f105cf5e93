"""Black Forest Labs' layout of the transformer's weights (single files) in diffusers' names, for any size of Flux."""

from __future__ import annotations

from collections.abc import Mapping

import torch
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


def native_to_diffusers(state: Mapping[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """The weights under diffusers' names (views where possible); names that no Flux has are kept as they are.

    hidden: the model's hidden size. `state` has its native prefix removed.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, end = name.rpartition(".")
        stream, _, rest = module.partition(".")
        index, _, rest = rest.partition(".")
        if module == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)  # diffusers' AdaLayerNormContinuous has scale first
            out[f"norm_out.linear.{end}"] = torch.cat([scale, shift])
        elif stream not in ("double_blocks", "single_blocks"):
            out[f"{_WHOLE.get(module, module)}.{end}"] = tensor
        else:
            block = f"{'' if stream == 'double_blocks' else 'single_'}transformer_blocks.{index}"
            if rest in _STACKED:
                parts = _STACKED[rest]
                # all are `hidden` wide but the last of a single block: its MLP
                widths = [hidden] * 3 + [tensor.shape[0] - 3 * hidden] * (len(parts) - 3)
                for part, piece in zip(parts, tensor.split(widths), strict=True):
                    out[f"{block}.{part}.{end}"] = piece
            elif rest in _NORMS:
                out[f"{block}.{_NORMS[rest]}.weight"] = tensor
            else:
                renamed = (_DOUBLE if stream == "double_blocks" else _SINGLE).get(rest, rest)
                out[f"{block}.{renamed}.{end}"] = tensor
    return out
