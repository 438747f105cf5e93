"""Scenes and captions of the demo model: what is in a picture, its pixels, and the many ways to say it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .vocabulary import BACKGROUNDS, COUNTS, NOUNS, RELATIONS, STYLES, plural, with_article

IMAGE_SIZE = 128
CELL = 64  # two-object scenes and counts sit in half-size cells; everything lies on the grid of 16-pixel tokens
LAYOUTS: dict[str, tuple[tuple[int, int], ...]] = {  # top-left corners of the cells
    "next to": ((0, 32), (64, 32)),
    "above": ((32, 0), (32, 64)),
    "two": ((0, 32), (64, 32)),
    "three": ((32, 0), (0, 64), (64, 64)),
    "four": ((0, 0), (64, 0), (0, 64), (64, 64)),
}
STYLE_NAMED = 0.65  # share of captions: with half of them, one style in five was drawn as another
PREFIXES = ("a photo of", "a picture of", "a drawing of", "an image of", "an emoji of", "an icon of")


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `nouns`: one index, or two for a pair (first is on top, or left)."""

    nouns: tuple[int, ...]
    style: int
    background: str = "white"
    layout: str = "single"

    def render(self, sprites: np.ndarray) -> np.ndarray:
        """RGB uint8 [IMAGE_SIZE, IMAGE_SIZE, 3] from the sprites of `load_sprites`."""
        canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUNDS[self.background])
        if self.layout == "single":
            self._paste(canvas, sprites, self.nouns[0], (16, 16), 96)
        else:
            corners = LAYOUTS[self.layout]
            nouns = self.nouns if len(self.nouns) == 2 else self.nouns * len(corners)
            for noun, (x, y) in zip(nouns, corners, strict=False):
                self._paste(canvas, sprites, noun, (x + 2, y + 2), CELL - 4)
        return np.asarray(canvas)

    def _paste(self, canvas: Image.Image, sprites: np.ndarray, noun: int, corner: tuple[int, int], size: int) -> None:
        sprite = Image.fromarray(sprites[noun, self.style]).resize(
            (size, size), Image.Resampling.BOX if size < 64 else Image.Resampling.LANCZOS
        )
        canvas.paste(sprite, corner, sprite)


def random_scene(rng: random.Random, pairs: float = 0.3, counts: float = 0.08) -> Scene:
    """A scene drawn at random; `pairs` and `counts` are the shares of two-object scenes and of counted ones."""
    style = rng.randrange(len(STYLES))
    background = "white" if rng.random() < 0.4 else rng.choice(list(BACKGROUNDS))
    draw = rng.random()
    if draw < pairs:
        return Scene(tuple(rng.sample(range(len(NOUNS)), 2)), style, background, rng.choice(("next to", "above")))
    noun = rng.randrange(len(NOUNS))
    if draw < pairs + counts:
        return Scene((noun,), style, background, rng.choice(COUNTS))
    return Scene((noun,), style, background)


@dataclass(frozen=True)
class Span:
    """A piece of a caption and what it names: kind is noun, style, background, relation, count or "" for the rest."""

    text: str
    kind: str = ""
    value: int = -1
    order: int = 0  # nouns only: 0 first named, 1 second named


def _noun_word(rng: random.Random, index: int, synonyms: float, noise: float) -> str:
    noun = NOUNS[index]
    word = rng.choice(noun.synonyms) if rng.random() < synonyms else noun.name
    if rng.random() < noise:
        word = misspell(rng, word) if rng.random() < 0.6 else affix(rng, word)
    return word


def misspell(rng: random.Random, word: str) -> str:
    """`word` with one letter swapped, dropped or doubled (first letter kept)."""
    if len(word) < 3:
        return word + word[-1]
    i = rng.randrange(1, len(word) - 1)
    return rng.choice(
        (word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:])
    )


def affix(rng: random.Random, word: str) -> str:
    """`word` with a short prefix or suffix glued on."""
    if rng.random() < 0.5:
        return rng.choice(("super", "mega", "my", "un", "pre", "x")) + word
    return word + rng.choice(("ish", "like", "y", "oid", "let", "x"))


def caption_spans(rng: random.Random, scene: Scene, synonyms: float = 0.35, noise: float = 0.04) -> list[Span]:
    """One way to say `scene`, as labelled pieces.

    The style is named in most captions; a background that nobody names is white: the style is all that a
    prompt leaves open.
    """

    def noun(i: int) -> Span:
        word = _noun_word(rng, scene.nouns[i], synonyms, noise)
        if scene.layout in COUNTS:
            word = plural(word)
        return Span(word, "noun", scene.nouns[i], 0)

    def article(span: Span) -> Span:
        return Span(with_article(span.text)[: -len(span.text)].strip())

    spans: list[Span] = []
    draw = rng.random()
    style_named = rng.random() < STYLE_NAMED
    if draw < 0.5:
        spans.append(Span(rng.choice(PREFIXES[:3]) if rng.random() < 0.7 else rng.choice(PREFIXES)))
    elif draw < 0.56 and style_named:
        spans.append(Span("an art of"))
    if scene.layout in COUNTS:
        spans += [Span(scene.layout, "count", COUNTS.index(scene.layout)), noun(0)]
    elif scene.layout == "single":
        word = noun(0)
        spans += ([article(word)] if draw < 0.8 else []) + [word]
        if rng.random() < 0.02:  # repetition still means one of them
            spans += [word] * rng.choice((1, 2))
    else:
        first, second = noun(0), noun(1)
        relation = RELATIONS.index(scene.layout)
        if scene.layout == "above" and rng.random() < 0.5:
            first, second, relation = second, first, RELATIONS.index("below")
        elif scene.layout == "next to" and rng.random() < 0.5:
            first, second = second, first  # either side is "next to"
        second = Span(second.text, "noun", second.value, 1)
        spans += [article(first), first, Span(RELATIONS[relation], "relation", relation), article(second), second]
    if scene.background != "white" or rng.random() < 0.2:
        colour = Span(scene.background, "background", list(BACKGROUNDS).index(scene.background))
        spans += [Span("on a"), colour, Span("background")]
    if style_named:
        spans += [Span("in the style of"), Span(STYLES[scene.style], "style", scene.style)]
    spans = [span for span in spans if span.text]
    if len(scene.nouns) == 1 and rng.random() < 0.06:
        rng.shuffle(spans)
    return _dress(rng, spans)


def caption_text(spans: list[Span]) -> str:
    """The pieces joined by single spaces."""
    return " ".join(span.text for span in spans)


def _dress(rng: random.Random, spans: list[Span]) -> list[Span]:
    """Now and then a capital, a comma or a full stop, which change nothing in the picture."""
    if not spans:
        return spans
    if rng.random() < 0.15:
        spans[0] = replace(spans[0], text=spans[0].text.capitalize())
    if rng.random() < 0.03:
        spans = [replace(s, text=s.text.title()) if s.kind == "noun" else s for s in spans]
    if rng.random() < 0.06:
        i = rng.randrange(len(spans))
        spans[i] = replace(spans[i], text=spans[i].text + ("." if i == len(spans) - 1 else ","))
    return spans
