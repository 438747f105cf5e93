"""The commands that train and judge concepts × seeds × variants: `erasure` compares methods, `ablation` settings,
`precision` in how many bits the base is while it is trained on."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.environment import say

from ..page import conclude
from ..summaries import EARLY, UNNAMED
from ..workplace import Workplace, course, seeds_of
from .attention import faded

# Settings of each method beside the pack's defaults; None: attention deletion, which trains nothing.
METHODS: dict[str, dict[str, Any] | None] = {
    "eraseanything": {},
    "multi_objective": {"bilevel": False},
    "esd": {"method": "esd"},
    "concept_ablation": {"method": "concept_ablation"},
    "gem": {"method": "gem"},
    "attention_deletion": None,
}

TERMS = ("esd", "attn", "lora")
OFF = {"rsc": 0.01}  # the term that is off by default: the weight it is measured with
AT_FIRST = {"steps": int(EARLY.split()[0])}
RSC = {f"weight_{term}": weight for term, weight in OFF.items()}
KEEPING = (10, 100)  # as one sum the terms need weights that two levels, each with an optimiser of its own, do without

# One factor at a time around the defaults. "irrelevant" is no setting: it is how many irrelevant words a concept has.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    # the paper's Table 4: also esd + attn is "without lora", esd + lora "without attn", all four "with rsc"
    "esd + rsc": {"weight_attn": 0.0, "weight_lora": 0.0, **RSC},
    "attn + rsc": {"weight_esd": 0.0, "weight_lora": 0.0, **RSC},
    **{f"without {term}": {f"weight_{term}": 0.0} for term in TERMS},
    "with rsc": RSC,
    "multi-objective": {"bilevel": False},
    **{f"multi-objective with weight_lora {w}": {"bilevel": False, "weight_lora": float(w)} for w in KEEPING},
    # after all the steps nearly nothing is left of a concept, with a term or without: here it shows who is on the way
    EARLY: AT_FIRST,
    **{f"{EARLY} without {term}": {**AT_FIRST, f"weight_{term}": 0.0} for term in TERMS},
    f"{EARLY} with rsc": {**AT_FIRST, **RSC},
    f"{EARLY} multi-objective": {**AT_FIRST, "bilevel": False},
    **{
        f"{EARLY} multi-objective with weight_lora {w}": {**AT_FIRST, "bilevel": False, "weight_lora": float(w)}
        for w in KEEPING
    },
    **{
        f"targets {name}": {"targets": name}
        for name in ("text_qk", "text_qkv", "text_kv", "both_qk", "all", "single_qk", "every_qk")
    },
    **{f"rank {rank}": {"rank": rank, "alpha": float(rank)} for rank in (2, 4, 8, 16, 32)},
    **{f"eta {eta:g}": {"eta": eta} for eta in (0.0, 0.5, 1.0, 2.0, 4.0)},
    **{f"K {count}": {"irrelevant": count} for count in (1, 3, 6, 12)},
    "first half of the blocks": {"blocks": "first"},
    "second half of the blocks": {"blocks": "second"},
    "attention of the first block": {"capture_blocks": "first"},
    "attention of the last block": {"capture_blocks": "last"},
    **{f"refresh every {steps}": {"refresh_every": steps} for steps in (20, 50, 100)},
    **{f"{count} preservation prompts": {"preserve_prompts": count} for count in (0, 8, 24, 64)},
    **{f"weight_attn {weight:g}": {"weight_attn": weight} for weight in (2.0, 4.0)},
    **{f"lr_preserve {rate:g}": {"lr_preserve": rate} for rate in (2e-4, 4e-4, 1.4e-3)},
    **{f"lr_erase {rate:g}": {"lr_erase": rate} for rate in (4e-4, 6e-4, 1.6e-3)},
    **{f"t_min {t:g}": {"t_min": t} for t in (0.0, 0.25, 0.5, 0.75)},
    **{
        f"batches of {erase} and {keep}": {"batch_erase": erase, "batch_preserve": keep}
        for erase, keep in ((1, 2), (2, 4), (4, 8))
    },
    "random strength": {"random_strength": True},
    "erase the phrase alone": {"erase_synonyms": False},
    "no shuffled prompts": {"shuffle": False},
}

# The base's weights in training. "precision" is no setting either: it is the source's.
PRECISIONS: dict[str, dict[str, Any]] = {name: {"precision": name} for name in ("bf16", "fp8", "int8", "nf4")}


def resolved(overrides: dict[str, Any], double: int) -> dict[str, Any]:
    """`overrides` with halves and ends of the model's `double` double blocks written as indices."""
    half = (double + 1) // 2
    blocks = {"first": list(range(half)), "second": list(range(half, double))}
    ends = {"first": [0], "last": [double - 1]}
    names = {"blocks": blocks, "capture_blocks": ends}
    return {k: names[k][v] if k in names and isinstance(v, str) else v for k, v in overrides.items()}


def chosen(names: str, known: dict[str, Any]) -> list[str]:
    """Names out of a comma-separated list, all of `known` where it is empty; SystemExit for one that is not known."""
    asked = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise SystemExit(f"Unknown: {', '.join(unknown)}. Choose from: {', '.join(known)}.")
    return asked


