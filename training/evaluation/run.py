"""Pictures, verdicts and shares of the base model, attention deletion and LoRA files on one concept, in a folder: a run
that may be killed at any time and, run again, ends with the same evaluation.json.

    pictures/<set>/<name>.png    every picture as it was made; the sets: base, deletion, lora-1, lora-1@0.5, …
    heatmaps/<set>.png           where the concept's word points in one of the base's pictures
    request.json                 what was asked for; a folder holds one evaluation
    white_box/<set>/…            what white-box attacks have found so far, and the pictures that they were measured on
    evaluation.json              the result (version 1), written last
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from .. import __version__
from ..concepts import occurrences
from ..errors import ConfigError
from ..lora.adapter import load_adapter, remove_adapter, set_adapter_scale
from ..lora.files import concept_of, mapping_of, sha256_of
from ..lora.format import KEY_BASE, KEY_CONFIG, KEY_METHOD, KEY_VERSION, read_lora, read_metadata
from ..models.device import pick_device
from ..models.loading import FluxParts, load_parts
from .detectors import Finding, count
from .erasure import drift_of, paint
from .fidelity import clip_scores, distances, features_of, make_features, mean_score, read_reference
from .glance import Glance
from .intervals import bootstrap_mean, wilson
from .judges import ClipJudge, Judge, ModelJudge, Opinion, facts_of, make_judge, unrelated_words, word_of
from .order import BASE, DELETION, Order, Subject, command_of, ids_of, model_of
from .pictures import Key, PictureFolder, picture_name, write_whole
from .probes import FIRST_SEED, Content, Probe
from .result import FORMAT, VERSION
from .wanted import (
    asked,
    captions,
    concept_probes,
    is_attempt,
    lower_is_better,
    other_words,
    read_files,
    should_stay,
    suites_of,
    title_of,
    wanted_probes,
)
from .whitebox.attack import parts_of, run_attacks
from .whitebox.scene import Erased, Scene

_CHUNK = 64  # pictures judged at once

Progress = Callable[[str, int, int], None]  # (what, Euler steps done, in all)


def evaluate(
    order: Order, folder: Path, device: str = "auto", progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Makes what `folder` lacks of the evaluation, writes evaluation.json and returns its content.

    Equal orders give equal results but for what is under "run". Raises ConfigError where the folder holds another
    evaluation, and ErasureError where the concept cannot be measured, a detector or its weights are missing, a LoRA or
    a file of prompts does not fit or a file cannot be written.
    """
    began = time.monotonic()
    order.validate()
    tools = _Tools(order, device)
    metadata = {s.lora: read_metadata(s.lora) for s in order.subjects if s.lora}
    parts = load_parts(order.source, device)
    head = _head(order, parts, metadata, tools)
    _claim(folder, head)
    work = _Work(order, parts, tools, folder, progress)
    work.run()
    result = {
        **head,
        **work.result(),
        "run": {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            "pictures_made": work.made,
            "threads": torch.get_num_threads(),
            **({"attack_seconds": work.attack_seconds} if order.white_box else {}),
        },
    }
    write_whole(folder / "evaluation.json", _json(result))
    return result


class _Tools:
    """What an evaluation measures with, all of it looked for before the first picture is made."""

    def __init__(self, order: Order, device: str) -> None:
        model = Path(order.source.folder) if order.source.folder else None
        where = str(pick_device(device))
        self.files = read_files(order)

        def judge(choice: str, words: Sequence[str]) -> Judge:
            return make_judge(choice, order.concept, model, words, order.labels, where)

        first, *more = order.detectors
        self.judges = [judge(first, other_words(order))]
        self.wanted = wanted_probes(order, self.judges[0], self.files)
        words = list(dict.fromkeys(word_of(probe.content) for probe in self.wanted))
        self.judges += [judge(choice, words) for choice in more]
        self.features = make_features(order.distance, model, where) if order.distance else None
        if self.features and not captions(self.files):
            raise ConfigError("A distance compares pictures of captions: give a file with a column caption.")
        self.reference = read_reference(order.reference, self.features) if order.reference else None
        own = next((judge for judge in self.judges if isinstance(judge, ModelJudge)), None)
        self.classifier = own.classifier if own else None  # for the perceptual distance
        clips = [judge.detector.clip for judge in self.judges if isinstance(judge, ClipJudge)]
        self.clip = next(iter(clips), self.features.clip if self.features else None)


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def _claim(folder: Path, head: dict[str, Any]) -> None:
    """Marks the folder as this evaluation's; ConfigError if it is another's, whose pictures would be mixed in."""
    file, data = folder / "request.json", _json(head)
    try:
        known = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise ConfigError(f"The folder {folder.name} cannot be read ({error.strerror}).") from error
    if known is None:
        write_whole(file, data)
    elif known != data:
        raise ConfigError(
            f"{folder.name} holds an evaluation of something else, or with other settings or versions: choose another "
            "folder."
        )


