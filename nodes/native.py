"""Turns a FluxSource into the host's own MODEL, CLIP and VAE, so that stock nodes work with it; applies LoRAs to a
MODEL."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.model_detection import convert_diffusers_mmdit
from safetensors.torch import load_file

from ..training.errors import LoraError, SourceError
from ..training.lora.format import KEY_BASE, LoraFile, open_lora
from ..training.models.device import weights_dtype
from ..training.models.native_layout import diffusers_parts
from ..training.models.source import FluxSource, fingerprint_of
from ..training.models.text import TextEncoders
from ..training.models.variants import FluxVariant, variant_of
from ..training.models.weights import HOST_FORMATS, kinds_in
from .compat import flux_config, quiet_log, readable_quantisation

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass
class NativeFlux:
    """The host's objects for one source."""

    model: Any
    clip: Any
    vae: Any
    variant: FluxVariant


def load_native(source: FluxSource) -> NativeFlux:
    """Load a source as the host's objects; SourceError with one sentence if its files do not do."""
    source.validate()
    if source.kind == "files":
        return NativeFlux(*_stock_objects(source), variant_of(source))
    return NativeFlux(_model(source), _clip(source), _vae(source), variant_of(source))


def _stock_objects(source: FluxSource) -> tuple[Any, Any, Any]:
    """Single files are what the host's own loaders were made for."""
    model, encoders = stock_model(source), [_stored(getattr(source, kind), kind) for kind in ("clip_l", "t5")]
    for state, metadata in encoders:
        state.update({name: text for name, text in metadata.items() if name == HOST_FORMATS})  # as its loader does
    clip = comfy.sd.load_text_encoder_state_dicts([state for state, _ in encoders], clip_type=comfy.sd.CLIPType.FLUX)
    return model, clip, comfy.sd.VAE(sd=_stored(source.vae, "vae")[0])


def stock_model(source: FluxSource) -> comfy.model_patcher.ModelPatcher:
    """The transformer of single files as the host's own loader makes it; SourceError if it does not know it."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(source.precision)
    state, metadata = _stored(source.transformer, "transformer")
    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options=options, metadata=metadata)
    if model is None:
        raise SourceError(f"ComfyUI does not know {Path(source.transformer).name} as a Flux: choose another file.")
    return model


def _stored(path: str, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """One part of a single file or an all-in-one checkpoint as the host's loaders take it, and the file's metadata."""
    tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    prefix = kinds_in(tensors)[kind]
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if kind == "clip_l" and "encoder.layers.0.self_attn.q_proj.weight" in state:  # as transformers writes it since 5.6
        state = {f"text_model.{name}": tensor for name, tensor in state.items()}
    return readable_quantisation(state, dict(metadata or {}))


def _model(source: FluxSource) -> comfy.model_patcher.ModelPatcher:
    # Built from config.json: the host's detection takes 24 heads and T5's full width for granted.
    config = source.transformer_config()
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    guidance = bool(config["guidance_embeds"])
    flux = comfy.supported_models.Flux if guidance else comfy.supported_models.FluxSchnell
    model_config = flux(
        flux_config(
            {
                "image_model": "flux",
                "in_channels": config["in_channels"] // 4,
                "out_channels": config["in_channels"] // 4,
                "patch_size": 2,
                "vec_in_dim": config["pooled_projection_dim"],
                "context_in_dim": config["joint_attention_dim"],
                "hidden_size": hidden,
                "mlp_ratio": 4.0,
                "num_heads": config["num_attention_heads"],
                "depth": config["num_layers"],
                "depth_single_blocks": config["num_single_layers"],
                "axes_dim": list(config["axes_dims_rope"]),
                "theta": 10000,
                "qkv_bias": True,
                "guidance_embed": guidance,
            }
        )
    )
    shift = variant_of(source).shift
    if guidance and shift is not None:
        # the host's shift is Flux's mu = log of the static shift; the dynamic one is its default, mu at 1024x1024
        model_config.sampling_settings = {**model_config.sampling_settings, "shift": math.log(shift)}
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    dtype = weights_dtype(source.precision, load_device)
    cast = comfy.model_management.unet_manual_cast(dtype, load_device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, cast)
    state: dict[str, torch.Tensor] = {}
    for path in source.transformer_files():
        state.update(load_file(path))
    model = model_config.get_model({}, "").to(offload_device)
    native = convert_diffusers_mmdit(state, "")
    missing = set(model.diffusion_model.state_dict()) - set(native)
    if missing:
        raise SourceError(f"The transformer lacks {sorted(missing)[0]}: download the model folder again.")
    model.load_model_weights(native, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


class _TextEncoder(torch.nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """A transformers text encoder as the host calls one: prompt weights work, textual inversion does not."""

    encode_token_weights: Any  # the host's, which a type checker does not see

    def __init__(self, transformer: torch.nn.Module, special_tokens: dict[str, int]) -> None:
        super().__init__()
        self.transformer = transformer
        self.special_tokens = special_tokens

    def encode(self, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.transformer(torch.tensor(tokens, device=next(self.transformer.parameters()).device))
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.float(), None if pooled is None else pooled.float()


class _FluxTextModel(torch.nn.Module):
    """What comfy.sd.CLIP holds for Flux (compare the host's FluxClipModel), around diffusers' encoders."""

    clip_l: _TextEncoder
    t5xxl: _TextEncoder

    def __init__(self, encoders: TextEncoders, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        clip, t5 = encoders.tokenizer, encoders.tokenizer_2
        self.clip_l = _TextEncoder(
            encoders.clip, {"start": clip.bos_token_id, "end": clip.eos_token_id, "pad": clip.pad_token_id}
        )
        self.t5xxl = _TextEncoder(encoders.t5, {"end": t5.eos_token_id, "pad": t5.pad_token_id})
        self.dtypes = {dtype}
        self.to(device)

    def set_clip_options(self, options: dict) -> None:
        """Flux uses the last layer only."""

    def reset_clip_options(self) -> None:
        """Nothing to undo: see set_clip_options."""

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[torch.Tensor, torch.Tensor]:
        t5, _ = self.t5xxl.encode_token_weights(tokens["t5xxl"])
        _, pooled = self.clip_l.encode_token_weights(tokens["l"])
        return t5, pooled

    def load_sd(self, sd: dict) -> tuple[list, list]:
        return [], list(sd)  # the weights come with the module


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's prompt syntax on a transformers tokenizer; a prompt is cut to one window, as FluxPipeline cuts it."""

    def __init__(self, tokenizer: Any, length: int, key: str) -> None:
        super().__init__(
            tokenizer_path="",
            max_length=length,
            pad_with_end=False,
            embedding_key=key,
            # the host reads a tokenizer from a path through its class; this one has been read already
            tokenizer_class=SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer),
            has_start_token=key == "clip_l",
            pad_token=tokenizer.pad_token_id,
        )

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        return super().tokenize_with_weights(text, *args, **kwargs)[:1]


