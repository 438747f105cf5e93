"""Names the model that a LoRA was made for where that is no Flux.1, from the names and widths of its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

# The first that any of a file's names holds is its base. Names are compared with underscores for dots; where several
# models share a name, the more telling ones come first.
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"lora_prior_unet|down_blocks_\d+_\d+_mapper", "Stable Cascade"),
    (r"(input|output)_blocks_\d+_|middle_block|(down|up)_blocks_\d+_|mid_block", "Stable Diffusion"),
    (
        r"double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj|transformer_blocks_\d+_ff(_context)?_linear_(in|out)",
        "FLUX.2",
    ),
    (r"distilled_guidance_layer", "Chroma"),
    (r"nerf_(blocks|image_embedder|final_layer)", "Chroma Radiance"),
    (
        r"individual_token_refiner|(img|txt)_mlp_fc[12]|(img|txt)_mod_linear|single_blocks_\d+_modulation_linear|vision_in_",
        "HunyuanVideo",
    ),
    (
        r"noise_refiner|context_refiner|(^|_)layers_\d+_(attention_(to_|qkv|out)|feed_forward_w\d|adaLN_modulation)|cap_embedder",
        "Z-Image or Lumina 2",
    ),
    (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", "Qwen-Image"),
    (r"double_stream_blocks|single_stream_blocks|caption_projection_\d+_linear_$", "HiDream"),
    (
        r"transformer_blocks_\d+_attn1_|adaln_single|patchify_proj",
        "LTX-Video, PixArt or another model with cross-attention",
    ),
    (r"joint_blocks_\d+_(x|context)_block|transformer_blocks_\d+_attn2_|pos_embed_proj", "Stable Diffusion 3"),
    (
        r"blocks_\d+_(self_attn|cross_attn)_(q|k|v|o|norm_[qk]|k_img|v_img)(_(lora|alpha|diff|hada|lokr)|$)|blocks_\d+_ffn_[02]"
        r"|(^|_)blocks_\d+_attn[12]_to_",
        "Wan",
    ),
    (
        r"blocks_\d+_(adaln_modulation|self_attn_(q|k|v|output)_proj|cross_attn_(q|k|v|output)_proj)|llm_adapter",
        "Cosmos or Anima",
    ),
    (r"joint_transformer_blocks|double_layers_\d+|single_layers_\d+", "AuraFlow"),
    (r"blocks_\d+_attn_(qkv|proj)_[xy]", "Mochi"),
)
_CROSS_WIDTHS = {2048: "SDXL", 768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 1280: "the SDXL refiner"}
_SECOND_ENCODER = re.compile(r"lora_te2_|text_encoder_2\.")


def other_base(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model whose layers these are ("Qwen-Image"), from the names of a LoRA file's tensors and their shapes; None
    if they do not show it.

    Shapes of A and B tell models that share names with Flux.1: the MLPs of FLUX.2 are gated (Black Forest Labs'
    flux2 repository), and it and Qwen-Image have other numbers of blocks.
    """
    plain = {name.replace(".", "_"): shape for name, shape in shapes.items()}
    found = next((base for pattern, base in _BY_NAME if any(re.search(pattern, name) for name in plain)), None)
    if found == "Stable Diffusion":
        return _unet(plain, any(_SECOND_ENCODER.match(name) for name in shapes))
    return found or _by_widths(plain)


def _unet(plain: Mapping[str, tuple[int, ...]], second: bool) -> str:
    """Which Stable Diffusion a U-Net's LoRA is of: cross-attention reads text embeddings of the encoder's width."""
    for name, shape in plain.items():
        if re.search(r"attn2_to_[kv]_.*(down_weight|lora_A|lora_A_weight)$", name) and len(shape) > 1:
            return _CROSS_WIDTHS.get(shape[1], "Stable Diffusion")
    deep = any(re.search(r"transformer_blocks_[2-9]_", name) for name in plain)  # 1.5 has one block a place
    return "SDXL" if second or deep else "Stable Diffusion 1.5 or SDXL"


# (inputs, outputs) in hidden sizes of layers that FLUX.2 calls as FLUX.1 does, and makes otherwise
_FLUX2 = {
    r"single_blocks_\d+_linear1": (1, 9),
    r"single_blocks_\d+_linear2": (4, 1),
    r"double_blocks_\d+_(img|txt)_mlp_0": (1, 6),
    r"double_blocks_\d+_(img|txt)_mlp_2": (3, 1),
}
_BLOCKS_OF_FLUX1 = 19  # double blocks of all that Black Forest Labs released as FLUX.1
_HIDDEN_OF_SD3 = {1536: "Stable Diffusion 3 medium", 2432: "Stable Diffusion 3.5 large"}


def _by_widths(plain: Mapping[str, tuple[int, ...]]) -> str | None:
    sizes: dict[str, list[int]] = {}  # layer → [inputs, outputs]
    for name, shape in plain.items():
        match = re.fullmatch(r"(?P<layer>.*?)_(?:lora_)?(?P<side>A|B|down|up)(?:_.*)?", name)
        if match and len(shape) >= 2:
            first = match["side"] in ("A", "down")
            sizes.setdefault(match["layer"], [0, 0])[0 if first else 1] = shape[1] if first else shape[0]
    for layer, (inputs, outputs) in sizes.items():
        for pattern, (wide, high) in _FLUX2.items():
            if re.search(f"{pattern}$", layer) and inputs and inputs * high == outputs * wide:
                return "FLUX.2"
    blocks = [
        int(match[1]) for layer in sizes if (match := re.search(r"(?<!single_)transformer_blocks_(\d+)_attn", layer))
    ]
    hidden = {inputs for layer, (inputs, _) in sizes.items() if re.search(r"attn_(to|add)_[qkv]", layer)}
    if blocks and len(hidden) == 1:
        (width,) = hidden
        if width in _HIDDEN_OF_SD3 and not any("single_transformer_blocks" in layer for layer in sizes):
            return _HIDDEN_OF_SD3[width]
        if width == 3072 and max(blocks) >= _BLOCKS_OF_FLUX1:
            return "Qwen-Image"
    return None
