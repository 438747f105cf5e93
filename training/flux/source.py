"""Where a Flux's weights are: a folder in diffusers layout or four single files; checked by headers alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import SourceError

PRECISIONS = ("auto", "fp32", "bf16", "fp8", "int8")
QUANTISED = ("fp8", "int8")  # a byte per weight of the transformer's blocks; all else, and all arithmetic, in bf16

FILE_KINDS = {
    "transformer": "Flux transformer",
    "clip_l": "CLIP-L text encoder",
    "t5": "T5 text encoder",
    "vae": "Flux VAE",
}

# Flux's attention heads are 128 wide in every published variant (and in the demo model).
HEAD_DIM = 128

# One key that only this kind of single file has; a transformer may carry a prefix (see NATIVE_PREFIXES).
_MARKER_KEYS = {
    "transformer": "double_blocks.0.img_attn.qkv.weight",
    "clip_l": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "vae": "decoder.conv_in.weight",
}
NATIVE_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")

# (diffusers name, native name) of small tensors that are equal in both layouts: what the fingerprint hashes.
_FINGERPRINT_TENSORS = (
    ("x_embedder.weight", "img_in.weight"),
    ("x_embedder.bias", "img_in.bias"),
    ("context_embedder.bias", "txt_in.bias"),
    ("proj_out.weight", "final_layer.linear.weight"),
    ("proj_out.bias", "final_layer.linear.bias"),
)


def read_header(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a safetensors file by name, from its header; SourceError if it is missing, cut short or not
    one."""
    header, _ = read_whole_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def read_whole_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """(the header of a safetensors file: name → dtype, shape, data_offsets, and "__metadata__"; where its tensors
    start). Raises SourceError as `read_header`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise ValueError
            header = json.loads(file.read(length))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        if not all(isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in entries):
            raise ValueError
        end = max((entry["data_offsets"][1] for entry in entries), default=0)
    except FileNotFoundError:
        raise SourceError(f"The file {path.name} is missing: put it back or choose another one.") from None
    except OSError as error:
        raise SourceError(f"The file {path.name} cannot be read ({error.strerror}): check its permissions.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"The file {path.name} is not a safetensors file: choose a .safetensors file.") from None
    if 8 + length + end != size:
        raise SourceError(
            f"The file {path.name} is incomplete ({size} of {8 + length + end} bytes): download it again."
        )
    return header, 8 + length


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
    if precision == "int8" and importlib.util.find_spec("torchao") is None:
        raise SourceError('Precision int8 needs the package torchao: run "pip install torchao", or choose fp8.')


@dataclass(frozen=True)
class FluxSource:
    """Names a Flux without loading it; plain data that round-trips through JSON.

    kind "diffusers" uses `folder`; kind "files" uses the four single files and the two tokenizer folders, all absolute.
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

    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the transformer's tensors, by their name in the files (native prefix removed)."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.transformer_files():
            shapes.update(read_header(path))
        prefix = native_prefix(shapes)
        return (
            {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
            if prefix
            else shapes
        )

    def transformer_config(self) -> dict[str, Any]:
        """The transformer's geometry under diffusers' names, from config.json or from a native file's shapes."""
        if self.kind == "diffusers":
            return read_json(Path(self.folder) / "transformer" / "config.json")
        return native_transformer_config(self.transformer_shapes(), Path(self.transformer).name)

    def fingerprint(self) -> str:
        """A short name of the base transformer: geometry and a hash of small tensors rounded to bf16.

        The same for a diffusers folder and a native file, in fp32 and bf16; an fp8 copy has its own.
        """
        import torch
        from safetensors import safe_open

        digest = hashlib.sha256()
        names = {name: pair[0] for pair in _FINGERPRINT_TENSORS for name in pair}
        found: dict[str, torch.Tensor] = {}
        for path in self.transformer_files():
            prefix = native_prefix(read_header(path))
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    name = names.get(key[len(prefix) :] if key.startswith(prefix) else key)
                    if name is not None:
                        found[name] = file.get_tensor(key)
        geometry = geometry_of(self.transformer_config())
        digest.update(json.dumps(geometry).encode())
        for name, _ in _FINGERPRINT_TENSORS:
            if name not in found:
                raise SourceError(f"The Flux transformer lacks {name}: download it again.")
            digest.update(found[name].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
        return f"flux-{geometry[0]}x{geometry[1]}-{digest.hexdigest()[:16]}"


def geometry_of(config: Mapping[str, Any]) -> list[int]:
    """[double blocks, single blocks, hidden size, T5 width, pooled width, packed latent channels, guidance 0/1]."""
    return [
        config["num_layers"], config["num_single_layers"], config["num_attention_heads"] * config["attention_head_dim"],
        config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"],
        int(config["guidance_embeds"]),
    ]  # fmt: skip


def native_prefix(shapes: Mapping[str, Any]) -> str:
    """The prefix of a native (Black Forest Labs layout) transformer's keys; "" when there is none."""
    return next((prefix for prefix in NATIVE_PREFIXES if prefix + _MARKER_KEYS["transformer"] in shapes), "")


def native_transformer_config(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    """diffusers' config of a native transformer file, read off its shapes; SourceError if they are not a Flux's."""

    def blocks(kind: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(kind + ".")})

    try:
        hidden, channels = shapes["img_in.weight"]
        text, pooled = shapes["txt_in.weight"][1], shapes["vector_in.in_layer.weight"][1]
    except (KeyError, IndexError, ValueError):
        raise SourceError(f"{name} is not a whole Flux transformer: choose Flux's own transformer file.") from None
    double, single = blocks("double_blocks"), blocks("single_blocks")
    wrong = [
        f"double_blocks.{i}"
        for i in range(double)
        if shapes.get(f"double_blocks.{i}.txt_attn.qkv.weight") != (3 * hidden, hidden)
    ]
    wrong += [
        f"single_blocks.{i}"
        for i in range(single)
        if shapes.get(f"single_blocks.{i}.linear2.weight") != (hidden, 5 * hidden)
    ]
    if hidden % HEAD_DIM or wrong or not double:
        raise SourceError(
            f"{name} has blocks of a wrong shape ({(wrong or ['img_in'])[0]}): choose Flux's own transformer file."
        )
    return {
        "patch_size": 1, "in_channels": channels, "num_layers": double, "num_single_layers": single,
        "attention_head_dim": HEAD_DIM, "num_attention_heads": hidden // HEAD_DIM, "joint_attention_dim": text,
        "pooled_projection_dim": pooled, "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }  # fmt: skip


def kind_of_file(shapes: Mapping[str, Any]) -> str | None:
    """Which of FILE_KINDS a single file with these keys is; None if it is none of them."""
    if "text_model.encoder.layers.0.self_attn.q_proj.weight" in shapes:
        return "clip_l"
    if any(prefix + _MARKER_KEYS["transformer"] in shapes for prefix in NATIVE_PREFIXES):
        return "transformer"
    return next((kind for kind in ("t5", "vae") if _MARKER_KEYS[kind] in shapes), None)


def _validate_files(source: FluxSource) -> None:
    shapes = {}
    for kind, label in FILE_KINDS.items():
        path = getattr(source, kind)
        if not path:
            raise SourceError(f"No {label} is chosen: choose a file for {kind}.")
        shapes[kind] = read_header(path)
        found = kind_of_file(shapes[kind])
        if found != kind:
            what = f"a {FILE_KINDS[found]}" if found else "something else"
            raise SourceError(f"{Path(path).name} is {what}: choose a {label} for {kind}.")
    for name in ("tokenizer", "tokenizer_2"):
        if not os.path.isdir(getattr(source, name)):
            raise SourceError("The folder of a tokenizer is missing: load the model through the Load Flux node again.")
    config = source.transformer_config()
    t5, clip = shapes["t5"], shapes["clip_l"]
    _agree(
        Path(source.transformer).name,
        config,
        Path(source.t5).name,
        t5[_MARKER_KEYS["t5"]][1],
        Path(source.clip_l).name,
        clip[_MARKER_KEYS["clip_l"]][1],
        Path(source.vae).name,
        shapes["vae"][_MARKER_KEYS["vae"]][1],
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
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
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
    shapes = {
        "x_embedder.weight": (hidden, channels), "context_embedder.weight": (hidden, text),
        "proj_out.weight": (channels, hidden),
        "time_text_embed.text_embedder.linear_1.weight": (hidden, pooled),
    }  # fmt: skip
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
