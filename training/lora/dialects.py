"""Names of Flux LoRA tensors: every dialect in use, read as a layer of Flux and what the tensor is for.

diffusers, PEFT     transformer.transformer_blocks.0.attn.to_q.lora_A.weight (or .lora.down.weight, without prefix, …)
native              diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight
kohya               lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight
OneTrainer          lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight (SimpleTuner: lycoris_…)
XLabs               double_blocks.0.processor.qkv_lora1.down.weight

A name is a prefix, a layer and an end. Trainers mix them freely, so each part is read by itself: any of the prefixes,
also several of them; the layer with dots or underscores; any of the ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..models.native_layout import DIFFUSERS_LINEARS, DIFFUSERS_NORMS, NATIVE_LINEARS, NATIVE_NORMS

# End of a tensor's name → what it is of its layer. `lycoris` says what the parts of LoHa and LoKr mean.
_ADAPTER = r"(?:\.[^.]+)?"  # PEFT's name of the adapter, where a trainer left it in
_ENDS: tuple[tuple[str, str], ...] = (
    (rf"\.lora_(?:A|down){_ADAPTER}\.weight|\.lora_A|\.lora_down", "A"),
    (rf"\.lora_(?:B|up){_ADAPTER}\.weight|\.lora_B|\.lora_up", "B"),
    (r"[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight|\.down\.weight", "A"),
    (r"[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight|\.up\.weight", "B"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.scalar", "scalar"),
    (r"\.diff|\.w_norm", "diff"),
    (rf"\.diff_b|\.b_norm|\.lora_(?:B|up){_ADAPTER}\.bias", "bias"),
    (rf"\.(hada_(?:w[12]_[ab]|t[12])){_ADAPTER}", ""),  # the part's own name
    (rf"\.(lokr_(?:w[12](?:_[ab])?|t[12])){_ADAPTER}", ""),
    (r"\.set_weight|\.scale", "set"),
    (r"\.reshape_weight", "reshape"),
)
_END = re.compile("(?P<stem>.+?)_*(?:" + "|".join(f"(?P<end{i}>{end})" for i, (end, _) in enumerate(_ENDS)) + ")")
# what ComfyUI's Load LoRA reads of those
_HOST_ENDS = re.compile(
    r"\.lora_(A|B)(\.default)?\.weight|\.lora_[AB]|\.lora_(down|up|mid)\.weight|\.alpha|[._]lora\.(down|up)\.weight"
    r"|\.lora_linear_layer\.(down|up)\.weight|\.(hada|lokr)_\w+|\.diff(_b)?|\.[wb]_norm"
)
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
# each word alone, so that there is one way to read a prefix, however long a file makes it
_WORDS = ("lora", "unet", "transformer", "lycoris", "base_model", "model", "module", "diffusion_model", "dit")
_PREFIX = rf"(?P<prefix>(?:(?:{'|'.join(_WORDS)})[._]+)*)"
_BLOCK = re.compile(
    _PREFIX
    + r"(?P<stream>(?:single_)?transformer_blocks|double_blocks|single_blocks)[._](?P<index>\d{1,3})[._](?P<rest>.+)"
)
_OUTSIDE = re.compile(_PREFIX + r"(?P<rest>.+)")
_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")  # torch's, at any depth
_TEXT_ENCODERS = re.compile(
    r"(?:base_model\.model\.|model\.)*(?:text_encoders?(?:_\d)?[._]|lora_te\d?_|lora_prior_te|lora_text_encoder|text_model[._]"
    r"|clip_[lg]\.|t5xxl\.|cond_stage_model\.|conditioner\.|lycoris_text_model)"
)
_EMBEDDINGS = re.compile(r"bundle_emb\.(?P<word>.+?)(?:\.string_to_param\..*|\.[^.]*)?")
# XLabs' attention processors hold LoRAs of these layers; linear1_qkv: the first three parts of a single block's linear1
_XLABS = {
    "double_blocks": {
        "qkv_lora1": "img_attn.qkv",
        "qkv_lora2": "txt_attn.qkv",
        "proj_lora1": "img_attn.proj",
        "proj_lora2": "txt_attn.proj",
    },
    "single_blocks": {"qkv": "linear1_qkv", "proj": "linear2"},
}
MAX_NAME = 300  # letters of a tensor's name; no trainer writes longer ones
QKV_OF_LINEAR1 = "linear1_qkv"  # the host knows this name too

# (is native, stream) → name with underscores → name with dots
_SPELLED = {
    (native, stream): {name.replace(".", "_"): name for name in names}
    for native, table in ((True, NATIVE_LINEARS), (False, DIFFUSERS_LINEARS))
    for stream, names in table.items()
}
_SPELLED[True, "single_blocks"][QKV_OF_LINEAR1] = QKV_OF_LINEAR1
_SPELLED[False, "transformer_blocks"]["attn_to_out"] = "attn.to_out.0"  # as diffusers' former attention processors say
_NORMS = {
    (native, stream): {name.replace(".", "_") for name in names}
    for native, table in ((True, NATIVE_NORMS), (False, DIFFUSERS_NORMS))
    for stream, names in table.items()
}

# Ends of names that change weights in ways which cannot be read as a LoRA, and why.
UNREADABLE = (
    (
        re.compile(r"\.(dora_scale|(lora_)?magnitude_vector(\.[^.]+)?(\.weight)?|lora_m)"),
        "a DoRA, which scales each row by what the whole weight becomes",
    ),
    (
        re.compile(r"\.oft_(blocks|diag|R(\.[^.]+)?(\.weight)?)"),
        "an OFT, which turns the weights instead of adding to them",
    ),
    (re.compile(r"\.boft_[RS](\.[^.]+)?"), "a BOFT, which turns the weights instead of adding to them"),
    (re.compile(r"\.(a1|a2|b1|b2|bm)\.weight"), "a GLoRA, which multiplies the weights instead of adding to them"),
    (re.compile(r"\.(ia3_l(\.[^.]+)?|on_input)"), "an IA³, which multiplies the weights instead of adding to them"),
    (re.compile(r"\.([qp]_layer\.weight|lambda_layer)"), "a T-LoRA, which changes with the step of the sampling"),
    (
        re.compile(r"\.(vera_lambda_[bd]|randlora_lambda|randlora_gamma)(\.[^.]+)?|[._](vera|randlora)_[AB](\.[^.]+)?"),
        "a VeRA or RandLoRA, whose matrices are drawn at random and shared by layers",
    ),
    (re.compile(r"\.(lora_E|ranknum)(\.[^.]+)?"), "an AdaLoRA, which has singular values beside its matrices"),
    (
        re.compile(
            r"\.(adamss|beft|bone|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|lily|lora_embedding|miss|osf"
            r"|peanut|poly|psoft|pvera|road|shira|supertuning|tinylora|trainable_tokens|unilora|vblora|waveft)_\w+"
            r"(\.[^.]+)*"
        ),
        "of another method of PEFT's, which is no sum of low-rank matrices",
    ),
)


@dataclass(frozen=True)
class LoraKey:
    """A tensor's name, understood.

    module: the layer, without prefix, with dots, native or diffusers' own name; role: "A", "B", "mid", "alpha",
    "scalar", "diff", "bias", "set", "reshape" or the name of a part of a LoHa or LoKr; norm: it belongs to a norm,
    which is no linear layer; dialect: as in this module's first lines; host: whether ComfyUI's loader knows the name.
    """

    module: str
    native: bool
    role: str
    norm: bool
    dialect: str
    host: bool


def is_text_encoder(key: str) -> bool:
    """Whether the tensor changes a text encoder (CLIP-L or T5) and not the transformer."""
    return _TEXT_ENCODERS.match(key) is not None


def embedding_word(key: str) -> str | None:
    """The word whose embedding the tensor is, as OneTrainer and kohya bundle them with a LoRA; None if it is none."""
    match = _EMBEDDINGS.fullmatch(key)
    return match["word"] if match else None


def is_change(key: str) -> bool:
    """Whether the name ends as a part of a LoRA's, of whatever model."""
    return len(key) < MAX_NAME and _END.fullmatch(key) is not None