def _head(order: Order, parts: FluxParts, metadata: dict[Path, dict[str, str]], tools: _Tools) -> dict[str, Any]:
    """Everything that is known before the first picture and decides all of them; no path but file names."""
    device = next(parts.transformer.parameters())
    fingerprint, variant = order.source.fingerprint(), parts.variant
    subjects: list[dict[str, Any]] = [{"id": BASE, "kind": BASE, "label": "Base model"}]
    for name, subject in zip(ids_of(order)[1:], order.subjects, strict=True):
        if subject.lora is None:
            subjects.append({"id": name, "kind": DELETION, "label": "Attention deletion"})
            continue
        data = metadata[subject.lora]
        subjects.append(
            {
                "id": name,
                "kind": "lora",
                "label": subject.lora.stem,
                "strength": subject.strength,
                "file": subject.lora.name,
                "sha256": sha256_of(subject.lora),
                "erases": concept_of(data),
                "method": data.get(KEY_METHOD),
                "config": mapping_of(data.get(KEY_CONFIG)),
                "base": data.get(KEY_BASE),
                "version": data.get(KEY_VERSION),
            }
        )
    features, reference = tools.features, tools.reference
    return {
        "format": FORMAT,
        "version": VERSION,
        "concept": order.concept.to_dict(),
        "blur": order.blur,
        "base": {"model": model_of(order.source), "fingerprint": fingerprint},
        "judge": facts_of(tools.judges[0]),
        "detectors": [facts_of(judge) for judge in tools.judges],
        "prompt_files": [file.facts() for file in tools.files],
        "subjects": subjects,
        "distance": features
        and {
            "features": features.name,
            "sha256": features.sha256,
            "is_fid": features.is_fid,
            "reference": reference.name if reference else "the base model's own pictures",
            "unreadable": reference.unreadable if reference else {},
        },
        "settings": {
            "images": order.images,
            "images_per_other": order.images_per_other,
            "images_per_attack": order.images_per_attack,
            "strengths": list(order.strengths),
            "heatmap": order.heatmap,
            "batch_size": order.batch_size,
            "resolution": variant.resolution,
            "steps": variant.default_steps,
            "guidance": variant.default_guidance,
            "first_seed": FIRST_SEED,
            "seed": order.seed,
            "level": 0.95,
            "suites": list(order.suites),
            "prompts_limit": order.prompts_limit,
            "labels": list(order.labels),
            **({"white_box": order.white_box.to_dict()} if order.white_box else {}),
        },
        "versions": {"erase_anything": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "device": {
            "kind": device.device.type,
            "name": torch.cuda.get_device_name() if device.device.type == "cuda" else platform.machine(),
            "weights": str(device.dtype).removeprefix("torch."),
            "autocast": parts.autocast,
        },
        "command": command_of(order),
    }


class _Work:
    """The pictures of one evaluation, and what its judges say of them."""

    def __init__(self, order: Order, parts: FluxParts, tools: _Tools, folder: Path, progress: Progress) -> None:
        self.order, self.parts, self.tools = order, parts, tools
        self.folder, self.progress = folder, progress
        self.wanted = tools.wanted
        self.keys = _keys(self.wanted)
        self.curve_keys = _keys(
            p for p in self.wanted if {"concept", "preserved unseen", "preserved seen"} & set(suites_of(p))
        )
        stays = [p for p in self.wanted if should_stay(p, tools.files)]
        self.untouched = [key for key in _keys(stays) if not occurrences(key[0], order.concept.phrase)]
        self.opinions: dict[str, list[dict[Key, Opinion]]] = {}  # set → of each judge
        self.places: dict[str, dict[Key, str]] = {}  # set → picture → the set that holds its file
        self.drift: dict[str, dict[str, Any]] = {}
        self.vectors: dict[str, torch.Tensor] = {}  # set → features of the captions' pictures
        self.scores: dict[str, list[float]] = {}  # set → their CLIP scores
        self.curves: list[dict[str, Any]] = []
        self.heatmap: dict[str, Any] | None = None
        self.white_box: list[dict[str, Any]] = []
        self.attack_seconds: dict[str, float] = {}
        self.made = self.done = 0
        self.ids = ids_of(order)

    def folder_of(self, name: str) -> PictureFolder:
        return PictureFolder(self.folder / "pictures" / name)

    # --- painting --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Paints and judges every set."""
        order, parts = self.order, self.parts
        touched = [key for key in self.keys if occurrences(key[0], order.concept.phrase)]
        self.total = self._batches(self.keys)
        for subject in order.subjects:
            self.total += self._batches(touched if subject.lora is None else self.keys)
            if subject.lora:
                self.total += len(self._between(subject)) * self._batches(self.curve_keys)
            self.total += parts_of(order.white_box)
        self._set(BASE, self.keys)
        glance = self._glance()
        for name, subject in zip(self.ids[1:], order.subjects, strict=True):
            if subject.lora is None:  # without the phrase nothing is deleted
                self._set(name, touched, order.concept.phrase, dict.fromkeys(self.keys, BASE))
                self._white_box(name, order.concept.phrase)
                continue
            load_adapter(parts.transformer, read_lora(subject.lora)[0])
            set_adapter_scale(parts.transformer, subject.strength)
            self._set(name, self.keys)
            if glance:
                glance.look(name)
            self._curve(name, subject)
            set_adapter_scale(parts.transformer, subject.strength)
            self._white_box(name)
            remove_adapter(parts.transformer)
        if glance:
            self.heatmap = glance.save(self.folder)

    def _batches(self, keys: Sequence[Key]) -> int:
        return -(-len(keys) // self.order.batch_size)

    def _set(self, name: str, keys: Sequence[Key], deleted: str = "", elsewhere: dict[Key, str] | None = None) -> None:
        """Paints what a set lacks, and judges the whole of it."""
        pictures, size = self.folder_of(name), self.order.batch_size
        steps = self.parts.variant.default_steps
        for start in range(0, len(keys), size):
            batch = keys[start : start + size]
            # whole batches or nothing: a picture depends in its last bits on those beside it
            if not all(pictures.intact(key) for key in batch):
                made: dict[Key, torch.Tensor] = {}

                def tell(done: int, total: int) -> None:
                    self.progress(name, self.done * steps + done, self.total * steps)

                paint(self.parts, [Probe("", *key, Content()) for key in batch], made, len(batch), tell, deleted)
                for key, picture in made.items():
                    pictures[key] = picture
                self.made += len(made)
            self.done += 1
            self.progress(name, self.done * steps, self.total * steps)
        self.places[name] = {**(elsewhere or {}), **dict.fromkeys(keys, name)}
        self._judge(name)

    def _pictures(self, name: str, keys: Sequence[Key]) -> torch.Tensor:
        """[n, 3, H, W] in 0..1."""
        places = self.places[name]
        return torch.stack([self.folder_of(places[key])[key] for key in keys]).float() / 255

    def _judge(self, name: str) -> None:
        keys = list(self.places[name])
        judges = self.tools.judges if name in self.ids else self.tools.judges[:1]  # a curve has the main figures alone
        self.opinions[name] = [{} for _ in judges]
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            for judge, said in zip(judges, self.opinions[name], strict=True):
                said |= dict(zip(chunk, judge.judge(self._pictures(name, chunk)), strict=True))
        if name in self.ids[1:] and self.untouched:
            stacks = (self._pictures(each, self.untouched) for each in (BASE, name))
            self.drift[name] = dataclasses.asdict(drift_of(self.tools.classifier, *stacks))
        keys = [tuple(prompt) for prompt in captions(self.tools.files)]
        if name in self.ids and keys and (self.tools.features or self.tools.clip):
            self._compare(name, keys)

    def _compare(self, name: str, keys: list[Key]) -> None:
        """Features and CLIP scores of a set's pictures of captions."""
        features, clip = self.tools.features, self.tools.clip
        vectors, scores = [], []
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            pictures = self._pictures(name, chunk)
            if features:
                vectors.append(features_of(features, pictures))
            if clip:
                scores += clip_scores(clip, pictures, [prompt for prompt, _ in chunk])
        if features:
            self.vectors[name] = torch.cat(vectors)
        if clip:
            self.scores[name] = scores

    def _glance(self) -> Glance | None:
        """A look at the base's first picture in which the concept is seen; None where that is not asked for."""
        asked = [probe for probe in self.wanted if probe.share == "acc_e"]
        if not self.order.heatmap or all(subject.lora is None for subject in self.order.subjects):
            return None
        probe = next((p for p in asked if self._shown(BASE, p)), asked[0])
        key = (probe.prompt, probe.seed)
        glance = Glance(self.parts, self.order.concept.phrase, key, self.folder_of(BASE)[key])
        glance.look(BASE)
        return glance

    def _between(self, subject: Subject) -> list[float]:
        """The curve's strengths that need pictures of their own."""
        return [s for s in dict.fromkeys(self.order.strengths) if s not in (0, subject.strength)]

    def _curve(self, name: str, subject: Subject) -> None:
        if not self.order.strengths:
            return
        own = {0.0: BASE, subject.strength: name}
        for strength in self._between(subject):
            set_adapter_scale(self.parts.transformer, strength)
            own[strength] = f"{name}@{strength:g}"
            self._set(own[strength], self.curve_keys)
        values = sorted(dict.fromkeys(self.order.strengths))
        concept = [p for p in self.wanted if "concept" in suites_of(p)]
        kept = [p for p in self.wanted if any(suite.startswith("preserved") for suite in suites_of(p))]
        self.curves.append(
            {
                "subject": name,
                "values": values,
                "concept": [self._count(own[s], concept) for s in values],
                "kept": [self._count(own[s], kept) for s in values] if kept else None,
            }
        )

    def _white_box(self, name: str, deleted: str = "") -> None:
        """The white-box attacks on the transformer as it is."""
        order, settings = self.order, self.order.white_box
        if settings is None:
            return
        steps = self.parts.variant.default_steps

        def tell(what: str) -> None:
            self.done += 1
            self.progress(f"{name}: {what}", self.done * steps, self.total * steps)

        judge = self.tools.judges[0]

        def shown(cases: Sequence[Probe], pictures: torch.Tensor) -> list[bool]:
            opinions = judge.judge(pictures)
            return [not found.error and found.shows(case.content) for case, found in zip(cases, opinions, strict=True)]

        cases = concept_probes(order, judge, Scene.needed(settings))
        scene = Scene(
            Erased(self.parts, deleted),
            order.concept.phrase,
            cases,
            shown,
            settings,
            self.folder / "white_box" / name,
            unrelated_words(order.concept, judge),
            tell,
        )
        for found in run_attacks(scene):
            self.attack_seconds[f"{name} {found['attack']}"] = found.pop("seconds")
            for sides in found["pictures"]:
                for side in ("base", "before", "after"):
                    sides[side] = {**sides[side], "file": f"white_box/{name}/{sides[side]['file']}"}
            self.white_box.append({"subject": name, **found})

    # --- results ---------------------------------------------------------------------------------------------------

    def _opinion(self, name: str, probe: Probe, judge: int = 0) -> Opinion:
        return self.opinions[name][judge][probe.prompt, probe.seed]

    def _shown(self, name: str, probe: Probe) -> bool:
        opinion = self._opinion(name, probe)
        return not opinion.error and opinion.shows(probe.content)

    def _count(self, name: str, counted: Sequence[Probe], judge: int = 0) -> dict[str, Any]:
        """{"hits", "images", "share", "interval", "failed"} of one set on some probes, more than none. Pictures that
        could not be judged are not among the images; where none could, the share is null."""
        opinions = [(self._opinion(name, probe, judge), probe.content) for probe in counted]
        judged = [(opinion, content) for opinion, content in opinions if not opinion.error]
        hits = sum(opinion.shows(content) for opinion, content in judged)
        return {**_share(hits, len(judged)), "failed": len(opinions) - len(judged)}

    def result(self) -> dict[str, Any]:
        """What was found, as JSON takes it."""
        found: dict[str, list[Probe]] = {}
        for probe in self.wanted:
            for suite in suites_of(probe):
                found.setdefault(suite, []).append(probe)
        rows = [self._row(probe) for probe in self.wanted]
        attacks = {
            name: [
                {"suite": suite, "prompt": row["prompt"], "seed": row["seed"]}
                for row in rows
                for suite in row["suites"]
                if (is_attempt(suite) or suite in self._attack_files()) and row["results"][name]["shown"]
            ]
            for name in self.ids[1:]
        }
        return {
            "suites": [
                {
                    "id": suite,
                    "title": title_of(suite, self.tools.files),
                    "better": "lower" if lower_is_better(suite) else "higher",
                    "results": {name: self._count(name, counted) for name in self.ids},
                }
                for suite, counted in found.items()
            ],
            "detectors": [self._told(number, found) for number in range(len(self.tools.judges))],
            "drift": self.drift,
            "strength": self.curves,
            "heatmap": self.heatmap,
            "attacks_succeeded": attacks,
            "fidelity": self._fidelity(),
            "seeds": sorted({seed for _, seed in self.keys}),
            "pictures": rows,
            **({"white_box": self.white_box} if self.order.white_box else {}),
        }

    def _attack_files(self) -> set[str]:
        return {file.id for file in self.tools.files if file.suite.kind == "attack"}

    def _told(self, number: int, suites: dict[str, list[Probe]]) -> dict[str, Any]:
        """A judge's facts, its own tables (of the first one only what the suites do not say), and what it could not
        judge."""
        judge = self.tools.judges[number]
        tables: list[dict[str, Any]] = []
        for suite, counted in suites.items():
            known = [probe for probe in counted if judge.knows(word_of(probe.content))]
            measures = []
            if number and known:
                per_image = {name: {"per_image": self._count(name, known, number)} for name in self.ids}
                measures.append({"id": "asked", "title": "what was asked for", "results": per_image})
            measures += [
                {
                    "id": group,
                    "title": group,
                    "results": {
                        name: _both_ways(
                            [self._opinion(name, probe, number).finding for probe in counted], labels, judge
                        )
                        for name in self.ids
                    },
                }
                for group, labels in judge.groups.items()
            ]
            if measures:
                tables.append({"id": suite, "title": title_of(suite, self.tools.files), "measures": measures})
        failed = [
            {"set": name, "prompt": prompt, "seed": seed, "error": opinion.error}
            for name in self.ids
            for (prompt, seed), opinion in self.opinions[name][number].items()
            if opinion.error
        ]
        return {**facts_of(judge), "suites": tables, "failed": failed}

    def _fidelity(self) -> dict[str, Any]:
        """Distances and CLIP scores over the captions' pictures; {} where nothing of it was asked for."""
        told: dict[str, Any] = {}
        if self.vectors:
            reference = self.tools.reference.features if self.tools.reference else self.vectors[BASE]
            compared = [name for name in self.ids if self.tools.reference or name != BASE]
            told["distances"] = {name: distances(self.vectors[name], reference, self.order.seed) for name in compared}
        if self.scores:
            told["clip"] = self.tools.clip.name
            told["clip_score"] = {name: mean_score(scores) for name, scores in self.scores.items()}
        return told

    def _row(self, probe: Probe) -> dict[str, Any]:
        key, content = (probe.prompt, probe.seed), probe.content
        results = {}
        for name, (first, *_) in self.opinions.items():
            if opinion := first.get(key):
                results[name] = {
                    "file": f"pictures/{self.places[name][key]}/{picture_name(*key)}",
                    "seen": opinion.seen(content),
                    "shown": not opinion.error and opinion.shows(content),
                }
                if opinion.error:
                    results[name]["error"] = opinion.error
        return {
            "prompt": probe.prompt,
            "seed": probe.seed,
            "asked": asked(content),
            "suites": suites_of(probe),
            "results": results,
        }


def _share(hits: int, images: int) -> dict[str, Any]:
    interval = [round(edge, 4) for edge in wilson(hits, images)]
    return {"hits": hits, "images": images, "share": round(hits / images, 4) if images else None, "interval": interval}


def _both_ways(findings: Sequence[Finding], labels: Sequence[str], judge: Judge) -> dict[str, Any]:
    """A group of labels by both conventions: {"per_image": as `_count`, "per_detection": {"detections", "images",
    "mean" (places in a picture), "interval" (of the mean), "failed"}}."""
    found = count(findings, labels, judge.threshold)
    places = [
        sum(place.label in labels and place.score >= judge.threshold for place in finding.detections)
        for finding in findings
        if not finding.error
    ]
    interval = [round(edge, 4) for edge in bootstrap_mean(places)] if len(places) > 1 else None
    return {
        "per_image": {**_share(found.per_image, found.images), "failed": len(found.failed)},
        "per_detection": {
            "detections": found.per_detection,
            "images": found.images,
            "mean": round(sum(places) / len(places), 4) if places else None,
            "interval": interval,
            "failed": len(found.failed),
        },
    }


def _keys(wanted: Iterable[Probe]) -> list[Key]:
    return list(dict.fromkeys((probe.prompt, probe.seed) for probe in wanted))
