"""A small Flux of random weights, written as the files in which the large ones are published: every layout of keys,
prefix and number format. What is written here comes from the formats alone, not from the code that reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

State = dict[str, Tensor]

HIDDEN = 128  # one head, as wide as all of Flux's are


def random_state(model: torch.nn.Module, seed: int) -> State:
    """The names of a model with random weights that bf16 holds exactly; tied weights are the same."""
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, Tensor] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
        seen.setdefault(id(parameter), drawn.bfloat16().float())
    return {name: seen[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


@cache
def transformer_state(guidance: bool = True, depth: int = 2) -> State:
    """diffusers' names; `depth` double and single blocks."""
    config = {
        "in_channels": 64,
        "num_layers": depth,
        "num_single_layers": depth,
        "attention_head_dim": HIDDEN,
        "num_attention_heads": 1,
        "joint_attention_dim": 48,
        "pooled_projection_dim": 64,
        "guidance_embeds": guidance,
    }
    return random_state(FluxTransformer2DModel(**config), 1)


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=1400,
        projection_dim=64,
        hidden_act="quick_gelu",
        bos_token_id=1398,
        eos_token_id=1399,
        pad_token_id=1399,
    )


@cache
def clip_state() -> State:
    """The names that files have, with "text_model."."""
    state = random_state(CLIPTextModel(clip_config()), 2)
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def t5_config() -> T5Config:
    return T5Config(
        d_model=48,
        d_kv=16,
        num_heads=2,
        d_ff=80,
        num_layers=2,
        vocab_size=905,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )


@cache
def t5_state() -> State:
    """transformers' names, the embedding once, as "shared.weight"."""
    state = random_state(T5EncoderModel(t5_config()), 3)
    return {name: tensor for name, tensor in state.items() if name != "encoder.embed_tokens.weight"}


VAE_WIDTHS = (32, 32, 64, 64)


@cache
def vae_state() -> State:
    """diffusers' names."""
    vae = AutoencoderKL(
        block_out_channels=VAE_WIDTHS,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=16,
        layers_per_block=2,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return random_state(vae, 4)


# ---- layouts of keys


def native_transformer(state: State) -> State:
    """Black Forest Labs' keys of a transformer in diffusers' ones."""
    out: State = {}

    def stack(name: str, *parts: str) -> None:
        for end in ("weight", "bias"):
            out[f"{name}.{end}"] = torch.cat([state[f"{part}.{end}"] for part in parts])

    def norm(name: str, part: str) -> None:
        out[f"{name}.scale"] = state[f"{part}.weight"]

    stack("img_in", "x_embedder")
    stack("txt_in", "context_embedder")
    for name, part in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        if f"time_text_embed.{part}_embedder.linear_1.weight" in state:
            stack(f"{name}_in.in_layer", f"time_text_embed.{part}_embedder.linear_1")
            stack(f"{name}_in.out_layer", f"time_text_embed.{part}_embedder.linear_2")
    for i in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))):
        new, old = f"double_blocks.{i}", f"transformer_blocks.{i}"
        stack(f"{new}.img_mod.lin", f"{old}.norm1.linear")
        stack(f"{new}.txt_mod.lin", f"{old}.norm1_context.linear")
        stack(f"{new}.img_attn.qkv", *(f"{old}.attn.to_{x}" for x in "qkv"))
        stack(f"{new}.txt_attn.qkv", *(f"{old}.attn.add_{x}_proj" for x in "qkv"))
        for new_x, old_x in (("query", "q"), ("key", "k")):
            norm(f"{new}.img_attn.norm.{new_x}_norm", f"{old}.attn.norm_{old_x}")
            norm(f"{new}.txt_attn.norm.{new_x}_norm", f"{old}.attn.norm_added_{old_x}")
        stack(f"{new}.img_attn.proj", f"{old}.attn.to_out.0")
        stack(f"{new}.txt_attn.proj", f"{old}.attn.to_add_out")
        for new_x, old_x in (("img_mlp", "ff"), ("txt_mlp", "ff_context")):
            stack(f"{new}.{new_x}.0", f"{old}.{old_x}.net.0.proj")
            stack(f"{new}.{new_x}.2", f"{old}.{old_x}.net.2")
    for i in range(1 + max(int(n.split(".")[1]) for n in state if n.startswith("single_transformer_blocks."))):
        new, old = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        stack(f"{new}.modulation.lin", f"{old}.norm.linear")
        stack(f"{new}.linear1", *(f"{old}.attn.to_{x}" for x in "qkv"), f"{old}.proj_mlp")
        norm(f"{new}.norm.query_norm", f"{old}.attn.norm_q")
        norm(f"{new}.norm.key_norm", f"{old}.attn.norm_k")
        stack(f"{new}.linear2", f"{old}.proj_out")
    for end in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{end}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat([shift, scale])
    stack("final_layer.linear", "proj_out")
    return out


