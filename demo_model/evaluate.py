"""python -m demo_model.evaluate: measures flux-emoji on images it generates from fixed seeds, in one pass a step."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from PIL import Image

from training.evaluation.attacks import WORD_FORMS
from training.evaluation.classifier import DemoClassifier, load_classifier
from training.models.device import pick_device
from training.models.loading import FluxParts, load_parts
from training.models.sampling import decode, generate, initial_noise, sample, sigmas, to_pil
from training.models.source import FluxSource
from training.models.text import TextEmbeds

from .vocabulary import NOUN_NAMES, NOUNS, STYLES, with_article

BATCH = 32


class Evaluation:
    """Generates and judges; every method returns accuracies in 0..1."""

    def __init__(self, parts: FluxParts, classifier: DemoClassifier, guidance: float | None) -> None:
        self.parts, self.classifier = parts, classifier
        self.guidance = parts.variant.default_guidance if guidance is None else guidance

    def images(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        with self.parts.computing():
            return generate(self.parts, prompts, seeds, guidance=self.guidance, batch_size=BATCH)

    def images_of(self, embeds: TextEmbeds, seeds: list[int]) -> torch.Tensor:
        """As images(), from embeddings that no prompt gives."""
        variant, pictures = self.parts.variant, []
        levels = sigmas(variant, variant.default_steps, variant.grid[0] * variant.grid[1])
        for start in range(0, len(seeds), BATCH):
            part = slice(start, start + BATCH)
            with self.parts.computing():
                latents = sample(
                    self.parts.transformer,
                    embeds[part],
                    initial_noise(seeds[part], variant.grid),
                    levels,
                    self.guidance,
                    variant.grid,
                )
                pictures.append(decode(self.parts.vae, latents, variant.grid))
        return torch.cat(pictures)

    def nouns(self, seeds: int) -> dict[str, float]:
        prompts = [f"a photo of {with_article(name)}" for name in NOUN_NAMES for _ in range(seeds)]
        found = self.classifier.classify(self.images(prompts, [100 + i % seeds for i in range(len(prompts))])).nouns
        return {
            name: sum(f == name for f in found[i * seeds : (i + 1) * seeds]) / seeds
            for i, name in enumerate(NOUN_NAMES)
        }

    def synonyms(self) -> dict[str, float]:
        words = [(noun.name, synonym) for noun in NOUNS for synonym in noun.synonyms]
        found = self.classifier.classify(
            self.images([f"a photo of {with_article(s)}" for _, s in words], [300 + i for i in range(len(words))])
        ).nouns
        return {synonym: float(f == name) for (name, synonym), f in zip(words, found, strict=False)}

    def spellings(self, images: int) -> dict[str, float]:
        """Share of pictures that still show a noun written in another way, for each word form of the attacks."""
        shares = {}
        for form, change in WORD_FORMS.items():
            names = [name for name in NOUN_NAMES for _ in range(images)]
            rng = random.Random(6)
            prompts = [f"a photo of {with_article(change(rng, name))}" for name in names]
            found = self.classifier.classify(self.images(prompts, [600 + i for i in range(len(prompts))])).nouns
            shares[form] = sum(f == name for f, name in zip(found, names, strict=True)) / len(names)
        return shares

    def styles(self, count: int) -> float:
        rng = random.Random(4)
        wanted = [(style, rng.choice(NOUN_NAMES)) for style in STYLES for _ in range(count)]
        found = self.classifier.classify(
            self.images(
                [f"{with_article(n)} in the style of {s}" for s, n in wanted], [500 + i for i in range(len(wanted))]
            )
        ).styles
        return sum(f == s for (s, _), f in zip(wanted, found, strict=False)) / len(wanted)

    def relations(self, count: int) -> float:
        """Both nouns right and in the right places."""
        rng = random.Random(5)
        wanted = [
            (*rng.sample(NOUN_NAMES, 2), relation) for relation in ("next to", "above", "below") for _ in range(count)
        ]
        prompts = [f"{with_article(a)} {relation} {with_article(b)}" for a, b, relation in wanted]
        found = self.classifier.classify(self.images(prompts, [700 + i for i in range(len(wanted))])).relations
        right = 0
        for (a, b, relation), (first, seen, second) in zip(wanted, found, strict=False):
            if relation == "next to":
                right += seen == relation and {first, second} == {a, b}
            else:
                right += seen == "above" and (first, second) == ((a, b) if relation == "above" else (b, a))
        return right / len(wanted)

    def without_pooled(self) -> float:
        prompts = [f"a photo of {with_article(name)}" for name in NOUN_NAMES]
        embeds, empty = self.parts.text.encode(prompts), self.parts.text.encode("")
        embeds = TextEmbeds(embeds.t5, empty.pooled.expand_as(embeds.pooled))
        found = self.classifier.classify(self.images_of(embeds, [100] * len(prompts))).nouns
        return sum(f == name for f, name in zip(found, NOUN_NAMES, strict=False)) / len(prompts)

    def exchanged(self) -> float:
        """Share of pictures that show the other noun when only the noun's own T5 outputs are exchanged for its."""
        names = [name for name in NOUN_NAMES if len(self._noun_positions(name)) == 1]
        others = names[len(names) // 2 :] + names[: len(names) // 2]
        embeds, donors = (
            self.parts.text.encode([f"a photo of a {name}" for name in group]) for group in (names, others)
        )
        position = self._noun_positions(names[0])[0]
        embeds.t5[:, position] = donors.t5[:, position]
        found = self.classifier.classify(self.images_of(embeds, [100] * len(names))).nouns
        return sum(f == other for f, other in zip(found, others, strict=False)) / len(names)

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
        pictures = to_pil(self.images(prompts, [900 + i for i in range(len(prompts))]))
        sheet = Image.new("RGB", (columns * 130 + 2, (len(pictures) // columns) * 130 + 2), "white")
        for i, picture in enumerate(pictures):
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
    evaluation = Evaluation(parts, load_classifier(arguments.model), arguments.guidance)
    nouns = evaluation.nouns(arguments.seeds)
    for name, share in sorted(nouns.items(), key=lambda item: item[1]):
        print(f"{name:14s} {share:.2f}")
    synonyms = evaluation.synonyms()
    print("synonyms missed:", ", ".join(s for s, hit in synonyms.items() if not hit) or "none")
    if arguments.grid:
        evaluation.grid(arguments.grid)
    accuracy = sum(nouns.values()) / len(nouns)
    result = {
        "noun": accuracy,
        "noun_worst": min(nouns.values()),
        "synonym": sum(synonyms.values()) / len(synonyms),
        "style": evaluation.styles(40),
        "relation": evaluation.relations(40),
        **evaluation.spellings(2),
        "noun_without_pooled": evaluation.without_pooled(),
        "noun_exchanged": evaluation.exchanged(),
        "guidance": evaluation.guidance,
    }
    result = {key: round(value, 4) for key, value in result.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
