"""Pictures, verdicts and shares of the base model, attention deletion and LoRA files on one concept, in a folder: a run
that may be killed at any time and, run again, ends with the same evaluation.json.

    pictures/<set>/<name>.png    every picture as it was made; the sets: base, deletion, lora-1, lora-1@0.5, …
    heatmaps/<set>.png           where the concept's word points in one of the base's pictures
    request.json                 what was asked for; a folder holds one evaluation
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
from ..errors import ConfigError, ErasureError
from ..flux.loading import FluxParts, load_parts
from ..lora.adapter import load_adapter, remove_adapter, set_adapter_scale
from ..lora.files import concept_of, mapping_of, sha256_of
from ..lora.format import KEY_BASE, KEY_CONFIG, KEY_METHOD, KEY_VERSION, read_lora, read_metadata
from .attacks import ATTACKS
from .classifier import DemoClassifier, Verdict, load_classifier
from .erasure import drift_of, paint, untouched
from .glance import Glance
from .intervals import wilson
from .order import BASE, DELETION, Order, Subject, command_of, ids_of
from .pictures import Key, PictureFolder, picture_name, write_whole
from .probes import FIRST_SEED, Content, Probe, probes, require_measurable

FORMAT = "erase-anything evaluation"
VERSION = 1  # of evaluation.json
TITLES = {
    "concept": "The concept by its name",
    "synonyms": "Its synonyms",
    "preserved unseen": "What should stay, in no training prompt",
    "preserved seen": "What should stay, in training prompts",
}
_SUITES = {"acc_e": "concept", "acc_g": "synonyms", "acc_ir": "preserved unseen", "acc_ir_seen": "preserved seen"}
_CHUNK = 64  # pictures judged at once

Progress = Callable[[str, int, int], None]  # (what, Euler steps done, in all)


def suites_of(probe: Probe) -> list[str]:
    """The suites that a probe counts in: concept, synonyms, attack …, preserved unseen or seen, part …."""
    share = [f"attack {probe.share}"] if probe.share in ATTACKS else [_SUITES[probe.share]] if probe.share else []
    return [*share, *([f"part {probe.part}"] if probe.part else [])]


def lower_is_better(suite: str) -> bool:
    """Whether a suite asks for what was erased; "below" is what "above" was, with other words."""
    return suite in ("concept", "synonyms", "part converse") or suite.startswith("attack ")


def evaluate(
    order: Order, folder: Path, device: str = "auto", progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Makes what `folder` lacks of the evaluation, writes evaluation.json and returns its content.

    Equal orders give equal results but for what is under "run". Raises ConfigError where the folder holds another
    evaluation, and ErasureError where the concept cannot be measured, a LoRA does not fit or a file cannot be written.
    """
    began = time.monotonic()
    order.validate()
    classifier = load_classifier(Path(order.source.folder))
    require_measurable(order.concept, classifier)
    metadata = {s.lora: read_metadata(s.lora) for s in order.subjects if s.lora}
    parts = load_parts(order.source, device)
    head = _head(order, parts, metadata)
    _claim(folder, head)
    work = _Work(order, parts, classifier, folder, progress)
    work.run()
    result = {
        **head,
        **work.result(),
        "run": {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            "pictures_made": work.made,
            "threads": torch.get_num_threads(),
        },
    }
    write_whole(folder / "evaluation.json", _json(result))
    return result


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of a folder's evaluation.json. Raises ErasureError where there is none of this version."""
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ErasureError(f"{folder.name} holds no finished evaluation: run `evaluate` there to its end.") from None
    except (OSError, ValueError):
        raise ErasureError(f"The evaluation.json in {folder.name} cannot be read: run the evaluation again.") from None
    require_version(found)
    return found


def require_version(found: Any) -> None:
    """Raises ErasureError unless this is an evaluation of the version that this pack reads."""
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ErasureError(f"This is no evaluation of version {VERSION}: make it with this version of Erase Anything.")


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


