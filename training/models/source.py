"""Where a Flux's weights are: a folder in diffusers layout or single files; checked by headers alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SourceError
from .weights import FILE_KINDS, Weights, open_weights, read_header

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = ("auto", "fp32", "bf16", "fp8", "int8", "nf4")
QUANTISED = ("fp8", "int8", "nf4")  # a byte per weight of the transformer's blocks, or less; all else is in bf16
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}  # what a precision needs beyond requirements.txt

# the folders of a model in diffusers layout
FOLDERS = {"transformer": "transformer", "clip_l": "text_encoder", "t5": "text_encoder_2", "vae": "vae"}

# Flux's attention heads are 128 wide in every published variant (and in the demo model).
HEAD_DIM = 128

# Tensors that are equal in both layouts and that quantised files leave as they are: what the fingerprint hashes,
# native name → diffusers name.
_FINGERPRINT_TENSORS = {
    "img_in.bias": "x_embedder.bias",
    "txt_in.bias": "context_embedder.bias",
    "time_in.in_layer.bias": "time_text_embed.timestep_embedder.linear_1.bias",
    "time_in.out_layer.bias": "time_text_embed.timestep_embedder.linear_2.bias",
    "vector_in.in_layer.bias": "time_text_embed.text_embedder.linear_1.bias",
    "vector_in.out_layer.bias": "time_text_embed.text_embedder.linear_2.bias",
    "final_layer.linear.bias": "proj_out.bias",
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; SourceError if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path.parent.name}/{path.name} is missing: the model folder is incomplete.") from None
    except (OSError, ValueError):
        raise SourceError(f"{path.parent.name}/{path.name} cannot be read as JSON: restore the model folder.") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path.parent.name}/{path.name} holds no settings: restore the model folder.")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component folder (one file, or every shard its index names); SourceError if any
    lacks."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            what = missing[0] if missing else "its list of weight files"
            raise SourceError(f"{folder.name} lacks {what}: download the model folder again.")
        return [folder / name for name in shards]
    files = [
        folder / name
        for name in ("diffusion_pytorch_model.safetensors", "model.safetensors")
        if (folder / name).is_file()
    ]
    if not files:
        raise SourceError(
            f"{folder.name} has no .safetensors weights: download the whole model folder in diffusers layout."
        )
    return files[:1]


def require_libraries(precision: str) -> None:
    """Raises SourceError where a precision needs a library that is not installed."""
    package = PACKAGES.get(precision, "")
    if package and importlib.util.find_spec(package) is None:
        raise SourceError(
            f'Precision {precision} needs the package {package}: run "pip install {package}", or choose fp8.'
        )


@dataclass(frozen=True)
class FluxSource:
    """Names a Flux without loading it; plain data that round-trips through JSON.

    kind "diffusers" uses `folder`; kind "files" uses the four single files and the two tokenizer folders, all absolute.
    An all-in-one checkpoint is named once for each part that it holds.
    precision: "auto" (bf16 on an accelerator, fp32 on the CPU), "fp32", "bf16", or one of QUANTISED.
    """

    kind: Literal["diffusers", "files"]
    folder: str = ""
    transformer: str = ""
    clip_l: str = ""
    t5: str = ""
    vae: str = ""
    tokenizer: str = ""
    tokenizer_2: str = ""
    precision: str = "auto"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FluxSource:
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown or "kind" not in data or not all(isinstance(value, str) for value in data.values()):
            raise SourceError("The description of the Flux source is malformed: load the model again.")
        return cls(**data)

    def validate(self) -> None:
        """Raise SourceError if anything is missing, incomplete or does not fit together; reads headers and configs
        only."""
        if self.precision not in PRECISIONS:
            raise SourceError(f"Precision {self.precision!r} is unknown: choose {', '.join(PRECISIONS)}.")
        require_libraries(self.precision)
        if self.kind == "diffusers":
            _validate_folder(Path(self.folder), bool(self.folder))
        elif self.kind == "files":
            _validate_files(self)
        else:
            raise SourceError(
                f"A Flux source of kind {self.kind!r} is unknown: use a diffusers folder or single files."
            )

    def transformer_files(self) -> list[Path]:
        """The safetensors files of the transformer."""
        return weight_files(Path(self.folder) / "transformer") if self.kind == "diffusers" else [Path(self.transformer)]

    def weights(self, part: str) -> list[Weights]:
        """The weights of a part, one of FILE_KINDS, in each of its files; nothing is read yet. Raises SourceError."""
        if self.kind == "files":
            return [open_weights(getattr(self, part), part)]
        return [open_weights(path) for path in weight_files(Path(self.folder) / FOLDERS[part])]

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Shapes of a part's tensors, under the names that `weights` has for them. Raises SourceError."""
        return {name: shape for weights in self.weights(part) for name, shape in weights.shapes.items()}

    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the transformer's tensors under diffusers' names."""
        from .native_layout import diffusers_shapes

        return diffusers_shapes(self.shapes("transformer"))

    def transformer_config(self) -> dict[str, Any]:
        """The transformer's geometry under diffusers' names, from config.json or from a single file's shapes."""
        if self.kind == "diffusers":
            return read_json(Path(self.folder) / "transformer" / "config.json")
        return config_of_shapes(self.transformer_shapes(), Path(self.transformer).name)

    def fingerprint(self) -> str:
        """A short name of the base transformer, see `fingerprint_of`; the same for every file that holds it, but for
        those in e5m2."""
        names = {name for pair in _FINGERPRINT_TENSORS.items() for name in pair}
        found = {n: tensor.clone() for weights in self.weights("transformer") for n, tensor in weights.read(names)}
        return fingerprint_of(geometry_of(self.transformer_config()), found)


