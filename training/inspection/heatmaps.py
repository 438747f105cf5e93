"""Heatmaps of words: the maps of a recording over its picture, one colour scale for all, as pictures, JSON and NPZ."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ConfigError
from .colours import COLOUR_MAPS, DIVERGING, TABLES, colourise
from .recording import OUTPUT, Recording
from .words import PromptWords, Word

SCALES = ("shared", "each")
FORMAT = 1  # of the JSON; raised when a reader of the old one would go wrong
_MARGIN = 6  # pixels between pictures
_DETAIL_LIMIT = 3_000_000  # values that the viewer gets
_LEVELS = 65535  # that a value of `detail` is rounded to in JSON
_DETAIL_TIMES = 10


@dataclass
class Figure:
    """Everything that a drawing of heatmaps needs.

    Attributes:
        words: The words; end token and padding are words of their own, with start = end.
        maps: fp32 [W, rows, columns], probabilities (or concept shares), averaged over heads, blocks and timesteps and
            summed over a word's tokens.
        image: uint8 [H, W, 3].
        detail: fp32 [T, L, H, W, rows, columns] for the viewer, with fewer timesteps and pixels where it is large.

    The other attributes say what was recorded and how it is drawn.
    """

    kind: str
    prompt: str
    cut: str
    tokens: list[dict[str, Any]]
    words: list[Word]
    special: list[str]  # "end" or "padding" for the last words, in order
    maps: np.ndarray
    image: np.ndarray
    blocks: list[str]
    times: list[float]
    heads: int
    colour_map: str = COLOUR_MAPS[0]
    opacity: float = 0.6
    scale: str = SCALES[0]
    detail: np.ndarray | None = None
    detail_times: list[float] | None = None

    @property
    def drawn(self) -> int:
        """The number of the prompt's own words, which are drawn; only the viewer shows end token and padding."""
        return len(self.words) - len(self.special)

    def mass(self) -> list[float]:
        """For each word, the mean attention of an image token to it, 0..1."""
        return self.maps.mean((1, 2)).tolist()

    def ceiling(self, word: int) -> float:
        """The value at the top of a word's colour scale."""
        shown = self.maps[: self.drawn] if self.scale == "shared" and word < self.drawn else self.maps[word]
        return float(shown.max()) or 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; it alone redraws the figure."""
        mass = self.mass()
        kinds = ["word"] * self.drawn + self.special
        return {
            "format": FORMAT,
            "kind": self.kind,
            "prompt": self.prompt,
            "cut": self.cut,
            "tokens": self.tokens,
            "words": [
                {"text": w.text, "kind": kind, "start": w.start, "end": w.end, "tokens": list(w.tokens), "mass": m}
                for w, kind, m in zip(self.words, kinds, mass, strict=True)
            ],
            "blocks": self.blocks,
            "times": self.times,
            "heads": self.heads,
            "colour_map": self.colour_map,
            "opacity": self.opacity,
            "scale": self.scale,
            "maps": _packed(self.maps.astype("<f4")),
            "detail": None if self.detail is None else _rounded(self.detail),
            "detail_times": self.detail_times,
            "image": "data:image/png;base64," + base64.b64encode(png_bytes(self.image)).decode(),
            "colours": {name: _hex(TABLES[name]) for name in COLOUR_MAPS},
        }


def figure_of(
    recording: Recording,
    prompt: PromptWords | None,
    words: Sequence[Word],
    image: Tensor,
    index: int = 0,
    *,
    colour_map: str = COLOUR_MAPS[0],
    opacity: float = 0.6,
    scale: str = SCALES[0],
) -> Figure:
    """The figure of some words over one image of a recording.

    Args:
        image: [H, W, 3] in 0..1, image `index` of the recording's batch.
        prompt: None for concept maps, whose words are the recording's labels.

    Raises:
        ConfigError: For settings out of range, and for words whose tokens were not recorded.
    """
    if colour_map not in COLOUR_MAPS or scale not in SCALES or not 0 <= opacity <= 1:
        raise ConfigError(f"Choose a colour map ({', '.join(COLOUR_MAPS)}), a scale (shared, each), an opacity 0 to 1.")
    maps = recording.image(index)
    count = maps.shape[3]
    words, special = list(words), []
    if recording.kind == OUTPUT or prompt is None:
        words = [Word(label, 0, 0, (n,)) for n, label in enumerate(recording.labels)]
    else:
        if prompt.length != recording.text_length:
            raise ConfigError(
                f"The recording has {recording.text_length} text tokens, this CLIP reads {prompt.length}: connect the "
                "CLIP and the prompt that were sampled."
            )
        late = [word.text for word in words if any(token >= count for token in word.tokens)]
        if late:
            raise ConfigError(f'Only {count} text tokens were recorded, "{late[0]}" comes later: record more tokens.')
        words = [word for word in words if word.tokens]
        ends = {"end": [prompt.end], "padding": prompt.padding}
        for name, positions in ends.items():
            if tokens := tuple(token for token in positions if token < count):
                words.append(Word(name, 0, 0, tokens))
                special.append(name)
    if len(words) == len(special):
        raise ConfigError("There is no word to draw: write a prompt.")
    sets = torch.zeros(len(words), count)
    for row, word in zip(sets, words, strict=True):
        row[list(word.tokens)] = 1
    mean = recording.mean(index)
    detail, times = _detail(maps, sets, recording)
    return Figure(
        kind=recording.kind,
        prompt=prompt.prompt if prompt else "",
        cut=prompt.cut if prompt else "",
        tokens=[{"id": i, "piece": p} for i, p in zip(prompt.ids, prompt.pieces, strict=True)] if prompt else [],
        words=words,
        special=special,
        maps=torch.einsum("wk,krc->wrc", sets, mean).numpy(),
        image=(image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy(),
        blocks=recording.names(),
        times=[round(t, 6) for t in recording.times],
        heads=maps.shape[2],
        colour_map=colour_map,
        opacity=opacity,
        scale=scale,
        detail=detail,
        detail_times=times,
    )


def _detail(maps: Tensor, sets: Tensor, recording: Recording) -> tuple[np.ndarray, list[float]]:
    """Words' maps by timestep, block and head [T, L, H, W, rows, columns], thinned out to what a browser can hold."""
    picked = np.unique(np.linspace(0, len(maps) - 1, min(len(maps), _DETAIL_TIMES)).round().astype(int)).tolist()
    rows, columns = recording.grid
    shape = [len(picked), *maps.shape[1:3], len(sets)]
    small = (rows, columns)
    while np.prod(shape) * small[0] * small[1] > _DETAIL_LIMIT and min(small) > 8:
        small = (max(small[0] // 2, 1), max(small[1] // 2, 1))
    out = np.empty((*shape, *small), np.float32)
    for n, step in enumerate(picked):  # one timestep at a time: the maps of all words in fp32 may be large
        each = (
            torch.einsum("wk,lhkn->lhwn", sets, maps[step].float()).div(recording.unit).unflatten(-1, (rows, columns))
        )
        if small != (rows, columns):
            each = F.adaptive_avg_pool2d(each.flatten(0, 2), small).unflatten(0, each.shape[:3])
        out[n] = each.numpy()
    return out, [round(recording.times[step], 6) for step in picked]


def read_figure(data: dict[str, Any]) -> Figure:
    """The figure from its JSON; ConfigError for another format."""
    if data.get("format") != FORMAT:
        raise ConfigError("This JSON is no heatmap figure of this version.")
    words = [Word(w["text"], w["start"], w["end"], tuple(w["tokens"])) for w in data["words"]]
    image = Image.open(io.BytesIO(base64.b64decode(data["image"].partition(",")[2]))).convert("RGB")
    same = ("kind", "prompt", "cut", "tokens", "blocks", "times", "heads", "colour_map", "opacity", "scale")
    return Figure(
        **{name: data[name] for name in same},
        words=words,
        special=[w["kind"] for w in data["words"] if w["kind"] != "word"],
        maps=_unpacked(data["maps"]),
        image=np.asarray(image),
        detail=_unpacked(data["detail"]) if data["detail"] else None,
        detail_times=data["detail_times"],
    )


def enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps [W, rows, columns] -> [W, height, width], bilinear: no value beyond those measured."""
    return F.interpolate(torch.from_numpy(maps)[:, None], (height, width), mode="bilinear")[:, 0].numpy()


def overlays(figure: Figure, top: float | None = None) -> np.ndarray:
    """uint8 [drawn, H, W, 3]: each of the prompt's words over the image. top: the value at the top of the colour scale,
    where several figures share one; by default the figure's own."""
    height, width = figure.image.shape[:2]
    big = enlarged(figure.maps[: figure.drawn], height, width)
    return np.stack(
        [
            _blend(figure.image, colourise(values / (top or figure.ceiling(n)), figure.colour_map), figure.opacity)
            for n, values in enumerate(big)
        ]
    )


def _blend(image: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    # the picture in grey, so that its colours are not read as heat
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint((1 - opacity) * grey[..., None] + opacity * colours).astype(np.uint8)


def draw_figure(figure: Figure) -> Image.Image:
    """The contact sheet: the picture, then every word over it with its mass, and the colour scale."""
    cells = [(figure.image, "")]
    mass = figure.mass()
    for n, picture in enumerate(overlays(figure)):
        cells.append((picture, f"{figure.words[n].text}  {mass[n]:.2%}"))
    top = f"0 to {figure.ceiling(0):.3g}" if figure.scale == "shared" else "each word: 0 to its own maximum"
    return sheet(cells, _columns(len(cells)), (figure.colour_map, top), figure.prompt)


def draw_comparison(before: Figure, after: Figure) -> Image.Image:
    """Two figures of the same words, a row for each word: before, after, and after − before on its own scale."""
    height, width = before.image.shape[:2]
    shared = max(f.maps[: f.drawn].max() for f in (before, after)) or 1.0
    change = enlarged(after.maps[: after.drawn] - before.maps[: before.drawn], height, width)
    extent = float(np.abs(change).max()) or 1.0
    cells = [(before.image, "before"), (after.image, "after"), (None, "change")]
    masses = before.mass(), after.mass()
    for n in range(before.drawn):
        for figure, mass in zip((before, after), masses, strict=True):
            big = enlarged(figure.maps[n : n + 1], height, width)[0]
            picture = _blend(figure.image, colourise(big / shared, figure.colour_map), figure.opacity)
            cells.append((picture, f"{figure.words[n].text}  {mass[n]:.2%}"))
        picture = colourise(change[n] / extent / 2 + 0.5, DIVERGING)
        cells.append((picture, f"{masses[1][n] - masses[0][n]:+.2%}"))
    note = f"0 to {shared:.3g}; change ±{extent:.3g}"
    return sheet(cells, 3, (before.colour_map, note), before.prompt)


def sheet(
    cells: Sequence[tuple[np.ndarray | None, str]], columns: int, scale: tuple[str, str], title: str
) -> Image.Image:
    """Labelled pictures of one size in rows, below a title and above a bar of the colour map `scale[0]`."""
    height, width = next(picture.shape[:2] for picture, _ in cells if picture is not None)
    size = max(11, min(width, height) // 11)
    font = ImageFont.load_default(size)
    line = size + 2 * _MARGIN
    rows = -(-len(cells) // columns)
    whole = (columns * (width + _MARGIN) + _MARGIN, 2 * line + rows * (height + line))
    canvas = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), shortened(draw, title, font, whole[0] - 2 * _MARGIN), "black", font)
    for n, (picture, label) in enumerate(cells):
        left, top = _MARGIN + n % columns * (width + _MARGIN), line + n // columns * (height + line)
        if picture is not None:
            canvas.paste(Image.fromarray(picture), (left, top))
        draw.text((left, top + height + 2), shortened(draw, label, font, width), "black", font)
    bar = Image.fromarray(TABLES[scale[0]][None]).resize((width, size))
    canvas.paste(bar, (_MARGIN, whole[1] - size - _MARGIN))
    note = shortened(draw, scale[1], font, whole[0] - width - 4 * _MARGIN)
    draw.text((width + 3 * _MARGIN, whole[1] - line + 2), note, "black", font)
    return canvas


def shortened(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text in one line, cut with an ellipsis to fit `width` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write the contact sheet, the maps and the figure's data beside each other: `path` with .png, .npz and .json."""
    files = [path.with_name(path.name + end) for end in (".png", ".npz", ".json")]
    draw_figure(figure).save(files[0])
    words = [word.text for word in figure.words]
    np.savez_compressed(
        files[1], maps=figure.maps, words=words, blocks=figure.blocks, times=figure.times, mass=figure.mass()
    )
    files[2].write_text(json.dumps(figure.to_dict()), encoding="utf-8")
    return files


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _columns(cells: int) -> int:
    return min(cells, max(3, round(cells**0.5 * 1.3)))


def _packed(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def _rounded(array: np.ndarray) -> dict[str, Any]:
    top = float(array.max()) or 1.0
    return {**_packed(np.rint(array / top * _LEVELS).astype("<u2")), "unit": top / _LEVELS}


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(packed["dtype"])).reshape(packed["shape"])
    return array.astype(np.float32) * packed.get("unit", 1.0)


def _hex(table: np.ndarray) -> str:
    return table.tobytes().hex()