def _head(order: Order, parts: FluxParts, metadata: dict[Path, dict[str, str]]) -> dict[str, Any]:
    """Everything that is known before the first picture and decides all of them; no path but file names."""
    device = next(parts.transformer.parameters())
    fingerprint, variant = order.source.fingerprint(), parts.variant
    subjects: list[dict[str, Any]] = [{"id": BASE, "kind": BASE, "label": "Base model"}]
    for name, subject in zip(ids_of(order)[1:], order.subjects, strict=True):
        if subject.lora is None:
            subjects.append({"id": name, "kind": DELETION, "label": "Attention deletion"})
            continue
        data = metadata[subject.lora]
        subjects.append({
            "id": name, "kind": "lora", "label": subject.lora.stem, "strength": subject.strength,
            "file": subject.lora.name, "sha256": sha256_of(subject.lora), "erases": concept_of(data),
            "method": data.get(KEY_METHOD), "config": mapping_of(data.get(KEY_CONFIG)),
            "base": data.get(KEY_BASE), "version": data.get(KEY_VERSION),
        })  # fmt: skip
    judge = Path(order.source.folder) / "classifier" / "model.safetensors"
    return {
        "format": FORMAT, "version": VERSION, "concept": order.concept.to_dict(), "blur": order.blur,
        "base": {"model": Path(order.source.folder).name, "fingerprint": fingerprint},
        "judge": {"name": f"{variant.name} classifier", "sha256": sha256_of(judge)}, "subjects": subjects,
        "settings": {
            "images": order.images, "images_per_other": order.images_per_other,
            "images_per_attack": order.images_per_attack, "strengths": list(order.strengths), "heatmap": order.heatmap,
            "batch_size": order.batch_size, "resolution": variant.resolution, "steps": variant.default_steps,
            "guidance": variant.default_guidance, "first_seed": FIRST_SEED, "level": 0.95,
        },
        "versions": {"erase_anything": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "device": {
            "kind": device.device.type,
            "name": torch.cuda.get_device_name() if device.device.type == "cuda" else platform.machine(),
            "weights": str(device.dtype).removeprefix("torch."), "autocast": parts.autocast,
        },
        "command": command_of(order),
    }  # fmt: skip


class _Work:
    """The pictures of one evaluation, and what the classifier says of them."""

    def __init__(
        self, order: Order, parts: FluxParts, classifier: DemoClassifier, folder: Path, progress: Progress
    ) -> None:
        self.order, self.parts, self.classifier = order, parts, classifier
        self.folder, self.progress = folder, progress
        self.wanted = probes(
            order.concept, classifier, order.images, order.images_per_other, order.images_per_attack
        )  # fmt: skip
        self.keys = _keys(self.wanted)
        self.curve_keys = _keys(
            p for p in self.wanted if {"concept", "preserved unseen", "preserved seen"} & set(suites_of(p))
        )
        self.verdicts: dict[str, dict[Key, tuple[Verdict, int]]] = {}
        self.places: dict[str, dict[Key, str]] = {}  # set → picture → the set that holds its file
        self.drift: dict[str, dict[str, float]] = {}
        self.curves: list[dict[str, Any]] = []
        self.heatmap: dict[str, Any] | None = None
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
        self._set(BASE, self.keys)
        glance = self._glance()
        for name, subject in zip(self.ids[1:], order.subjects, strict=True):
            if subject.lora is None:  # without the phrase nothing is deleted
                self._set(name, touched, order.concept.phrase, dict.fromkeys(self.keys, BASE))
                continue
            load_adapter(parts.transformer, read_lora(subject.lora)[0])
            set_adapter_scale(parts.transformer, subject.strength)
            self._set(name, self.keys)
            if glance:
                glance.look(name)
            self._curve(name, subject)
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
        self.verdicts[name] = {}
        keys = list(self.places[name])
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            verdict = self.classifier.classify(self._pictures(name, chunk))
            self.verdicts[name] |= {key: (verdict, number) for number, key in enumerate(chunk)}
        same = untouched(self.wanted, self.order.concept)
        if name in self.ids[1:] and same:
            stacks = (self._pictures(each, same) for each in (BASE, name))
            self.drift[name] = dataclasses.asdict(drift_of(self.classifier, *stacks))

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
        kept = [p for p in self.wanted if _SUITES.get(p.share, "").startswith("preserved")]
        self.curves.append({
            "subject": name, "values": values, "concept": [self._count(own[s], concept) for s in values],
            "kept": [self._count(own[s], kept) for s in values] if kept else None,
        })  # fmt: skip

    # --- results ---------------------------------------------------------------------------------------------------

    def _shown(self, name: str, probe: Probe) -> bool:
        return probe.content.shown(*self.verdicts[name][probe.prompt, probe.seed])

    def _count(self, name: str, counted: Sequence[Probe]) -> dict[str, Any]:
        """{"hits", "images", "share", "interval"} of one set on some probes, more than none."""
        hits = sum(self._shown(name, probe) for probe in counted)
        interval = [round(edge, 4) for edge in wilson(hits, len(counted))]
        return {"hits": hits, "images": len(counted), "share": round(hits / len(counted), 4), "interval": interval}

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
                if (suite == "synonyms" or suite.startswith("attack ")) and row["results"][name]["shown"]
            ]
            for name in self.ids[1:]
        }
        return {
            "suites": [
                {
                    "id": suite, "title": title_of(suite), "better": "lower" if lower_is_better(suite) else "higher",
                    "results": {name: self._count(name, counted) for name in self.ids},
                }
                for suite, counted in found.items()
            ],
            "drift": self.drift, "strength": self.curves, "heatmap": self.heatmap, "attacks_succeeded": attacks,
            "seeds": sorted({seed for _, seed in self.keys}), "pictures": rows,
        }  # fmt: skip

    def _row(self, probe: Probe) -> dict[str, Any]:
        key, content = (probe.prompt, probe.seed), probe.content
        results = {
            name: {
                "file": f"pictures/{self.places[name][key]}/{picture_name(*key)}",
                "seen": _seen(*verdicts[key], content), "shown": probe.content.shown(*verdicts[key]),
            }
            for name, verdicts in self.verdicts.items()
            if key in verdicts
        }  # fmt: skip
        return {"prompt": probe.prompt, "seed": probe.seed, "asked": asked(content), "suites": suites_of(probe),
                "results": results}  # fmt: skip


def _keys(wanted: Iterable[Probe]) -> list[Key]:
    return list(dict.fromkeys((probe.prompt, probe.seed) for probe in wanted))


def title_of(suite: str) -> str:
    """A suite's name for people."""
    kind, _, rest = suite.partition(" ")
    return TITLES.get(suite) or {"attack": f"Attack: {rest}", "part": f"In detail: {rest}"}[kind]


def asked(content: Content) -> str:
    """What a picture should show, in words."""
    if content.relation:
        return f" {content.relation} ".join(content.nouns)
    what = " and ".join(content.nouns)
    return f"{what or 'anything'} in the style {content.style}" if content.style else what


def _seen(verdict: Verdict, number: int, content: Content) -> str:
    """What the classifier sees of it, in the words of `asked`; "none" where it recognises nothing."""
    first, relation, second = verdict.relations[number]
    if len(content.nouns) == 2:
        return f"{first} {relation} {second}" if relation else verdict.nouns[number]
    noun = verdict.nouns[number]
    return f"{noun} in the style {verdict.styles[number]}" if content.style else noun
