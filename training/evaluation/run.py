"""Pictures, verdicts and shares of the base model, attention deletion and LoRA files on one concept, in a folder: a run
that may be killed at any time and, run again, ends with the same evaluation.json.

    pictures/<set>/<name>.png    every picture as it was made; the sets: base, deletion, lora-1, lora-1@0.5, …
    heatmaps/<set>.png           where the concept's word points in one of the base's pictures
    request.json                 what was asked for; a folder holds one evaluation
    white_box/<set>/…            what white-box attacks have found so far, and the pictures that they were measured on
    evaluation.json              the result, written last
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..concepts import occurrences
from ..errors import ConfigError
from ..lora.adapter import load_adapter, remove_adapter, set_adapter_scale
from ..lora.format import read_lora, read_metadata
from ..models.loading import FluxParts, load_parts
from .cases import ACC_E, ACC_IR, ACC_IR_SEEN, Case, Key, in_suite, keys_of, untouched
from .drift import drift_of
from .facts import Tools, facts_of
from .fidelity import clip_scores, distances, features_of, mean_score
from .heatmap import WordHeatmaps
from .judges import unrelated_words
from .pictures import PictureFolder, write_whole
from .prompt_files import captions
from .record import Record
from .render import render
from .result import VERSION
from .spec import BASE, EvaluationSpec, Subject, direct_cases, ids_of
from .whitebox.attack import parts_of, run_attacks
from .whitebox.scene import Erased, Scene

_CHUNK = 64  # pictures whose features are computed at once

Progress = Callable[[str, int, int], None]  # (what, Euler steps done, in all)


def evaluate(
    spec: EvaluationSpec, folder: Path, device: str = "auto", progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Makes what `folder` lacks of the evaluation, writes evaluation.json and returns its content.

    Equal specs give equal results but for what is under "run".

    Raises:
        ConfigError: Where the folder holds another evaluation.
        ErasureError: Where the concept cannot be measured, a detector or its weights are missing, a LoRA or a file of
            prompts does not fit or a file cannot be written.
    """
    began = time.monotonic()
    spec.validate()
    tools = Tools(spec, device)
    metadata = {s.lora: read_metadata(s.lora) for s in spec.subjects if s.lora}
    parts = load_parts(spec.source, device)
    facts = facts_of(spec, parts, metadata, tools)
    _claim(folder, facts)
    work = _Work(spec, parts, tools, folder, progress)
    work.run()
    result = {
        **facts,
        **work.result(),
        "run": {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            "pictures_made": work.made,
            "threads": torch.get_num_threads(),
            **({"attack_seconds": work.attack_seconds} if spec.white_box else {}),
        },
    }
    write_whole(folder / "evaluation.json", _json(result))
    return result


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Marks the folder as this evaluation's; ConfigError if it is another's, whose pictures would be mixed in."""
    file = folder / "request.json"
    try:
        known = json.loads(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The folder {folder.name} cannot be read: choose another folder.") from error
    if known is None:
        write_whole(file, _json(facts))
    # what version 1 has begun is ended as of this version: its pictures are the same
    elif not isinstance(known, dict) or {**known, "version": VERSION} != json.loads(_json(facts)):
        raise ConfigError(
            f"{folder.name} holds an evaluation of something else, or with other settings or versions: choose another "
            "folder."
        )


class _Work:
    """One evaluation under way: renders every set of pictures, lets the judges look at it, and adds up."""

    def __init__(self, spec: EvaluationSpec, parts: FluxParts, tools: Tools, folder: Path, progress: Progress) -> None:
        self.spec, self.parts, self.tools = spec, parts, tools
        self.folder, self.progress = folder, progress
        self.ids, self.cases = ids_of(spec), tools.cases
        self.record = Record(folder / "pictures", tools.judges, self.cases, self.ids)
        self.keys = keys_of(self.cases)
        self.erased, self.preserved = in_suite(self.cases, ACC_E), in_suite(self.cases, ACC_IR, ACC_IR_SEEN)
        self.untouched = untouched(self.cases, spec.concept)
        self.drift: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, torch.Tensor] = {}  # set → features of the captions' pictures
        self.scores: dict[str, list[float]] = {}  # set → their CLIP scores
        self.curves: list[dict[str, Any]] = []
        self.heatmap: dict[str, Any] | None = None
        self.white_box: list[dict[str, Any]] = []
        self.attack_seconds: dict[str, float] = {}
        self.made = self.done = 0

    def run(self) -> None:
        """Renders and judges every set."""
        spec, parts = self.spec, self.parts
        named = [key for key in self.keys if occurrences(key[0], spec.concept.phrase)]
        curve = keys_of(in_suite(self.cases, ACC_E, ACC_IR, ACC_IR_SEEN))
        self.total = self._batches(self.keys)
        for subject in spec.subjects:
            self.total += self._batches(named if subject.lora is None else self.keys)
            if subject.lora:
                self.total += len(self._between(subject)) * self._batches(curve)
            self.total += parts_of(spec.white_box)
        self._set(BASE, self.keys)
        heatmaps = self._heatmaps()
        for name, subject in zip(self.ids[1:], spec.subjects, strict=True):
            if subject.lora is None:  # without the phrase nothing is deleted
                self._set(name, named, spec.concept.phrase, dict.fromkeys(self.keys, BASE))
                self._attack(name, spec.concept.phrase)
                continue
            load_adapter(parts.transformer, read_lora(subject.lora)[0])
            set_adapter_scale(parts.transformer, subject.strength)
            self._set(name, self.keys)
            if heatmaps:
                heatmaps.record(name)
            self._curve(name, subject, curve)
            set_adapter_scale(parts.transformer, subject.strength)
            self._attack(name)
            remove_adapter(parts.transformer)
        if heatmaps:
            self.heatmap = heatmaps.save(self.folder)

    def result(self) -> dict[str, Any]:
        """What was found, as JSON takes it."""
        return {
            "suites": self.record.suites(),
            "detectors": self.record.detectors(),
            "drift": self.drift,
            "strength": self.curves,
            "heatmap": self.heatmap,
            "attacks_succeeded": self.record.attacks_succeeded(),
            "fidelity": self._fidelity(),
            "seeds": sorted({seed for _, seed in self.keys}),
            "pictures": self.record.rows(),
            **({"white_box": self.white_box} if self.spec.white_box else {}),
        }

    # --- a set of pictures -----------------------------------------------------------------------------------------

    def _batches(self, keys: Sequence[Key]) -> int:
        return -(-len(keys) // self.spec.batch_size)

    def _set(self, name: str, keys: Sequence[Key], deleted: str = "", elsewhere: dict[Key, str] | None = None) -> None:
        """Renders what a set lacks, and judges the whole of it."""
        pictures, size = PictureFolder(self.folder / "pictures" / name), self.spec.batch_size
        steps = self.parts.variant.default_steps
        for start in range(0, len(keys), size):
            batch = keys[start : start + size]
            # whole batches or nothing: a picture depends in its last bits on those beside it
            if not all(pictures.intact(key) for key in batch):
                made: dict[Key, torch.Tensor] = {}

                def step(done: int, total: int) -> None:
                    self.progress(name, self.done * steps + done, self.total * steps)

                render(self.parts, batch, made, len(batch), step, deleted)
                pictures.update(made)
                self.made += len(made)
            self.done += 1
            self.progress(name, self.done * steps, self.total * steps)
        self.record.places[name] = {**(elsewhere or {}), **dict.fromkeys(keys, name)}
        self.record.detect(name)
        if name in self.ids:
            self._compare(name)

    def _compare(self, name: str) -> None:
        """A set's drift from the base's, and features and CLIP scores of its pictures of captions."""
        if name != BASE and self.untouched:
            stacks = (self.record.pictures(each, self.untouched) for each in (BASE, name))
            self.drift[name] = dataclasses.asdict(drift_of(self.tools.perception, *stacks))
        features, clip = self.tools.features, self.tools.clip
        keys: list[Key] = [(prompt.text, prompt.seed) for prompt in captions(self.tools.files)]
        if not keys or not (features or clip):
            return
        vectors, scores = [], []
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            pictures = self.record.pictures(name, chunk)
            if features:
                vectors.append(features_of(features, pictures))
            if clip:
                scores += clip_scores(clip, pictures, [prompt for prompt, _ in chunk])
        if features:
            self.vectors[name] = torch.cat(vectors)
        if clip:
            self.scores[name] = scores

    def _fidelity(self) -> dict[str, Any]:
        """Distances and CLIP scores over the captions' pictures; {} where nothing of it was asked for."""
        found: dict[str, Any] = {}
        if self.vectors:
            reference = self.tools.reference.features if self.tools.reference else self.vectors[BASE]
            compared = [name for name in self.ids if self.tools.reference or name != BASE]
            found["distances"] = {name: distances(self.vectors[name], reference, self.spec.seed) for name in compared}
        if self.scores and self.tools.clip:
            found["clip"] = self.tools.clip.name
            found["clip_score"] = {name: mean_score(scores) for name, scores in self.scores.items()}
        return found

    # --- heatmaps, curves, attacks ---------------------------------------------------------------------------------

    def _heatmaps(self) -> WordHeatmaps | None:
        """Of the base's first picture in which the concept is seen; None where they are not asked for."""
        if not self.spec.heatmap or all(subject.lora is None for subject in self.spec.subjects):
            return None
        case = next((case for case in self.erased if self.record.verdict(BASE, case).shown), self.erased[0])
        (picture,) = self.record.pictures(BASE, [case.key])
        heatmaps = WordHeatmaps(self.parts, self.spec.concept.phrase, case.key, picture.mul(255).round().byte())
        heatmaps.record(BASE)
        return heatmaps

    def _between(self, subject: Subject) -> list[float]:
        """The curve's strengths that need pictures of their own."""
        return [s for s in dict.fromkeys(self.spec.strengths) if s not in (0, subject.strength)]

    def _curve(self, name: str, subject: Subject, keys: Sequence[Key]) -> None:
        if not self.spec.strengths:
            return
        sets = {0.0: BASE, subject.strength: name}
        for strength in self._between(subject):
            set_adapter_scale(self.parts.transformer, strength)
            sets[strength] = f"{name}@{strength:g}"
            self._set(sets[strength], keys)
        values = sorted(dict.fromkeys(self.spec.strengths))

        def tallies(cases: Sequence[Case]) -> list[dict[str, Any]] | None:
            return [self.record.tally(sets[value], cases) for value in values] if cases else None

        self.curves.append(
            {"subject": name, "values": values, "acc_e": tallies(self.erased), "keep": tallies(self.preserved)}
        )

    def _attack(self, name: str, deleted: str = "") -> None:
        """The white-box attacks on the transformer as it is."""
        spec, settings = self.spec, self.spec.white_box
        if settings is None:
            return
        steps = self.parts.variant.default_steps

        def step(what: str) -> None:
            self.done += 1
            self.progress(f"{name}: {what}", self.done * steps, self.total * steps)

        judge = self.tools.judges[0]
        scene = Scene(
            Erased(self.parts, deleted),
            spec.concept.phrase,
            direct_cases(spec, judge, Scene.needed(settings)),
            judge,
            settings,
            self.folder / "white_box" / name,
            unrelated_words(spec.concept, judge),
            step,
        )
        for found in run_attacks(scene):
            self.attack_seconds[f"{name} {found['attack']}"] = found.pop("seconds")
            for sides in found["pictures"]:
                for side in ("base", "before", "after"):
                    sides[side] = {**sides[side], "file": f"white_box/{name}/{sides[side]['file']}"}
            self.white_box.append({"subject": name, **found})
