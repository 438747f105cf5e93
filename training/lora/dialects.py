"""Names of Flux LoRA tensors: every dialect in use, read as diffusers' modules.

diffusers, PEFT     transformer.transformer_blocks.0.attn.to_q.lora_A.weight (or .lora.down.weight, without prefix, …)
native              diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight
kohya               lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight
OneTrainer          lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight (SimpleTuner: lycoris_…)
XLabs               double_blocks.0.processor.qkv_lora1.down.weight
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..flux.native_layout import DIFFUSERS_LINEARS, NATIVE_LINEARS

# End of a key → which matrix of W + alpha / rank * B @ A it is; an end comes before the shorter ones it ends with.
_ROLES: tuple[tuple[str, Literal["A", "B", "alpha"]], ...] = (
    (".lora_linear_layer.down.weight", "A"), (".lora_linear_layer.up.weight", "B"),
    (".lora_A.default.weight", "A"), (".lora_B.default.weight", "B"),
    (".lora_A.weight", "A"), (".lora_B.weight", "B"), (".lora_A", "A"), (".lora_B", "B"),
    (".lora_down.weight", "A"), (".lora_up.weight", "B"),
    (".lora.down.weight", "A"), (".lora.up.weight", "B"), (".down.weight", "A"), (".up.weight", "B"),
    (".alpha", "alpha"),
)  # fmt: skip
_DOTTED = ("transformer.", "model.diffusion_model.", "diffusion_model.", "base_model.model.", "unet.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoders.", "lora_te")
# XLabs' attention processors hold LoRAs of these layers; linear1_qkv: the first three parts of a single block's linear1
_XLABS = {
    "double_blocks": {"qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv", "proj_lora1": "img_attn.proj",
                      "proj_lora2": "txt_attn.proj"},
    "single_blocks": {"qkv_lora": "linear1_qkv", "proj_lora": "linear2"},
}  # fmt: skip
QKV_OF_LINEAR1 = "linear1_qkv"  # the host knows this name too
_BLOCK = re.compile(r"((?:single_)?transformer_blocks|double_blocks|single_blocks)([._])(\d{1,3})\2(.+)")

# (is native, stream) → name with underscores → name with dots
_SPELLED = {
    (native, stream): {name.replace(".", "_"): name for name in names}
    for native, table in ((True, NATIVE_LINEARS), (False, DIFFUSERS_LINEARS))
    for stream, names in table.items()
}
_SPELLED[True, "single_blocks"][QKV_OF_LINEAR1] = QKV_OF_LINEAR1

# Ends of keys that change weights in ways that are no LoRA, with what they are called.
NOT_LORA = (
    (("dora_scale", "magnitude_vector", "lora_magnitude_vector.weight"), "a DoRA"),
    (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "a LoHa"),
    (("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"), "a LoKr"),
    (("oft_blocks", "oft_R.weight", "oft_diag"), "an OFT"),
)


@dataclass(frozen=True)
class LoraKey:
    """A tensor's name, understood.

    module: the layer, without prefix, with dots, native or diffusers' own name; role: "A", "B" or "alpha";
    dialect: as in this module's first lines; host: whether ComfyUI's loader knows the name.
    """

    module: str
    native: bool
    role: Literal["A", "B", "alpha"]
    dialect: str
    host: bool


def is_text_encoder(key: str) -> bool:
    """Whether the tensor changes a text encoder (CLIP-L or T5) and not the transformer."""
    return key.removeprefix("base_model.model.").startswith(_TEXT_ENCODERS)


def parse_key(key: str) -> LoraKey | None:
    """What a tensor of a Flux LoRA is for; None if no dialect has the name."""
    end, role = next(((end, role) for end, role in _ROLES if key.endswith(end)), ("", None))
    if role is None:
        return None
    stem, prefixes = key[: -len(end)], [""]
    while prefixes[-1] not in _UNDERSCORED and (
        found := next((p for p in (*_DOTTED, *_UNDERSCORED) if stem.startswith(p)), "")
    ):
        prefixes.append(found)
        stem = stem[len(found) :]
    underscored = prefixes[-1] in _UNDERSCORED
    if end in (".down.weight", ".up.weight"):
        xlabs = _xlabs(stem)
        return None if xlabs is None else LoraKey(xlabs, True, role, "xlabs", False)
    module, native = _module(stem, underscored)
    if module is None:
        return None
    prefix = "".join(prefixes)
    if underscored:
        dialect = "kohya" if native else "onetrainer"
        host = prefix in (("lora_unet_",) if native else ("lora_transformer_", "lycoris_"))
    else:
        dialect = "native" if native else "diffusers"
        host = prefix == ("diffusion_model." if native else "transformer.")
    return LoraKey(module, native, role, dialect, host)


def _xlabs(stem: str) -> str | None:
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d{1,3})\.processor\.(\w+)", stem)
    layer = _XLABS[match[1]].get(match[3]) if match else None
    return f"{match[1]}.{match[2]}.{layer}" if layer else None


def _module(stem: str, underscored: bool) -> tuple[str | None, bool]:
    """(name with dots or None, whether it is native)."""
    match = _BLOCK.fullmatch(stem)
    if match and (match[2] == "_") == underscored:
        native = match[1] in ("double_blocks", "single_blocks")
        names, start = _SPELLED[native, match[1]], f"{match[1]}.{int(match[3])}."
        rest = names.get(match[4]) if underscored else match[4] if match[4] in names.values() else None
        return (None if rest is None else start + rest), native
    for native in (True, False):
        names = _SPELLED[native, ""]
        whole = names.get(stem) if underscored else stem if stem in names.values() else None
        if whole is not None:
            return whole, native
    return None, False