def open_clip(state: State) -> State:
    """OpenAI's keys of CLIP's text encoder: stacked attention, `text_projection` without a layer; with image tower."""
    out = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": torch.ones(64, 64),
        "logit_scale": torch.tensor(4.6),
        "visual.transformer.resblocks.0.ln_1.weight": torch.ones(32),
    }
    for i in range(clip_config().num_hidden_layers):
        new, old = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for end in ("weight", "bias"):
            out[f"{new}.attn.in_proj_{end}"] = torch.cat([state[f"{old}.self_attn.{x}_proj.{end}"] for x in "qkv"])
            out[f"{new}.attn.out_proj.{end}"] = state[f"{old}.self_attn.out_proj.{end}"]
            out[f"{new}.ln_1.{end}"] = state[f"{old}.layer_norm1.{end}"]
            out[f"{new}.ln_2.{end}"] = state[f"{old}.layer_norm2.{end}"]
            out[f"{new}.mlp.c_fc.{end}"] = state[f"{old}.mlp.fc1.{end}"]
            out[f"{new}.mlp.c_proj.{end}"] = state[f"{old}.mlp.fc2.{end}"]
    return out


def native_vae(state: State) -> State:
    """CompVis' (ldm) keys of an autoencoder: `up` counts from the image, attention is 1 x 1 convolutions."""
    out: State = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "down_blocks" in name:
            level, kind, index = parts[2], parts[3], parts[4]
            place = f"down.{level}.block.{index}" if kind == "resnets" else f"down.{level}.downsample"
            rest = parts[5:]
        elif "up_blocks" in name:
            level, kind, index = len(VAE_WIDTHS) - 1 - int(parts[2]), parts[3], parts[4]
            place = f"up.{level}.block.{index}" if kind == "resnets" else f"up.{level}.upsample"
            rest = parts[5:]
        elif "mid_block.resnets" in name:
            place, rest = f"mid.block_{int(parts[3]) + 1}", parts[4:]
        elif "mid_block.attentions" in name:
            place, rest = "mid.attn_1", parts[4:]
            new = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[rest[0]]
            rest = [new, rest[-1]]
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        else:
            place, rest = "", parts[1:]
        inner = ".".join([*filter(None, [place]), *rest])
        inner = inner.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        out[f"{parts[0]}.{inner}"] = tensor
    return out


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# ---- number formats


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def is_quantised(name: str, tensor: Tensor) -> bool:
    """The blocks' linear layers, which is what published fp8 files quantise."""
    inside = ("double_blocks.", "single_blocks.", "encoder.block.", "transformer_blocks.", "single_transformer_blocks.")
    return tensor.ndim == 2 and name.startswith(inside) and not name.endswith("relative_attention_bias.weight")


def _fp8(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def json_bytes(value: object) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


Written = tuple[State, dict[str, str]]  # tensors and metadata of a file


def scale_weight(state: State, fp8: torch.dtype = torch.float8_e4m3fn) -> Written:
    """The host's first scaled fp8: a marker, scales of weights and, where there were any, of inputs."""
    out: State = {"scaled_fp8": torch.empty(0, dtype=fp8)}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            layer = name.removesuffix(".weight")
            out[name], out[f"{layer}.scale_weight"] = _fp8(tensor, fp8)
            out[f"{layer}.scale_input"] = torch.tensor(1.0)
        else:
            out[name] = tensor.half()
    return out, {}


def weight_scale(state: State) -> Written:
    """Scales under their later name, one for each row, no marker of any kind."""
    out: State = {}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            scale = tensor.abs().amax(1, keepdim=True) / 448
            out[name], out[f"{name}_scale"] = (tensor / scale).to(torch.float8_e4m3fn), scale
        else:
            out[name] = tensor.bfloat16()
    return out, {}


def comfy_quant(state: State, form: str = "float8_e4m3fn") -> Written:
    """The host's present form: each quantised layer says in a tensor of JSON what it is."""
    out: State = {}
    dtype = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}[form]
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            layer = name.removesuffix(".weight")
            out[name], out[f"{name}_scale"] = _fp8(tensor, dtype)
            out[f"{layer}.input_scale"] = torch.tensor(0.5)
            out[f"{layer}.comfy_quant"] = json_bytes({"format": form, "full_precision_matrix_mult": True})
        else:
            out[name] = tensor.bfloat16()
    return out, {}


