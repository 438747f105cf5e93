"""Measuring a style, a relation and attention deletion on the demo model, by a handful of images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.support.flux_models import demo_parts, fp32_source
from training.concepts import Concept
from training.evaluation import load_classifier, measure_deletion, measure_erasure
from training.models.loading import load_transformer

TEMPLATES = {"abstraction": "a {subject} in the style of {}", "relationship": "a {subject} {} a {object}"}


def noise_lora(folder: Path, size: float) -> dict:
    """A LoRA on the image's queries, of random numbers as large as `size`."""
    shape = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    width, draw = shape["num_attention_heads"] * shape["attention_head_dim"], torch.Generator().manual_seed(0)
    return {
        f"transformer_blocks.{block}.attn.to_q": (
            torch.randn(2, width, generator=draw),
            size * torch.randn(width, 2, generator=draw),
            2.0,
        )
        for block in range(shape["num_layers"])
    }


@pytest.mark.parametrize(("kind", "phrase"), [("abstraction", "noto"), ("relationship", "next to")])
def test_a_style_and_a_relation_are_measured(demo_folder: Path, kind: str, phrase: str):
    """The base shows most of them, a LoRA that breaks the model none, and its pictures have moved."""
    source = fp32_source(demo_folder)
    parts = dataclasses.replace(demo_parts(demo_folder), transformer=load_transformer(source, "cpu"))
    concept = Concept(phrase, kind, TEMPLATES[kind], irrelevant=("owl",), preserve=("an owl",))
    seen: list[tuple[str, int, int]] = []
    score = measure_erasure(
        parts,
        load_classifier(demo_folder),
        concept,
        noise_lora(demo_folder, 30.0),
        images=4,
        images_per_other=0,
        progress=lambda *step: seen.append(step),
    )
    assert score.acc_e.images == 4 and score.acc_e.before >= 0.5 and score.acc_e.after <= 0.25
    assert score.acc_g.images == 0 and not score.attacks
    assert set(score.parts) == (
        {"nouns in it", "styles"} if kind == "abstraction" else {"both nouns", "above", "below"}
    )
    assert score.acc_ir.before > score.acc_ir.after
    assert score.drift.images >= 4 and score.drift.perceptual > 0.05 and score.drift.psnr < 20
    assert seen[-1][1] == seen[-1][2] and {moment for moment, _, _ in seen} == {"before", "after"}


def test_attention_deletion_touches_only_prompts_that_hold_the_phrase(demo_folder: Path):
    concept = Concept("penguin", irrelevant=("owl",), preserve=("an owl",))
    base: dict = {}
    score = measure_deletion(
        demo_parts(demo_folder),
        load_classifier(demo_folder),
        concept,
        images=2,
        images_per_other=0,
        images_per_attack=1,
        base=base,
    )
    assert score.acc_e.before >= 0.5 and len(base) >= 2 + 2 + 5
    for name in ("misspelling", "prefix", "suffix"):  # the phrase is not there
        assert score.attacks[name].before == score.attacks[name].after
    assert score.acc_g.before == score.acc_g.after
