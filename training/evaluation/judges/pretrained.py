"""Reading models in transformers' layout from a folder, for judges. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ErasureError, SourceError
from ...lora.files import sha256_of
from .base import pixels


def sha256_of_weights(folder: Path) -> str:
    """One SHA-256 over the weight files of a model folder, by name: those in safetensors, else all .bin files."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    joined = "".join(f"{path.name}:{sha256_of(path)}\n" for path in files)
    return sha256_of(files[0]) if len(files) == 1 else hashlib.sha256(joined.encode()).hexdigest()


def processed(processor: Any, part: Tensor, device: torch.device) -> Tensor:
    """What a transformers image processor makes of [B, 3, H, W], from PIL images as in transformers' pipelines."""
    from PIL import Image

    pictures = [Image.fromarray(pixels(image)) for image in part]
    return processor(images=pictures, return_tensors="pt")["pixel_values"].to(device)


def model_folder(folder: str | Path, kind: str, example: str, more: str = "", types: tuple[str, ...] = ()) -> Path:
    """The folder as a path; SourceError where it has no model in transformers' layout, or one of another type."""
    folder = Path(folder).expanduser()
    config = folder / "config.json"
    if not config.is_file():
        files = ", ".join(["config.json", "model.safetensors", "preprocessor_config.json", *([more] if more else [])])
        raise SourceError(
            f"There is no {kind} in {folder}: put one there as Hugging Face has it ({files}; {example} for example); "
            "nothing is downloaded."
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as problem:
        raise SourceError(f"{config} cannot be read ({problem}): copy the model's folder again.") from problem
    if types and found not in types:
        raise SourceError(f'{folder} holds a model of type "{found}" and no {kind}: choose another folder.')
    return folder


@contextmanager
def loading(folder: Path, kind: str) -> Iterator[None]:
    """Turns whatever transformers raises while it loads into a SourceError of one line."""
    try:
        yield
    except ErasureError:
        raise
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise SourceError(f"{folder} cannot be loaded as {kind}: {reason}") from problem


def complete_model(folder: Path, model_class: Any, device: str) -> Any:
    """The model in fp32, in eval mode; SourceError where weights are missing, which transformers would draw at random
    and a measurement would take for judgements."""
    model, report = model_class.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise SourceError(
            f"{folder} lacks {len(missing)} weights that this kind of model needs ({missing[0]}, …): choose a folder "
            "with a trained model."
        )
    return model.to(device).eval().requires_grad_(False)
