"""The pictures of an evaluation as data that a page holds."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image, features

from ...errors import ErasureError

SIDE = 256  # pixels that a picture is scaled down to
# what evaluate writes: nothing else is opened, whatever an evaluation.json says
_FILE = re.compile(
    r"(pictures/(base|deletion|lora-\d+)(@[\d.e+-]+)?/[0-9a-f]{16}|heatmaps/(base|lora-\d+)|"
    r"white_box/(deletion|lora-\d+)/[a-z\d-]+/[0-9a-f]{16})\.png"
)


class Thumbnails:
    """The pictures of an evaluation as data URIs, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kind = "WEBP" if features.check("webp") else "JPEG"
        self._made: dict[str, tuple[str, int, int]] = {}

    def get(self, file: str) -> tuple[str, int, int]:
        """(data URI, width, height) of a file that `evaluate` wrote, SIDE at most. Raises ErasureError."""
        if file not in self._made:
            self._made[file] = self._read(file)
        return self._made[file]

    def _read(self, file: str) -> tuple[str, int, int]:
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise ErasureError("The evaluation names a picture outside its folder: make it again.")
        path = self.folder / file
        if not path.is_file():
            raise ErasureError(f"The picture {file} is missing: run the evaluation again, it makes what it lacks.")
        try:
            with Image.open(path, formats=["PNG"]) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ErasureError(
                f"The picture {file} cannot be read to its end: run the evaluation again, it makes what it lacks."
            ) from error
        picture.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        picture.save(out, self.kind, quality=82)
        data = base64.b64encode(out.getvalue()).decode()
        return f"data:image/{self.kind.lower()};base64,{data}", *picture.size
