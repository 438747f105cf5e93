"""The pieces of a report page: escaped text, tables, bars, the strength curve, pictures as data."""

from __future__ import annotations

import base64
import html
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, features

from ..errors import ErasureError

LONGEST = 300  # characters of a text out of a file that are shown
SIDE = 256  # pixels that a picture is scaled down to
# what evaluate writes: nothing else is opened, whatever an evaluation.json says
_FILE = re.compile(
    r"(pictures/(base|deletion|lora-\d+)(@[\d.e+-]+)?/[0-9a-f]{16}|heatmaps/(base|lora-\d+)|"
    r"white_box/(deletion|lora-\d+)/[a-z\d-]+/[0-9a-f]{16})\.png"
)


def plain(value: object, longest: int = LONGEST) -> str:
    """A text out of a file for an attribute: escaped, in one line, without control characters, `longest` at most."""
    line = " ".join(str(value).split())
    line = line if len(line) <= longest else f"{line[:longest]}…"
    return html.escape("".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in line))


def text(value: object) -> str:
    """The same for the page's text, set apart so that its writing direction stays its own."""
    return f"<bdi>{plain(value)}</bdi>"


def percent(share: float) -> str:
    """A share as a percentage, with a decimal only where it says something."""
    return f"{100 * share:.1f}".removesuffix(".0") + "\u00a0%"


def counted(result: dict[str, Any], bold: bool = False) -> str:
    """ "3 of 24 (12.5 %, 95 % interval 4.3 to 31 %)", and how many pictures could not be judged."""
    if result["share"] is None:
        return f"no picture ({unjudged(result)})"
    low, high = (f"{100 * float(edge):.0f}" for edge in result["interval"])
    hits = f"{int(result['hits'])} of {int(result['images'])}"
    hits = f"<strong>{hits}</strong>" if bold else hits
    more = f", {unjudged(result)}" if result.get("failed") else ""
    return f"{hits} ({percent(float(result['share']))}; 95\u00a0% interval {low} to {high}\u00a0%{more})"


def unjudged(result: dict[str, Any]) -> str:
    """ "2 not judged"."""
    return f"{int(result['failed'])} not judged"


def share_of(result: dict[str, Any]) -> float:
    """The share, 0 where no picture could be judged, of which `counted` tells."""
    return float(result["share"] or 0)


def bar(result: dict[str, Any], kind: str) -> str:
    """A share as a bar with its interval as a whisker, for the eye beside the numbers; kind: "erase" or "keep"."""
    share, (low, high) = (100 * share_of(result)), (100 * float(edge) for edge in result["interval"])
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="{kind}" width="{share:.1f}" height="8"/>'
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="4" y2="4"/></svg>'
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is a header; the caption is plain text, all else is markup."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{plain(caption)}"><table>'
        f"<caption>{plain(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def chart(title: str, values: Sequence[float], curves: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> str:
    """Shares over strengths as an SVG with their intervals as bands; curves: (kind, name, results)."""
    left, right, top, bottom, width, height = 44, 110, 14, 40, 640, 300
    span = max(values) - min(values) or 1.0

    def x(value: float) -> float:
        return left + (value - min(values)) / span * (width - left - right)

    def y(share: float) -> float:
        return top + (1 - share) * (height - top - bottom)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="rule" x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for value in values:
        parts.append(f'<text x="{x(value):.1f}" y="{height - bottom + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    parts.append(
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 4}" text-anchor="middle">strength of the LoRA</text>'
    )
    ends: list[float] = []
    for kind, name, results in curves:
        line = [(x(v), y(share_of(r))) for v, r in zip(values, results, strict=True)]
        lows, highs = ([y(float(r["interval"][edge])) for r in results] for edge in (0, 1))
        across = [point[0] for point in line]
        band = [*zip(across, highs, strict=True), *reversed(list(zip(across, lows, strict=True)))]
        parts.append(f'<polygon class="band {kind}" points="{_points(band)}"/>')
        parts.append(f'<polyline class="line {kind}" points="{_points(line)}"/>')
        parts += [f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in line]
        end = line[-1][1] + 4
        end = end + 16 if any(abs(end - other) < 15 for other in ends) else end
        ends.append(end)
        parts.append(f'<text class="{kind}" x="{line[-1][0] + 10:.1f}" y="{end:.1f}">{html.escape(name)}</text>')
    size = f'viewBox="0 0 {width} {height}"'
    return f'<svg class="chart" {size} role="img" aria-label="{plain(title)}">{"".join(parts)}</svg>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


class Thumbnails:
    """The pictures of an evaluation as data URIs, each read once; `size` counts the bytes they would take on a page."""

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

    def img(self, file: str, alt: str, veiled: bool) -> str:
        """The picture as markup; veiled: hidden until a click or a key asks for it. alt: plain text."""
        data, width, height = self.get(file)
        image = f'<img src="{data}" width="{width}" height="{height}" alt="{plain(alt)}">'
        if not veiled:
            return image
        label = plain(f"Show a sensitive picture: {alt}")
        return (
            f'<button class="veil" type="button" aria-pressed="false" aria-label="{label}" '
            f'data-note="hidden: press to show">{image}</button>'
        )
