"""Loads a FluxSource's parts as diffusers and transformers models, from local files only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from ..errors import SourceError
from .device import pick_device, use_autocast, weights_dtype
from .native_layout import native_to_diffusers
from .source import QUANTISED, FluxSource, require_libraries
from .streaming import stream_blocks
from .text import TextEncoders
from .variants import FluxVariant, variant_of
from .weights import Weights

# What shapes do not tell of Flux's own ae.safetensors.
_VAE_CONFIG = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "mid_block_add_attention": True,
    "force_upcast": True,
}


_FOUR_BIT = (r"\.attn\.", r"\.ff(_context)?\.", r"\.proj_")  # what NF4 holds: all of a block but its modulation
_MODULATION = re.compile(r"\.norm\w*\.linear$")  # which fp8 holds beside it
_ALIGNED = 64  # bytes: where PyTorch lets a tensor on the CPU start

Part = TypeVar("Part", bound=torch.nn.Module)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"The {what} cannot be loaded, check that its files are whole ({first_line}).") from error


def _place(module: Part, device: torch.device, dtype: torch.dtype) -> Part:
    if next(module.parameters()).dtype != dtype:  # older libraries ignore the dtype they are asked for
        module = module.to(dtype)
    module = module.to(device).eval().requires_grad_(False)
    for parameter in module.parameters():
        # Mapped from a file a tensor may lie anywhere; the CPU's kernels round by where it does, and a block must
        # compute the same wherever its weights are.
        if device.type == "cpu" and parameter.data_ptr() % _ALIGNED:
            parameter.data = parameter.data.clone()
    return module


def load_transformer(
    source: FluxSource, device: str | torch.device = "auto", dtype: torch.dtype | None = None, ring: int = 0
) -> FluxTransformer2DModel:
    """The transformer, frozen, in eval mode; stored as the source's precision says, or in `dtype` where it is given.

    ring: that many blocks are on the device at a time, as `stream_blocks` does it; 0: all of them.
    """
    device, storage = pick_device(device), "" if dtype else source.precision
    dtype = dtype or weights_dtype(source.precision, device)
    require_libraries(storage)
    with _reading("Flux transformer"):
        # a ring is filled from the computer's memory
        model = _transformer(source, torch.device("cpu") if ring else device, dtype, storage, device)
    return prepare_transformer(model, device, dtype, storage, ring)


def prepare_transformer(
    transformer: FluxTransformer2DModel, device: torch.device, dtype: torch.dtype, storage: str = "", ring: int = 0
) -> FluxTransformer2DModel:
    """The transformer brought to `device`, frozen, in eval mode; see `load_transformer`. storage: see `quantise`."""
    if storage in QUANTISED:
        quantise(transformer, storage, device)
    if ring:
        stream_blocks(_place(transformer, torch.device("cpu"), dtype), device, ring)
        return transformer
    return _place(transformer, device, dtype)


def _transformer(
    source: FluxSource, device: torch.device, dtype: torch.dtype, storage: str = "", place: torch.device | None = None
) -> FluxTransformer2DModel:
    """The transformer in `dtype`, its blocks' linear layers in fewer bits already where `storage` says so: no more than
    one tensor is ever there twice. place: see `quantise`."""
    config = source.transformer_config()
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    linears = _block_linears(model) if storage in QUANTISED else {}
    in_fp8 = {name for name in linears if storage == "fp8" or (storage == "nf4" and _MODULATION.search(name))}
    layers: dict[str, torch.nn.Linear] = {}
    small = {f"{name}.{parameter}" for name in in_fp8 for parameter in ("weight", "bias")}
    files, state = source.weights("transformer"), {}
    for weights in files:
        for stored, tensor in weights.read():
            for name, part in native_to_diffusers({stored: tensor}, hidden).items():
                made = part.to(dtype).to(device, torch.float8_e4m3fn if name in small else dtype)
                layer = name.removesuffix(".weight")
                if layer in linears and layer not in in_fp8:
                    layers[layer] = _quantised(made, storage, place or device)
                    made = made.to("meta")  # its shape, for _fill()
                # the reader's memory is used again for the next tensor
                state[name] = made.clone() if made.data_ptr() == part.data_ptr() else made
    _fill(model, state, files)
    for name, layer in layers.items():
        layer.bias = linears[name].bias
        model.set_submodule(name, layer)
    return model


def _quantised(weight: Tensor, storage: str, place: torch.device) -> torch.nn.Linear:
    """A layer, still without its bias, as `quantise` makes it of a weight."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    part = torch.nn.ModuleDict({"layer": linear})
    _to_int8(part) if storage == "int8" else _to_nf4(part, place)
    return cast(torch.nn.Linear, part["layer"])


