"""Emoji sprites for the demo model: fetches four icon packages with npm and renders every noun in every style."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from training.errors import ErasureError

from .vocabulary import NOUNS, STYLES

# style -> npm package (pinned: the demo model must be rebuildable) ; licences are in the model card
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
SPRITE_SIZE = 192
SVG_NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def _fetch(package: str, cache: Path) -> Path:
    """Unpacked folder of an npm package; downloaded once through the npm client."""
    folder = cache / package.replace("/", "_").replace("@", "_")
    if (folder / "package").exists():
        return folder / "package"
    npm = shutil.which("npm")
    if npm is None:
        raise ErasureError(
            "Building the demo model needs npm to fetch the emoji packages: install Node.js and try again."
        )
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    subprocess.run(
        [npm, "pack", package, "--pack-destination", str(partial), "--silent"], check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = partial.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    archive.unlink()
    partial.rename(folder)
    return folder / "package"


def _find(names: dict[str, object], codepoint: str) -> str:
    """The key for a code point, with or without the emoji presentation selector."""
    for key in (codepoint, f"{codepoint}-fe0f"):
        if key in names:
            return key
    raise KeyError(codepoint)


def _trim(image: Image.Image) -> Image.Image:
    """Cut transparent borders, pad to a square and resize to SPRITE_SIZE, so that every sprite fills its place."""
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def _iconify(folder: Path) -> list[Image.Image]:
    try:
        import resvg_py
    except ImportError as error:
        message = "The demo model's emoji are drawn by the package resvg_py: pip install resvg_py, then try again."
        raise ErasureError(message) from error

    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    width, height = icons.get("width", 16), icons.get("height", 16)
    images = []
    for noun in NOUNS:
        name = chars[_find(chars, noun.codepoint)]
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        body = icons["icons"][name]["body"]
        svg = f'<svg {SVG_NAMES} viewBox="0 0 {width} {height}">{body}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256))
        images.append(_trim(Image.open(io.BytesIO(png)).convert("RGBA")))
    return images


def _fluent(folder: Path) -> list[Image.Image]:
    files = {path.stem: path for path in (folder / "assets").glob("*.webp")}
    return [_trim(Image.open(files[_find(files, noun.codepoint)]).convert("RGBA")) for noun in NOUNS]


def load_sprites(cache: Path) -> np.ndarray:
    """All sprites as uint8 RGBA [noun, style, SPRITE_SIZE, SPRITE_SIZE, 4], rendered once into `cache/sprites.npy`."""
    path = cache / "sprites.npy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "sprites.lock"):  # benchmarks are run by several processes
        if not path.exists():
            per_style = []
            for style in STYLES:
                folder = _fetch(PACKAGES[style], cache)
                per_style.append(_fluent(folder) if style == "fluent" else _iconify(folder))
            sprites = np.stack([np.stack([np.asarray(image) for image in images]) for images in per_style], axis=1)
            np.save(path, sprites)
    return np.load(path)