def quantization_metadata(state: State) -> Written:
    """The form in between: the layers' formats in the file's metadata, the numbers in plain bytes."""
    out, layers = {}, {}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            number, out[f"{name}_scale"] = _fp8(tensor)
            out[name] = number.view(torch.uint8)
            layers[name.removesuffix(".weight")] = {"format": "float8_e4m3fn"}
        else:
            out[name] = tensor.bfloat16()
    return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def int8(state: State) -> Written:
    """The host's int8: a scale for each row."""
    out: State = {}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            out[name], out[f"{name}_scale"] = (tensor / scale).round().to(torch.int8), scale
            out[f"{name.removesuffix('.weight')}.comfy_quant"] = json_bytes({"format": "int8_tensorwise"})
        else:
            out[name] = tensor.bfloat16()
    return out, {}


def int8_blocks(state: State) -> Written:
    """int8 with a scale for each block of 16 x 16 weights."""
    out: State = {}
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            rows, columns = tensor.shape
            blocks = tensor.view(rows // 16, 16, columns // 16, 16)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 127
            out[name] = (blocks / scale).round().view(rows, columns).to(torch.int8)
            out[f"{name}_scale"] = scale[:, 0, :, 0].contiguous()
            conf = {"format": "int8_blockwise", "group_size": 16}
            out[f"{name.removesuffix('.weight')}.comfy_quant"] = json_bytes(conf)
        else:
            out[name] = tensor.bfloat16()
    return out, {}


def e5m2_scale_weight(state: State) -> Written:
    return scale_weight(state, torch.float8_e5m2)


def e5m2_comfy_quant(state: State) -> Written:
    return comfy_quant(state, "float8_e5m2")


# each with the largest error of a weight, as a share of its tensor's largest weight: half a step at the top
QUANTISERS: dict[Callable[[State], Written], float] = {
    scale_weight: 16 / 448,
    weight_scale: 16 / 448,
    comfy_quant: 16 / 448,
    quantization_metadata: 16 / 448,
    e5m2_scale_weight: 1 / 14,
    e5m2_comfy_quant: 1 / 14,
    int8: 0.5 / 127,
    int8_blocks: 0.5 / 127,
}


def write(path: Path, state: State, metadata: dict[str, str] | None = None) -> str:
    """A file of these tensors; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata or {})
    return str(path)


def whole_flux(folder: Path, tokenizers: Path) -> dict[str, str]:
    """The four single files as they are published, in bf16, and the tokenizers of the demo model: what FluxSource
    takes."""
    states = {
        "transformer": native_transformer(transformer_state()),
        "clip_l": clip_state(),
        "t5": t5_state(),
        "vae": native_vae(vae_state()),
    }
    files = {k: write(folder / f"{k}.safetensors", cast(state, torch.bfloat16)) for k, state in states.items()}
    return {**files, "tokenizer": str(tokenizers / "tokenizer"), "tokenizer_2": str(tokenizers / "tokenizer_2")}


def checkpoint(folder: Path) -> str:
    """All four in one file, under the host's names."""
    state = {
        **prefixed(native_transformer(transformer_state()), "model.diffusion_model."),
        **prefixed(clip_state(), "text_encoders.clip_l.transformer."),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.eye(64),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        **prefixed(t5_state(), "text_encoders.t5xxl.transformer."),
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
        **prefixed(native_vae(vae_state()), "vae."),
    }
    return write(folder / "all-in-one.safetensors", cast(state, torch.bfloat16))


def bytes_of(state: State) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in state.values())
