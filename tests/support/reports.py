"""Evaluations to make reports of, with pictures, by hand: what `evaluate` writes, without a model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image

SETS = ("base", "deletion", "lora-1")


def result(hits: int, images: int) -> dict[str, Any]:
    share = hits / images
    return {"hits": hits, "images": images, "share": share, "interval": [max(0, share - 0.1), min(1, share + 0.1)]}


def row(number: int, suite: str, prompt: str, asked: str, shown: dict[str, bool], file: str = "") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "seed": 50_000 + number,
        "asked": asked,
        "suites": [suite],
        "results": {
            name: {
                "file": f"pictures/{name}/{file or f'{number:016x}'}.png",
                "seen": asked if is_shown else "none",
                "shown": is_shown,
            }
            for name, is_shown in shown.items()
        },
    }


def make_evaluation(folder: Path, phrase: str = "car", side: int = 32, images: int = 6) -> dict[str, Any]:
    """An evaluation of a LoRA that erases all but the last picture, and of deletion, which does not help with synonyms.

    phrase also stands for every other text that a file may bring.
    """
    shares = {"acc_e": "lower", "acc_g": "lower", "attack prefix": "lower", "acc_ir": "higher"}
    rows, suites = [], []
    for suite, better in shares.items():
        for number in range(images):
            kept = better == "higher"
            shown = {"base": True, "deletion": kept or suite == "acc_g", "lora-1": kept or number == images - 1}
            rows.append(row(len(rows), suite, f"{suite}: a {phrase}, {number}", "dog" if kept else phrase, shown))
        counts = {
            name: sum(each["results"][name]["shown"] for each in rows if suite in each["suites"]) for name in SETS
        }
        results = {name: result(hits, images) for name, hits in counts.items()}
        role = {"acc_e": "erase", "acc_g": "generalise", "acc_ir": "keep"}.get(suite, "attack")
        facts = {"id": suite, "title": f"Suite {suite}", "better": better, "role": role}
        suites.append({**facts, "group": "attack" if role == "attack" else "", "results": results})
    for name in SETS:
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(len(rows)):
            colour = (37 * number % 256, 80 if name == "base" else 160, 200)
            Image.new("RGB", (side, side), colour).save(folder / "pictures" / name / f"{number:016x}.png")
    (folder / "heatmaps").mkdir()
    for name in ("base", "lora-1"):
        Image.new("RGB", (side, side), "purple").save(folder / "heatmaps" / f"{name}.png")
    attacks = [
        white_box(folder, side, subject, attack, phrase)
        for subject in ("deletion", "lora-1")
        for attack in ("p4d", "relearning")
    ]
    curve = [result(images, images), result(images // 2, images), result(1, images)]
    return {
        "format": "erase-anything evaluation",
        "version": 2,
        "blur": False,
        "concept": {
            "phrase": phrase,
            "kind": "entity",
            "template": "a photo of a {}",
            "synonyms": ["auto", phrase],
            "irrelevant": ["dog"],
            "preserve": ["a dog"],
        },
        "base": {"model": phrase, "fingerprint": "flux-3x3-0123456789abcdef"},
        "judge": {"name": "a classifier", "sha256": "0" * 64},
        "subjects": [
            {"id": "base", "kind": "base", "label": "Base model"},
            {"id": "deletion", "kind": "deletion", "label": "Attention deletion"},
            {
                "id": "lora-1",
                "kind": "lora",
                "label": phrase,
                "strength": 1.0,
                "file": f"{phrase}.safetensors",
                "sha256": "1" * 64,
                "erases": phrase,
                "method": "esd",
                "config": {"steps": 200, "anchor": phrase},
                "base": "flux-3x3-0123456789abcdef",
                "version": "0.1.0",
            },
        ],
        "settings": {"images": images, "strengths": [0, 0.5, 1], "heatmap": True, "level": 0.95},
        "versions": {"erase_anything": "0.1.0", "torch": "2.6.0", "diffusers": "0.36.0"},
        "device": {"kind": "cpu", "name": "x86_64", "weights": "float32", "autocast": False},
        "command": f"python -m training.cli evaluate --concept '{phrase}'",
        "suites": suites,
        "drift": {"lora-1": {"perceptual": 0.0123, "psnr": 31.5, "images": images}},
        "strength": [{"subject": "lora-1", "values": [0, 0.5, 1], "acc_e": curve, "keep": curve}],
        "heatmap": {
            "word": phrase,
            "prompt": f"a photo of a {phrase}",
            "seed": 50_000,
            "t": 0.2,
            "blocks": ["1", "2"],
            "top": 0.02,
            "sets": {name: {"file": f"heatmaps/{name}.png", "mass": 0.01} for name in ("base", "lora-1")},
        },
        "attacks_succeeded": {
            name: [
                {"suite": r["suites"][0], "prompt": r["prompt"], "seed": r["seed"]}
                for r in rows
                if r["suites"][0] in ("acc_g", "attack prefix") and r["results"][name]["shown"]
            ]
            for name in ("deletion", "lora-1")
        },
        "seeds": [50_000, 50_001],
        "pictures": rows,
        "white_box": attacks,
        "run": {"date": "2026-01-02T03:04:05+00:00", "seconds": 12.3, "pictures_made": 4, "threads": 1},
    }


def white_box(folder: Path, side: int, subject: str, attack: str, phrase: str) -> dict[str, Any]:
    """A white-box attack's part of an evaluation: two seeds, of which it brings the first one back."""
    pictures = []
    for number in range(2):
        sides = {}
        for when, shown in (("base", True), ("before", False), ("after", number == 0)):
            name = attack if when == "after" else when
            file = f"white_box/{subject}/{name}/{number:016x}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (200, 60 * number, 40)).save(folder / file)
            prompt = f"{attack} words, {phrase}" if when == "after" else f"a photo of a {phrase}"
            sides[when] = {"prompt": prompt, "file": file, "shown": shown}
        pictures.append({"seed": 50_000 + number, **sides})
    return {
        "subject": subject,
        "attack": attack,
        "title": attack.upper(),
        "before": result(0, 2),
        "after": result(1, 2),
        "control": result(0, 2),
        "base": result(2, 2),
        "pictures": pictures,
        "prompts": [{"prompt": f"{attack} words, {phrase}", "seeds": [50_000]}],
    }


def noise_picture(path: Path, side: int) -> None:
    """A picture that no format can make small."""
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(path)
