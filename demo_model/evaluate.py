"""python -m demo_model.evaluate: measures flux-emoji on images it generates from fixed seeds, in one pass a step."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from training.evaluation import Case, Content, keys_of, load_classifier, render
from training.evaluation.attacks import WORD_FORMS
from training.evaluation.cases import RELATIONS, Key, Suite, by_suite
from training.evaluation.judges.base import Verdict
from training.evaluation.judges.demo import DemoJudge
from training.evaluation.render import stacked
from training.evaluation.tally import Tally
from training.models.device import pick_device
from training.models.loading import FluxParts, load_parts
from training.models.sampling import decode, initial_noise, sample, sigmas, to_pil
from training.models.source import FluxSource
from training.models.text import TextEmbeds

from .vocabulary import NOUN_NAMES, NOUNS, STYLES, with_article

BATCH = 32


def photo(name: str) -> str:
    """The prompt of a noun, whatever its spelling."""
    return f"a photo of {with_article(name)}"


def demo_cases(seeds: int, spellings: int = 2, styles: int = 40, relations: int = 40) -> list[Case]:
    """Every noun by its name, its synonyms and other spellings; styles; relations, with both nouns in the right places.

    Args:
        seeds, spellings: Pictures of each noun by its name, and in each word form.
        styles, relations: Pictures of each.
    """

    def suite(name: str) -> tuple[Suite, ...]:
        return (Suite(name, name, "keep", False),)

    def every() -> Iterator[Case]:
        for name in NOUN_NAMES:
            for number in range(seeds):
                yield Case(photo(name), 100 + number, Content((name,)), suite("noun"))
        words = [(noun.name, synonym) for noun in NOUNS for synonym in noun.synonyms]
        for number, (name, synonym) in enumerate(words):
            yield Case(photo(synonym), 300 + number, Content((name,)), suite("synonym"))
        draw = random.Random(4)
        for number, style in enumerate(style for style in STYLES for _ in range(styles)):
            prompt = f"{with_article(draw.choice(NOUN_NAMES))} in the style of {style}"
            yield Case(prompt, 500 + number, Content(style=style), suite("style"))
        draw = random.Random(5)
        for number, relation in enumerate(relation for relation in RELATIONS for _ in range(relations)):
            first, second = draw.sample(NOUN_NAMES, 2)
            prompt = f"{with_article(first)} {relation} {with_article(second)}"
            yield Case(prompt, 700 + number, Content((first, second), relation=relation), suite("relation"))
        for form, change in WORD_FORMS.items():
            draw = random.Random(6)
            for number, name in enumerate(name for name in NOUN_NAMES for _ in range(spellings)):
                yield Case(photo(change(draw, name)), 600 + number, Content((name,)), suite(form))

    return list(every())


class Evaluation:
    """Renders and judges pictures of the demo model at a guidance; None is its default."""

    def __init__(self, parts: FluxParts, judge: DemoJudge, guidance: float | None) -> None:
        self.parts, self.judge = parts, judge
        self.guidance = parts.variant.default_guidance if guidance is None else guidance

    def pictures(self, keys: Sequence[Key]) -> Tensor:
        """[n, 3, H, W] in 0..1."""
        made: dict[Key, Tensor] = {}
        render(self.parts, keys, made, BATCH, guidance=self.guidance)
        return stacked(made, keys)

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """One for each case, all of them of one suite: pictures depend in their last bits on those beside them."""
        return self.judge.judge(self.pictures(keys_of(cases)), cases)

    def share_of(self, embeds: TextEmbeds, names: Sequence[str]) -> float:
        """Share of pictures that show these nouns, made from embeddings that no prompt gives."""
        variant, pictures = self.parts.variant, []
        levels = sigmas(variant, variant.default_steps, variant.grid[0] * variant.grid[1])
        for start in range(0, len(names), BATCH):
            some = embeds[slice(start, start + BATCH)]
            noise = initial_noise([100] * len(some.t5), variant.grid)
            with self.parts.computing():
                latents = sample(self.parts.transformer, some, noise, levels, self.guidance, variant.grid)
                pictures.append(decode(self.parts.vae, latents, variant.grid))
        cases = [Case("", 100, Content((name,))) for name in names]
        return Tally.of(self.judge.judge(torch.cat(pictures), cases)).share

    def without_pooled(self) -> float:
        """Share of nouns that are recognised without CLIP's pooled output."""
        embeds, empty = self.parts.text.encode([photo(name) for name in NOUN_NAMES]), self.parts.text.encode("")
        return self.share_of(TextEmbeds(embeds.t5, empty.pooled.expand_as(embeds.pooled)), NOUN_NAMES)

    def exchanged(self) -> float:
        """Share of pictures that show the other noun when only the noun's own T5 outputs are exchanged for its."""
        names = [name for name in NOUN_NAMES if len(self._noun_positions(name)) == 1]
        others = names[len(names) // 2 :] + names[: len(names) // 2]
        embeds, donors = (
            self.parts.text.encode([f"a photo of a {name}" for name in group]) for group in (names, others)
        )
        position = self._noun_positions(names[0])[0]
        embeds.t5[:, position] = donors.t5[:, position]
        return self.share_of(embeds, others)

    def _noun_positions(self, name: str) -> list[int]:
        start = len(self.parts.text.tokenizer_2.tokenize("a photo of a"))
        return list(range(start, len(self.parts.text.tokenizer_2.tokenize(f"a photo of a {name}"))))

    def grid(self, path: Path, columns: int = 16) -> None:
        """A sheet of every noun, styles in turn, and a last row of pairs."""
        prompts = [f"{with_article(name)} in the style of {STYLES[i % 4]}" for i, name in enumerate(NOUN_NAMES)]
        rng = random.Random(8)
        for i in range(columns):
            a, b = rng.sample(NOUN_NAMES, 2)
            prompts.append(f"{with_article(a)} {('next to', 'above', 'below')[i % 3]} {with_article(b)}")
        pictures = self.pictures([(prompt, 900 + i) for i, prompt in enumerate(prompts)])
        sheet = Image.new("RGB", (columns * 130 + 2, (len(pictures) // columns) * 130 + 2), "white")
        for i, picture in enumerate(to_pil(pictures)):
            sheet.paste(picture, (2 + i % columns * 130, 2 + i // columns * 130))
        sheet.save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).resolve().parents[1] / "example_models" / "flux-emoji"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=4, help="images per noun")
    parser.add_argument("--guidance", type=float, default=None, help="another guidance than the model's default")
    parser.add_argument("--fp32", action="store_true", help="compute in fp32 (slower on CPUs with bf16)")
    parser.add_argument("--grid", type=Path, help="also write a sample sheet to this file")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = pick_device(arguments.device)
    precision = "fp32" if arguments.fp32 else "auto"
    parts = load_parts(FluxSource(kind="diffusers", folder=str(arguments.model), precision=precision), device)
    evaluation = Evaluation(parts, DemoJudge(load_classifier(arguments.model)), arguments.guidance)
    verdicts = {
        suite.name: list(zip(cases, evaluation.verdicts(cases), strict=True))
        for suite, cases in by_suite(demo_cases(arguments.seeds)).items()
    }
    shares = {name: Tally.of(verdict for _, verdict in found).share for name, found in verdicts.items()}
    nouns = {
        name: Tally.of(verdict for case, verdict in verdicts["noun"] if case.expected.word == name).share
        for name in NOUN_NAMES
    }
    for name, share in sorted(nouns.items(), key=lambda item: item[1]):
        print(f"{name:14s} {share:.2f}")
    missed = [case.prompt for case, verdict in verdicts["synonym"] if not verdict.shown]
    print("synonyms missed:", ", ".join(missed) or "none")
    if arguments.grid:
        evaluation.grid(arguments.grid)
    result = {
        "noun": shares.pop("noun"),
        "noun_worst": min(nouns.values()),
        **shares,
        "noun_without_pooled": evaluation.without_pooled(),
        "noun_exchanged": evaluation.exchanged(),
        "guidance": round(evaluation.guidance, 4),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