def _fill(
    place: Workplace,
    column: str,
    variants: dict[str, dict[str, Any] | None],
    look: Callable[[str, int, Path], dict[str, Any]] | None = None,
) -> None:
    """Makes the rows that are missing; the variants of one concept and seed one after the other, on one bank.

    look: further fields of a row, from a concept, a seed and the LoRA's file.
    """
    args, double = place.args, place.source.transformer_config()["num_layers"]
    missing = 0
    for phrase in args.concepts.split(","):
        for seed in seeds_of(args.seeds):
            plans, planned = {}, set()
            for name, overrides in variants.items():
                overrides = None if overrides is None else resolved(overrides, double)
                concept = place.concept(phrase, seed, (overrides or {}).pop("irrelevant", 0))
                precision = (overrides or {}).pop("precision", "")
                config = None if overrides is None else place.config(overrides, seed)
                more = {"precision": precision} if precision else {}
                key = place.key(phrase, seed, name if config is None else course(config), concept, **more)
                # what is the default now, or the same by another name, is no variant
                same = (name if config is None else config.for_kind(concept.kind), concept, precision)
                if same not in planned:
                    planned.add(same)
                    plans[name] = (key, concept, config, precision)
            if all(place.done(key) for key, *_ in plans.values()):
                continue
            with place.group(phrase, seed) as folder:
                if folder is None:
                    missing += 1
                    continue
                for name, (key, concept, config, precision) in plans.items():
                    if not place.done(key):
                        slot = {column: name, "concept": phrase, "seed": seed}
                        own = look and partial(look, phrase, seed)
                        show(place.measured(slot, key, folder, concept, config, precision=precision, more=own), name)
    if missing:
        say(f"{missing} concepts and seeds were left to other processes: run this again when they have ended")


def show(row: dict[str, Any], name: str) -> None:
    """One line of progress."""
    shares = (row[share] for share in ("acc_e", "acc_g", "acc_ir", "acc_ir_seen"))
    cells = "  ".join(f"{s['before']:.3f}→{s['after']:.3f}" if s["images"] else "      –      " for s in shares)
    worst = max((share["after"] for share in row["attacks"].values()), default=0)
    took = f"{row.get('seconds', 0):6.1f} s + {row['measure_seconds']:.0f} s"
    print(f"{name:28s} {row['concept']:10s} {row['seed']:2d}  {cells}  attacks ≤ {worst:.2f}  {took}", flush=True)


def erasure(args: argparse.Namespace) -> None:
    """Acc_e, Acc_g, attacks, Acc_ir and drift for concepts × seeds × methods, attention deletion among them."""
    place = Workplace(args, "erasure")
    _fill(place, "method", {name: METHODS[name] for name in chosen(args.methods, METHODS)})
    for phrase in args.concepts.split(","):
        if place.kind(phrase) == "abstraction":
            unnamed(place, phrase)
    conclude(place.rows, "erasure")


def unnamed(place: Workplace, phrase: str) -> None:
    """Keeps a row for a style that says how often the base paints it by itself: its Acc_e "after" is of the same nouns
    and seeds with the style left out of the prompt."""
    from training.concepts import TEMPLATES, Concept
    from training.evaluation import concept_cases, keys_of, render, score
    from training.evaluation.cases import ACC_E, in_suite

    concept, plain = place.concept(phrase, 0), Concept(phrase, template=TEMPLATES["entity"])
    key = place.key(phrase, 0, UNNAMED, concept)
    if place.done(key):
        return
    cases = concept_cases(concept, place.classifier, **place.counts)
    noun_of = {case.key: case.expected.nouns[0] for case in cases if case.expected.nouns}
    styled = in_suite(cases, ACC_E)
    bare = [dataclasses.replace(case, prompt=plain.prompt(noun_of[case.key])) for case in styled]
    render(place.parts(), keys_of([*styled, *bare]), place.base)
    after = {a.key: place.base[b.key] for a, b in zip(styled, bare, strict=True)}
    found = score(place.classifier, concept, styled, place.base, after)
    slot = {"method": UNNAMED, "concept": phrase, "seed": 0}
    place.keep(key, slot, {"kind": concept.kind, "counts": place.counts, **found.to_dict()})


def ablation(args: argparse.Namespace) -> None:
    """The same measures, and what is left of a noun's attention, with one setting changed at a time around the
    defaults."""
    place = Workplace(args, "ablation")
    names = chosen(args.variants, VARIANTS)
    names = ["defaults", *(name for name in names if name != "defaults")]

    drawn = importlib.util.find_spec("resvg_py") is not None
    if not drawn:
        say("attention: not measured (its scenes need the package resvg_py)")

    def attended(phrase: str, seed: int, lora: Path) -> dict[str, Any]:
        if not drawn or place.kind(phrase) != "entity":
            return {}
        found = faded(place, phrase, seed, lora)
        return {"attention": {"before": 1.0, "after": found["left"], "images": found["scenes"]}}

    _fill(place, "variant", {name: VARIANTS[name] for name in names}, attended)
    conclude(place.rows, "ablation")


def precision(args: argparse.Namespace) -> None:
    """The same measures of LoRAs trained on the base in bf16, fp8, int8 and nf4."""
    from training.models.source import PACKAGES

    place, names = Workplace(args, "precision"), []
    for name in chosen(args.precisions, PRECISIONS):
        if (package := PACKAGES.get(name)) and not importlib.util.find_spec(package):
            say(f"{name}: not measured (needs the package {package})")
        else:
            names.append(name)
    _fill(place, "precision", {name: PRECISIONS[name] for name in names})
    conclude(place.rows, "precision")