def fingerprint_of(geometry: Sequence[int], tensors: Mapping[str, Tensor]) -> str:
    """A short name of a transformer: geometry, as `geometry_of` has it, and a hash of small tensors rounded to e4m3.

    tensors: at least those that are hashed, under native or diffusers' names. The same in fp32, bf16, fp16 and in plain
    and scaled fp8 (e4m3), which is why it takes biases, and only their first bits.
    """
    import torch

    digest = hashlib.sha256(json.dumps(list(geometry)).encode())
    for native, name in _FINGERPRINT_TENSORS.items():
        tensor = tensors.get(name, tensors.get(native))
        if tensor is None:
            raise SourceError(f"The Flux transformer lacks {name}: download it again.")
        rounded = tensor.detach().to("cpu", torch.bfloat16).to(torch.float8_e4m3fn)
        digest.update(rounded.contiguous().view(torch.uint8).numpy().tobytes())
    return f"flux-{geometry[0]}x{geometry[1]}-{digest.hexdigest()[:16]}"


def geometry_of(config: Mapping[str, Any]) -> list[int]:
    """[double blocks, single blocks, hidden size, T5 width, pooled width, packed latent channels, guidance 0/1]."""
    return [
        config["num_layers"],
        config["num_single_layers"],
        config["num_attention_heads"] * config["attention_head_dim"],
        config["joint_attention_dim"],
        config["pooled_projection_dim"],
        config["in_channels"],
        int(config["guidance_embeds"]),
    ]


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    """diffusers' config of a transformer in a single file, read off its shapes (under diffusers' names); SourceError if
    they are not a Flux's."""

    def blocks(kind: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(kind + ".")})

    try:
        hidden, channels = shapes["x_embedder.weight"]
        text = shapes["context_embedder.weight"][1]
        pooled = shapes["time_text_embed.text_embedder.linear_1.weight"][1]
        out = shapes["proj_out.weight"][0]
    except (KeyError, IndexError, ValueError):
        raise SourceError(f"{name} is not a whole Flux.1 transformer: choose the transformer of a Flux.1.") from None
    if channels != out:
        raise SourceError(
            f"{name} is a Flux that is given more than noise ({channels} channels for {out}), as Fill, Canny and Depth "
            "are: choose dev, schnell, Krea or Kontext, or a finetune of these."
        )
    config = {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": blocks("transformer_blocks"),
        "num_single_layers": blocks("single_transformer_blocks"),
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": hidden // HEAD_DIM,
        "joint_attention_dim": text,
        "pooled_projection_dim": pooled,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }
    wrong = [key for key, shape in _expected_shapes(config).items() if shapes.get(key) != shape]
    if hidden % HEAD_DIM or wrong:
        where = wrong[0].removesuffix(".weight") if wrong else "x_embedder"
        raise SourceError(f"{name} lacks {where} or has it in a wrong shape: choose the whole transformer of a Flux.1.")
    return config


def _validate_files(source: FluxSource) -> None:
    for kind, label in FILE_KINDS.items():
        if not getattr(source, kind):
            raise SourceError(f"No {label} is chosen: choose a file for {kind}.")
    shapes = {kind: source.shapes(kind) for kind in FILE_KINDS}
    # of the same width and with the same names besides
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes["t5"]:
        raise SourceError(f"{Path(source.t5).name} is a UMT5 text encoder: choose the T5-XXL (v1.1) of Flux for t5.")
    for name in ("tokenizer", "tokenizer_2"):
        if not os.path.isdir(getattr(source, name)):
            raise SourceError("The folder of a tokenizer is missing: load the model through the Load Flux node again.")
    _agree(
        Path(source.transformer).name,
        source.transformer_config(),
        Path(source.t5).name,
        shapes["t5"]["encoder.block.0.layer.0.SelfAttention.q.weight"][1],
        Path(source.clip_l).name,
        shapes["clip_l"]["text_model.encoder.layers.0.self_attn.q_proj.weight"][1],
        Path(source.vae).name,
        shapes["vae"]["decoder.conv_in.weight"][1],
    )