def _block_linears(model: FluxTransformer2DModel) -> dict[str, torch.nn.Linear]:
    """The layers that `quantise` stores in fewer bits, by name."""
    return {
        f"{part}.{name}": module
        for part in ("transformer_blocks", "single_transformer_blocks")
        for name, module in getattr(model, part).named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _fill(model: torch.nn.Module, state: Mapping[str, Tensor], weights: Sequence[Weights]) -> None:
    """Give a model on the meta device its weights; SourceError where they are not all there, or of other shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name, shape in expected.items() if name not in state or tuple(state[name].shape) != shape]
    if wrong:
        files = weights[0].path.name if len(weights) == 1 else f"{weights[0].path.parent.name} (all its files)"
        what = "lacks" if wrong[0] not in state else "has in a wrong shape"
        raise SourceError(
            f"{files} {what} {wrong[0]} ({len(wrong)} of {len(expected)} weights): download it again, or choose "
            "another."
        )
    model.load_state_dict({name: state[name] for name in expected}, assign=True)


def quantise(transformer: FluxTransformer2DModel, storage: str, place: torch.device | None = None) -> None:
    """Store the linear layers of all blocks as one of QUANTISED; they compute in the dtype they have now.

    fp8: e4m3 as it is, without scales, as ComfyUI's plain fp8 files hold a Flux; int8: with one scale per row; nf4: 4
    bits with a scale for each 64 weights, computed on `place`, which is where training will be, and the modulation,
    a quarter of the weights that 4 bits would harm most, as in fp8. What is stored so already stays, and so does what
    is small: the norms' scales inside the blocks, and what embeds inputs and time or makes the output.
    """
    blocks = (transformer.transformer_blocks, transformer.single_transformer_blocks)
    if storage == "int8":
        for part in blocks:
            _to_int8(part)
        return
    if storage == "nf4":
        for part in blocks:
            _to_nf4(part, place or torch.device("cpu"))
    dtype = next(transformer.parameters()).dtype
    for part in blocks:
        # diffusers' enable_layerwise_casting() would skip the modulation ("norm1.linear"), a quarter of all weights
        apply_layerwise_casting(
            part, torch.float8_e4m3fn, dtype, (r"\.norm_(added_)?[qk]$", *(_FOUR_BIT if storage == "nf4" else ()))
        )


def _to_int8(part: torch.nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def plain(module: torch.nn.Module, _name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not hasattr(module.weight, "__tensor_flatten__")

    quantize_(part, Int8WeightOnlyConfig(), filter_fn=plain)


def _to_nf4(part: torch.nn.Module, place: torch.device) -> None:
    from .four_bit import to_nf4

    to_nf4(part, place)


def load_vae(
    source: FluxSource, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> AutoencoderKL:
    """The autoencoder, frozen, in eval mode."""
    device = pick_device(device)
    dtype = dtype or weights_dtype(source.precision, device)
    with _reading("VAE"):
        if source.kind == "diffusers":
            vae = AutoencoderKL.from_pretrained(
                Path(source.folder) / "vae", dtype=dtype, use_safetensors=True, local_files_only=True
            )
        else:
            vae = _single_file_vae(source.weights("vae")[0], dtype)
    return _place(vae, device, dtype)


def load_tokenizer(source: FluxSource, name: str = "tokenizer_2") -> PreTrainedTokenizerBase:
    """T5's tokenizer, or CLIP's ("tokenizer")."""
    with _reading("tokenizer"):
        folder = Path(source.folder) / name if source.kind == "diffusers" else Path(getattr(source, name))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_text_encoders(
    source: FluxSource, device: str | torch.device = "auto", dtype: torch.dtype | None = None, stream: bool = False
) -> TextEncoders:
    """CLIP-L, T5 and their tokenizers, frozen, in eval mode.

    stream: T5's weights wait in the computer's memory and visit the device layer by layer, in every pass anew.
    """
    device = pick_device(device)
    dtype = dtype or weights_dtype(source.precision, device)
    with _reading("text encoders"):
        if source.kind == "diffusers":
            folder = Path(source.folder)
            options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
            clip = CLIPTextModel.from_pretrained(folder / "text_encoder", **options)
            t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", **options)
        else:
            clip = _single_file_clip(source.weights("clip_l")[0], dtype)
            t5 = _single_file_t5(source.weights("t5")[0], dtype)
        tokenizer, tokenizer_2 = (load_tokenizer(source, name) for name in ("tokenizer", "tokenizer_2"))
    if tokenizer.model_max_length > 77:  # the host's tokenizer folder leaves it open
        tokenizer.model_max_length = 77
    t5 = _place(t5, torch.device("cpu") if stream else device, dtype)
    return TextEncoders(
        _place(clip, device, dtype),
        cpu_offload(t5, device) if stream else t5,
        tokenizer,
        tokenizer_2,
        variant_of(source).sequence_length,
    )


def _numbered(shapes: Iterable[str], beginning: str) -> int:
    """How many layers there are whose names are `beginning` and a number."""
    return len({name.removeprefix(beginning).split(".")[0] for name in shapes if name.startswith(beginning)})


def _single_file_vae(weights: Weights, dtype: torch.dtype) -> AutoencoderKL:
    shapes, state = weights.shapes, {name: tensor.to(dtype, copy=True) for name, tensor in weights.read()}
    native = "decoder.mid.block_1.norm1.weight" in shapes
    down, block = ("encoder.down.", "block") if native else ("encoder.down_blocks.", "resnets")
    levels = range(_numbered(shapes, down))
    config = {
        **_VAE_CONFIG,
        "block_out_channels": [shapes[f"{down}{level}.{block}.0.conv1.weight"][0] for level in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": _numbered(shapes, f"{down}0.{block}."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    if native:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        state = convert_ldm_vae_checkpoint(state, vae.config)
    _fill(vae, state, [weights])
    return vae


def _single_file_clip(weights: Weights, dtype: torch.dtype) -> CLIPTextModel:
    shapes = weights.shapes
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=_numbered(shapes, "text_model.encoder.layers."),
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        num_attention_heads=width // 64,
        vocab_size=vocabulary,
        projection_dim=width,
        hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    # transformers 5.6 dropped the "text_model." level that files have kept
    bare = not any(name.startswith("text_model.") for name in model.state_dict())
    state = {
        name.removeprefix("text_model.") if bare else name: tensor.to(dtype, copy=True)
        for name, tensor in weights.read()
    }
    _fill(model, state, [weights])
    # counted, not learned, and in no file: the only tensor that is still without memory
    embeddings = next(module for module in model.modules() if hasattr(module, "position_embedding"))
    embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return model


def _single_file_t5(weights: Weights, dtype: torch.dtype) -> T5EncoderModel:
    shapes = weights.shapes
    embedding = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    vocabulary, width = shapes[embedding]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    with torch.device("meta"):
        model = T5EncoderModel(
            T5Config(
                d_model=width,
                d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
                num_heads=heads,
                d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
                num_layers=_numbered(shapes, "encoder.block."),
                vocab_size=vocabulary,
                relative_attention_num_buckets=buckets,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
    state = {name: tensor.to(dtype, copy=True) for name, tensor in weights.read()}
    for name in ("shared.weight", "encoder.embed_tokens.weight"):  # one matrix under two names
        state[name] = state[embedding]
    _fill(model, state, [weights])
    return model


@dataclass
class FluxParts:
    """A whole Flux in memory, ready to generate images; autocast: whether computing() is in bf16."""

    variant: FluxVariant
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    text: TextEncoders
    autocast: bool = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The arithmetic that trainings on this source use, for what need not match another sampler bit by bit."""
        device = next(self.transformer.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            yield


def load_parts(source: FluxSource, device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> FluxParts:
    """All parts of a source on one device; the source is validated first."""
    source.validate()
    return FluxParts(
        variant_of(source),
        load_transformer(source, device, dtype),
        load_vae(source, device, dtype),
        load_text_encoders(source, device, dtype),
        use_autocast(source, pick_device(device)),
    )
