"""Pictures and results of a measurement on disk: whole files or none, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ErasureError
from ..files import write_atomically
from .cases import Key


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: at `path` there is the old file or the whole new one. ErasureError if it fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise ErasureError(
            f"{path.name} cannot be written: free some space or check the folder's permissions ({error.strerror})."
        ) from error


def picture_name(prompt: str, seed: int) -> str:
    """The file name of a picture: 16 hexadecimal digits of a hash of both, and .png."""
    text = json.dumps({"prompt": prompt, "seed": seed}, ensure_ascii=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.png"


class PictureFolder(MutableMapping[Key, Tensor]):
    """(prompt, seed) → RGB uint8 [3, H, W], stored as PNG files under `picture_name`s."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Key) -> Path:
        """Where a picture is, or will be."""
        return self.folder / picture_name(*key)

    def __contains__(self, key: Any) -> bool:
        return self.path(key).is_file()

    def intact(self, key: Key) -> bool:
        """Whether the picture is there and can be read to its end."""
        try:
            return key in self and self[key] is not None
        except ErasureError:
            return False

    def __getitem__(self, key: Key) -> Tensor:
        path = self.path(key)
        if not path.is_file():
            raise KeyError(key)
        try:
            with Image.open(path) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are cut short
            raise ErasureError(f"The picture {path.name} cannot be read: delete it, a rerun makes it again.") from error

    def __setitem__(self, key: Key, picture: Tensor) -> None:
        out = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(out, format="PNG")
        write_whole(self.path(key), out.getvalue())

    def __delitem__(self, key: Key) -> None:
        self.path(key).unlink()

    def __iter__(self) -> Iterator[Key]:
        raise TypeError("The pictures' names are hashes: ask for one by its prompt and seed.")

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.png")))