class _FluxTokenizer:
    def __init__(self, encoders: TextEncoders) -> None:
        self.clip_l = _Tokenizer(encoders.tokenizer, encoders.tokenizer.model_max_length, "clip_l")
        self.t5xxl = _Tokenizer(encoders.tokenizer_2, encoders.sequence_length, "t5xxl")

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        return {
            "l": self.clip_l.tokenize_with_weights(text, return_word_ids, **kwargs),
            "t5xxl": self.t5xxl.tokenize_with_weights(text, return_word_ids, **kwargs),
        }

    def untokenize(self, token_weight_pair: list) -> list:
        return self.clip_l.untokenize(token_weight_pair)

    def state_dict(self) -> dict:
        return {}


def _clip(source: FluxSource) -> comfy.sd.CLIP:
    from ..training.models.loading import load_text_encoders

    load_device = comfy.model_management.text_encoder_device()
    dtype = weights_dtype(source.precision, load_device)
    encoders = load_text_encoders(source, "cpu", dtype)
    target = comfy.supported_models_base.ClipTarget(
        tokenizer=lambda **_: _FluxTokenizer(encoders),
        clip=lambda dtype, device, model_options: _FluxTextModel(encoders, dtype, device),
    )
    parameters = sum(parameter.numel() for parameter in (*encoders.clip.parameters(), *encoders.t5.parameters()))
    return comfy.sd.CLIP(target, parameters=parameters, model_options={"dtype": dtype})


class _Autoencoder(torch.nn.Module):
    """diffusers' AutoencoderKL behind the two calls that comfy.sd.VAE makes (raw latents, pixels in -1..1)."""

    vae: AutoencoderKL

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels).latent_dist.mode()

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


class _FluxVAE(comfy.sd.VAE):
    def __init__(self, source: FluxSource) -> None:
        from ..training.models.loading import load_vae

        # The host builds autoencoders from their weights and knows none so small: let it set up everything but that.
        with quiet_log("No VAE weights detected"):
            super().__init__(sd={})
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = weights_dtype(source.precision, self.device)
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = _Autoencoder(load_vae(source, "cpu", self.vae_dtype))
        config = self.first_stage_model.vae.config
        self.latent_channels = config.latent_channels
        self.downscale_ratio = self.upscale_ratio = 2 ** (len(config.block_out_channels) - 1)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.model_size()