_WHOLE = re.compile(r"(?P<layer>.+?)(?:\.modules_to_save(?:\.[^.]+)?|\.base_layer)?\.(?:weight|bias|scale)")


def whole_layer(key: str) -> str | None:
    """The layer of Flux whose own weight, bias or scale a tensor is, and no change of it; None if it is none."""
    match = _WHOLE.fullmatch(key)
    found = parse_key(f"{match['layer']}.diff") if match else None
    return found.module if found else None


def parse_key(key: str) -> LoraKey | None:
    """What a tensor of a Flux LoRA is for; None if no dialect has the name."""
    match = _END.fullmatch(_WRAPPERS.sub("", key)) if len(key) < MAX_NAME else None
    if not match:
        return None
    which = next(i for i in range(len(_ENDS)) if match[f"end{i}"])
    end, role, stem = match[f"end{which}"], _ENDS[which][1], match["stem"]
    role = role or end.split(".")[1]
    block = _BLOCK.fullmatch(stem)
    prefix, stream, rest = (block["prefix"], block["stream"], block["rest"]) if block else ("", "", stem)
    start = f"{stream}.{int(block['index'])}." if block else ""
    layer = _xlabs(stream, rest, end)
    if layer:
        return LoraKey(start + layer, True, role, False, "xlabs", False)
    if not block:
        outside = _OUTSIDE.fullmatch(stem)
        assert outside is not None, "every name has a rest"
        prefix, rest = outside["prefix"], outside["rest"]
    spelt = rest.replace(".", "_").removeprefix("_")
    if end.startswith("_lora."):
        spelt = spelt.replace("_processor_", "_")
    underscored = (prefix.rstrip("._") + "_").endswith(_UNDERSCORED)
    for native in (True, False):
        layer, norm = _SPELLED.get((native, stream), {}).get(spelt), False
        if layer is None and role in ("diff", "bias", "set") and spelt in _NORMS.get((native, stream), ()):
            layer, norm = rest, True
        if layer is not None:
            dialect = ("kohya" if native else "onetrainer") if underscored else "native" if native else "diffusers"
            known = _host_names(start + layer, native)
            whole = key[: -len(end)]
            return LoraKey(
                start + layer,
                native,
                role,
                norm,
                dialect,
                not norm and whole in known and _HOST_ENDS.fullmatch(end) is not None,
            )
    return None


def _xlabs(stream: str, rest: str, end: str) -> str | None:
    """The layer of an attention processor of XLabs'; None if it is none."""
    if stream not in _XLABS or not rest.startswith("processor.") or not end.endswith((".down.weight", ".up.weight")):
        return None
    return _XLABS[stream].get(rest.removeprefix("processor."))


def _host_names(module: str, native: bool) -> set[str]:
    """What ComfyUI's loader calls a layer."""
    spelt = module.replace(".", "_")
    if native:
        return {f"diffusion_model.{module}"} | (set() if module.endswith(QKV_OF_LINEAR1) else {f"lora_unet_{spelt}"})
    return {f"transformer.{module}", f"lora_transformer_{spelt}", f"lycoris_{spelt}"}