def _validate_folder(folder: Path, given: bool) -> None:
    if not given or not folder.is_dir():
        raise SourceError("The model folder is missing: choose a Flux folder in diffusers layout.")
    if read_json(folder / "model_index.json").get("_class_name") != "FluxPipeline":
        raise SourceError(
            f"{folder.name} is not a Flux model: choose a folder whose model_index.json names FluxPipeline."
        )
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2", "scheduler"):
        if not (folder / part).is_dir():
            raise SourceError(f"{folder.name} lacks its folder {part}: download the whole model.")
    config = read_json(folder / "transformer" / "config.json")
    t5, clip = (read_json(folder / part / "config.json") for part in ("text_encoder_2", "text_encoder"))
    vae = read_json(folder / "vae" / "config.json")
    read_json(folder / "scheduler" / "scheduler_config.json")
    for part in ("tokenizer", "tokenizer_2"):
        read_json(folder / part / "tokenizer_config.json")
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in FOLDERS.values():
        shapes[part] = {}
        for path in weight_files(folder / part):
            shapes[part].update(read_header(path))
    try:
        expected = _expected_shapes(config)
        for name, shape in expected.items():
            if shapes["transformer"].get(name) != shape:
                raise SourceError(
                    f"transformer/{name} is {shapes['transformer'].get(name, 'missing')}, not {shape}: "
                    "weights and config.json are of different models, download them again."
                )
        _agree(
            "transformer",
            config,
            "text_encoder_2",
            t5["d_model"],
            "text_encoder",
            clip["hidden_size"],
            "vae",
            vae["latent_channels"],
        )
        shared = {
            shape
            for name, shape in shapes["text_encoder_2"].items()
            if name in ("shared.weight", "encoder.embed_tokens.weight")
        }
        if shared != {(t5["vocab_size"], t5["d_model"])}:
            raise SourceError("text_encoder_2 weights do not fit their config.json: download the model folder again.")
    except KeyError as error:
        raise SourceError(f"A config.json of {folder.name} lacks {error}: download the model folder again.") from None


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes that a diffusers Flux transformer with this config must have (every projection that a LoRA may touch)."""
    double, single, hidden, text, pooled, channels, guidance = geometry_of(config)
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.weight": (hidden, channels),
        "context_embedder.weight": (hidden, text),
        "proj_out.weight": (channels, hidden),
        "time_text_embed.text_embedder.linear_1.weight": (hidden, pooled),
    }
    if guidance:
        shapes["time_text_embed.guidance_embedder.linear_2.weight"] = (hidden, hidden)
    for i in range(double):
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            shapes[f"transformer_blocks.{i}.attn.{name}.weight"] = (hidden, hidden)
        for name in ("ff", "ff_context"):
            shapes[f"transformer_blocks.{i}.{name}.net.2.weight"] = (hidden, 4 * hidden)
    for i in range(single):
        for name in ("to_q", "to_k", "to_v"):
            shapes[f"single_transformer_blocks.{i}.attn.{name}.weight"] = (hidden, hidden)
        shapes[f"single_transformer_blocks.{i}.proj_out.weight"] = (hidden, 5 * hidden)
    return shapes


def _agree(
    transformer: str,
    config: Mapping[str, Any],
    t5: str,
    t5_width: int,
    clip: str,
    clip_width: int,
    vae: str,
    latent_channels: int,
) -> None:
    for name, has, needs in (
        (t5, t5_width, config["joint_attention_dim"]),
        (clip, clip_width, config["pooled_projection_dim"]),
        (vae, 4 * latent_channels, config["in_channels"]),
    ):
        if has != needs:
            raise SourceError(
                f"{name} (width {has}) does not fit {transformer} (needs {needs}): choose files of one Flux."
            )


def demo_model_folder() -> Path:
    """The demo model: the folder in the environment variable FLUX_EMOJI, else example_models/flux-emoji of this
    pack."""
    override = os.environ.get("FLUX_EMOJI")
    return Path(override) if override else Path(__file__).resolve().parents[2] / "example_models" / "flux-emoji"


def demo_source(precision: str = "auto") -> FluxSource:
    """The source of the demo model (not validated)."""
    return FluxSource(kind="diffusers", folder=str(demo_model_folder().resolve()), precision=precision)


def grid_of(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of image tokens for an image in pixels: 8x autoencoder, 2x2 patches."""
    if width % 16 or height % 16 or min(width, height) < 16:
        raise SourceError(f"An image of {width}x{height} is not possible: use multiples of 16.")
    return height // 16, width // 16


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters of a file or model from its shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