def _vae(source: FluxSource) -> comfy.sd.VAE:
    return _FluxVAE(source)


class Place(NamedTuple):
    """Where rows of a LoRA's B belong in a MODEL. weight: its name; outputs: of the weight's, None for all of them."""

    weight: str
    outputs: slice | None
    rows: slice


@dataclass(frozen=True)
class PlacedLora:
    """A LoRA file as it was read, and where each of its modules is in a MODEL."""

    name: str
    file: LoraFile
    places: dict[str, list[Place]]


def place_lora(model: comfy.model_patcher.ModelPatcher, path: str) -> PlacedLora:
    """Read a LoRA of any dialect for a MODEL; LoraError if it is none, or does not fit."""
    name, file = Path(path).name, open_lora(path)
    prefix, places = "diffusion_model.", {}
    for weight, tensor in model.model.state_dict().items():
        if not (weight.startswith(prefix) and weight.endswith(".weight") and len(tensor.shape) == 2):
            continue
        outputs, inputs = tensor.shape
        module = weight.removeprefix(prefix).removesuffix(".weight")
        for part, pieces in (diffusers_parts(module, outputs, inputs) or {}).items():
            sizes = [piece.stop - piece.start for piece in pieces]
            if part not in file.weights:
                continue
            a, b, _ = file.weights[part]
            if (len(b), a.shape[1]) != (sum(sizes), inputs):
                continue
            ends = list(itertools.accumulate(sizes))
            places[part] = [
                Place(weight, None if size == outputs else piece, slice(end - size, end))
                for piece, size, end in zip(pieces, sizes, ends, strict=True)
            ]
    if places.keys() != file.weights.keys():
        raise LoraError(f"{name} was made for another Flux: choose the model it was trained on.")
    return PlacedLora(name, file, places)


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, lora: PlacedLora, strength: float
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL with a LoRA at `strength`, as patches of the host's own; LoraError if it does not take them all.

    The host gets what this pack read, never the file: it knows fewer dialects, and passes over the names it does not
    know.
    """
    if strength == 0:
        return model
    state: dict[str, torch.Tensor] = {}
    targets: dict[str, str | tuple[str, tuple[int, int, int]]] = {}
    for module, places in lora.places.items():
        a, b, alpha = lora.file.weights[module]
        for number, (weight, outputs, rows) in enumerate(places):
            key = f"{module}.{number}"
            state |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b[rows], f"{key}.alpha": torch.tensor(alpha)}
            # a part of a weight: (dimension, start, length)
            targets[key] = weight if outputs is None else (weight, (0, outputs.start, outputs.stop - outputs.start))
    patched = model.clone()
    placed = patched.add_patches(comfy.lora.load_lora(state, targets), strength)
    if len(placed) != len(targets):
        raise LoraError(
            f"ComfyUI placed {len(placed)} of the {len(targets)} patches of {lora.name}: update this pack or ComfyUI."
        )
    return patched


def base_of(model: comfy.model_patcher.ModelPatcher) -> str | None:
    """FluxSource.fingerprint() of the Flux in a MODEL; None where its numbers do not tell, or it is no Flux.1."""
    config = model.model.model_config.unet_config
    try:
        geometry = [
            config["depth"],
            config["depth_single_blocks"],
            config["hidden_size"],
            config["context_in_dim"],
            config["vec_in_dim"],
            config["in_channels"] * config["patch_size"] ** 2,
            int(config["guidance_embed"]),
        ]
        state = model.model.diffusion_model.state_dict()
        bias = state["img_in.bias"]
        return None if bias.is_meta or bias.dtype == torch.float8_e5m2 else fingerprint_of(geometry, state)
    except (KeyError, TypeError, SourceError):
        return None


def warning_of(model: comfy.model_patcher.ModelPatcher, lora: PlacedLora) -> str:
    """A sentence if a LoRA was trained on another base than the MODEL; empty if not, or where its base is unknown."""
    expected, found = lora.file.metadata.get(KEY_BASE), base_of(model)
    if expected is None or found is None or expected == found:
        return ""
    return (
        f"{lora.name} was trained on another Flux ({expected}, this one is {found}), where it may erase less or "
        "change more: choose that one, or compare before you rely on it."
    )
