"""The shipped demo model: complete, small, understood by diffusers, and its T5 keeps a word in its own tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from demo_model import judge, scenes, text
from demo_model.scenes import Scene, caption_spans, caption_text
from demo_model.vocabulary import NOUN_NAMES, NOUNS, STYLES, with_article
from training.concepts import TEMPLATES, Concept
from training.evaluation import load_classifier
from training.evaluation.attacks import WORD_FORMS, attacked_prompt
from training.models.loading import load_parts
from training.models.sampling import generate
from training.models.source import FluxSource

FOLDER = Path(__file__).resolve().parents[2] / "example_models" / "flux-emoji"


@pytest.fixture(scope="module")
def parts():
    return load_parts(FluxSource(kind="diffusers", folder=str(FOLDER), precision="fp32"), "cpu")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier(FOLDER)


def test_folder_is_small_and_says_where_it_comes_from():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 30e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for needed in (
        "Noto",
        "Twemoji",
        "OpenMoji",
        "Fluent",
        "CC-BY-SA",
        "demo_model.build",
        "demo_model.evaluate",
    ):
        assert needed in card


def test_vocabulary_is_wide_enough_and_unambiguous():
    assert len(NOUNS) >= 60 and len(STYLES) == 4
    words = [word for noun in NOUNS for word in (noun.name, *noun.synonyms)]
    assert len(words) == len(set(words))
    facts = json.loads((FOLDER / "classifier" / "config.json").read_text(encoding="utf-8"))
    assert facts["nouns"] == list(NOUN_NAMES)


def test_diffusers_pipeline_loads_it_whole():
    pipeline = FluxPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    images = pipeline(
        "a photo of a cat", height=128, width=128, num_inference_steps=2, output_type="np", max_sequence_length=32
    )
    assert images.images.shape == (1, 128, 128, 3)


def test_sampled_nouns_are_recognised_as_often_as_the_card_says(parts, classifier):
    """measured.json is what demo_model.evaluate printed for these weights; some of its pictures are drawn again."""
    claimed = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    names = NOUN_NAMES
    prompts = [f"a photo of {with_article(name)}" for name in names]
    with torch.autocast("cpu", torch.bfloat16):
        images = generate(parts, prompts, 100, batch_size=20)
    found = classifier.classify(images).nouns
    share = sum(f == name for f, name in zip(found, names, strict=True)) / len(names)
    assert share >= 0.9 and abs(share - claimed["noun"]) <= 0.06
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for measure in claimed.keys() - {"noun_worst", "guidance"}:
        assert f"{claimed[measure]:.1%}" in card, measure


def test_odd_spellings_are_read_as_their_noun(parts, classifier):
    """Attacks on an erasure show nothing where the base model does not understand them."""
    names = ("car", "penguin", "rose", "guitar", "castle", "pizza", "robot", "butterfly")
    prompts = [concept_prompt(form, name) for form in WORD_FORMS for name in names]
    with torch.autocast("cpu", torch.bfloat16):
        images = generate(parts, prompts, 100, batch_size=16)
    found = classifier.classify(images).nouns
    right = [noun == name for noun, name in zip(found, names * len(WORD_FORMS), strict=True)]
    assert sum(right) / len(right) >= 0.85


def concept_prompt(form: str, name: str) -> str:
    """The attack's first prompt on a noun."""
    return attacked_prompt(Concept(name, "entity", TEMPLATES["entity"]), form, 0)


def test_nouns_t5_outputs_hardly_touch_the_other_tokens(parts):
    """Exchanging the noun moves its own token's output far more than any other token's."""
    one, other = parts.text.encode(["a photo of a cat"]).t5[0], parts.text.encode(["a photo of a robot"]).t5[0]
    moved = (one - other).norm(dim=-1)
    position = len(parts.text.tokenizer_2.tokenize("a photo of a"))
    rest = torch.cat([moved[:position], moved[position + 1 :]])
    assert moved[position] > 4 * rest.max()


def test_synonyms_share_most_of_their_vector(parts):
    """All nouns share a part that says which one it is in the sentence; synonyms share far more."""
    position = len(parts.text.tokenizer_2.tokenize("a photo of a"))
    prompts = [f"a photo of a {word}" for word in ("car", "automobile", "shark")]
    car, automobile, shark = parts.text.encode(prompts).t5[:, position]
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(car, automobile, dim=0) > max(0.75, similarity(car, shark, dim=0) + 0.25)


def _pattern() -> np.ndarray:
    """A picture with edges and several colours: a stand-in for a sprite, whose files are not shipped."""
    y, x = np.mgrid[:128, :128]
    image = np.full((128, 128, 3), 255, np.uint8)
    disc = (x - 64) ** 2 + (y - 64) ** 2 < 40**2
    image[disc] = (200, 30, 30)
    image[disc & ((x // 8) % 2 == 0)] = (30, 30, 200)
    return image


def test_negatives_keep_the_colours_and_lose_the_shape():
    generator = np.random.default_rng(0)
    image = _pattern()
    for change in (judge.shuffle_tiles, judge.colour_blob):
        changed = change(image, generator)
        assert (np.sort(changed.reshape(-1, 3), axis=0) == np.sort(image.reshape(-1, 3), axis=0)).all()
        assert (changed != image).any(-1).mean() > 0.1


def test_classifier_rejects_what_is_no_picture(classifier):
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(20, 3, 1, 1, generator=generator).expand(-1, -1, 128, 128)
    smooth = torch.nn.functional.interpolate(
        torch.rand(20, 3, 6, 6, generator=generator), size=128, mode="bicubic"
    ).clamp(0, 1)
    for images in (flat.contiguous(), smooth):
        assert sum(noun == "none" for noun in classifier.classify(images).nouns) >= 18


def test_captions_say_what_is_in_the_scene():
    import random

    rng = random.Random(0)
    for _ in range(300):
        scene = scenes.random_scene(rng)
        spans = caption_spans(rng, scene)
        named = [span.value for span in spans if span.kind == "noun"]
        assert set(named) == set(scene.nouns)
        assert caption_text(spans).strip()
    above = Scene((0, 1), 0, "white", "above")
    for _ in range(50):
        nouns = [span for span in caption_spans(rng, above) if span.kind in ("noun", "relation")]
        relation = scenes.RELATIONS[nouns[1].value]
        assert (nouns[0].value, relation, nouns[2].value) in {(0, "above", 1), (1, "below", 0)}


def test_every_caption_word_is_one_t5_piece(parts):
    for word in text.words():
        assert len(parts.text.tokenizer_2.tokenize(word)) == 1, word
