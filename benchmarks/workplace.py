"""What the benchmarks share: the model and its base pictures, concepts, trainings that resume and share their bank."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from scripts.environment import CACHE, say

from .rows import Row, Rows, files_digest, key_of

NOUNS = ("car", "penguin", "rose", "guitar", "castle", "pizza", "robot", "butterfly")
STYLES = ("twemoji", "fluent")
RELATIONS = ("above",)


def behaviour() -> int:
    """The number of what the engine computes, by which rows tell whether they are of today's: see `training`."""
    from training import BEHAVIOUR

    return BEHAVIOUR


def seeds_of(text: str) -> list[int]:
    """ "3" means the seeds 0, 1, 2; "0,2" those two."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def course(config: Any) -> dict[str, Any]:
    """The settings that decide what a training learns, for keys; a later one that is off leaves them as they were."""
    from training.settings import names_affecting

    later = {"early_stopping"}
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in names_affecting("bank", "weights") and (name not in later or value)
    }


@dataclasses.dataclass
class Trained:
    """A LoRA that was trained for a row. times: "seconds" and "cpu_seconds" of this training, a shared bank's included,
    and "bank_seconds"; of LoRAs that earlier versions have kept "seconds" alone."""

    path: Path
    weights: dict[str, Any]
    concept: Any
    times: dict[str, float]


class Workplace:
    """One benchmark command at work on one model."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        import torch

        from training.cli import read_settings
        from training.models.source import FluxSource, demo_model_folder

        if args.threads:
            torch.set_num_threads(args.threads)
        self.args, self.threads = args, torch.get_num_threads()
        folder = Path(args.source or demo_model_folder()).resolve()
        self.source = FluxSource("diffusers", folder=str(folder))
        self.source.validate()
        files = [path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")]
        self.model = files_digest(path for path in files if path.name != "measured.json")
        self.behaviour = behaviour()
        self.folder = CACHE / "bench" / self.model
        self.rows = Rows(args.out / f"{args.name or name}.json", CACHE / "bench" / "locks")
        self.settings = read_settings(args.set)

    # --- the model -------------------------------------------------------------------------------------------------

    @cached_property
    def classifier(self):
        """The model's own classifier."""
        from training.evaluation import load_classifier

        return load_classifier(Path(self.source.folder))

    @cached_property
    def _parts(self):
        from training.models.loading import load_parts

        return load_parts(self.source, self.args.device)

    def parts(self):
        """The whole model with a transformer that has no adapter yet."""
        from training.lora.adapter import adapter_parameters
        from training.models.loading import load_transformer

        if adapter_parameters(self._parts.transformer):
            self._parts.transformer = load_transformer(self.source, self.args.device)
        return self._parts

    @cached_property
    def base(self):
        """The base's pictures, kept for every run on the model (a `PictureFolder`); their arithmetic is a part of their
        place, as it changes pixels."""
        from training.evaluation import PictureFolder

        arithmetic = "bf16" if self._parts.autocast else str(next(self._parts.transformer.parameters()).dtype)[6:]
        device = next(self._parts.transformer.parameters()).device.type
        return PictureFolder(self.folder / f"base-{device}-{arithmetic}")

    @cached_property
    def vocabulary(self):
        """Which words the model's text encoder knows."""
        from transformers import AutoTokenizer

        from training.concepts import vocabulary_of

        return vocabulary_of(AutoTokenizer.from_pretrained(Path(self.source.folder) / "tokenizer_2"))

    @property
    def counts(self) -> dict[str, int]:
        """How many images are measured of what, as `evaluation.concept_cases` takes them."""
        args = self.args
        return {
            "images": args.images,
            "images_per_other": args.images_per_other,
            "images_per_attack": args.images_per_attack,
        }

    def seen(self, cases: Sequence[Any], pictures: Mapping[tuple[str, int], Any]) -> list[bool]:
        """Whether the classifier sees in each case's picture what it should show."""
        from training.evaluation.judges.demo import DemoJudge
        from training.evaluation.render import stacked

        if not cases:
            return []
        pixels = stacked(pictures, [case.key for case in cases])
        return [verdict.shown for verdict in DemoJudge(self.classifier).judge(pixels, cases)]

    # --- concepts and trainings ------------------------------------------------------------------------------------

    def kind(self, phrase: str) -> str:
        """The kind of a concept that the classifier can name."""
        from training.evaluation.cases import RELATIONS as NAMED

        if phrase in self.classifier.styles:
            return "abstraction"
        return "relationship" if phrase in NAMED else "entity"

    @cache  # noqa: B019 (there is one workplace in a process)
    def concept(self, phrase: str, seed: int, irrelevant: int = 0):
        """The concept as the pack chooses its words by itself.

        A style's irrelevant words are the model's other styles but one, which is held out (another one for each seed):
        what the pack would choose from are styles of real art. irrelevant: how many words, where it is not 0.
        """
        from training.concepts import irrelevant_words, make_concept

        kind, options = self.kind(phrase), {"seed": seed, "vocabulary": self.vocabulary}
        if kind == "abstraction":
            others = [style for style in self.classifier.styles if style != phrase]
            held_out = seed % len(others)
            return make_concept(phrase, kind, irrelevant=others[:held_out] + others[held_out + 1 :], **options)
        concept = make_concept(phrase, kind, **options)
        if not irrelevant:
            return concept
        words = irrelevant_words(
            phrase, seed, irrelevant, kind=kind, synonyms=concept.synonyms, vocabulary=self.vocabulary
        )
        return make_concept(phrase, kind, synonyms=concept.synonyms, irrelevant=words, **options)

    def key(self, phrase: str, seed: int, variant: Any, concept: Any, **more: Any) -> str:
        """The key of a row: model, concept with its words, all settings, image counts."""
        return key_of(
            {
                "model": self.model,
                "concept": concept.to_dict(),
                "seed": seed,
                "variant": variant,
                **self.counts,
                **more,
            }
        )

    def config(self, overrides: dict[str, Any], seed: int):
        """The pack's defaults with --set and then `overrides`; no sample images."""
        from training.settings import ErasureConfig

        return ErasureConfig.from_dict({**self.settings, **overrides, "seed": seed, "sample_every": 0})

    @contextmanager
    def group(self, phrase: str, seed: int) -> Iterator[Path | None]:
        """The folder for the trainings of one concept and seed, which one process alone works on; None: another does.

        It is removed at the end, and kept when something went wrong, so that a rerun by the same code goes on from
        there.
        """
        name = f"{self.rows.path.stem}-{phrase.replace(' ', '_')}-{seed}-{self.behaviour}"
        with self.rows.claim(f"{self.model} {phrase} {seed}") as mine:
            if not mine:
                say(f"{phrase}, seed {seed}: another process is at it")
                yield None
                return
            folder = self.folder / "work" / name
            yield folder
            shutil.rmtree(folder, ignore_errors=True)

    def train(
        self, concept: Any, config: Any, folder: Path, factory: Callable | None = None, precision: str = ""
    ) -> Trained:
        """Trains below `folder`; goes on where it was interrupted, and takes over a bank that is already there.

        factory: see `trainer.run`; such a training needs a folder of its own. precision: of the base in training, where
        it is not the model's; it fills a bank of its own.
        """
        from training.checkpoint import bank_request_digest, request_digest
        from training.concepts import Concept
        from training.lora.format import read_lora
        from training.request import ErasureRequest
        from training.trainer import run

        source, folder = self.source, folder / precision
        if precision:
            source = dataclasses.replace(source, precision=precision)
        request = ErasureRequest(source, concept, config, "lora", str(folder), self.args.device)
        work = folder / request_digest(request)
        bank = folder / f"bank-{bank_request_digest(request)}"
        facts = bank.with_suffix(".json")
        shared = bank.is_file() and facts.is_file() and not (work / "bank.safetensors").exists()
        work.mkdir(parents=True, exist_ok=True)
        if shared:
            _link(bank, work / "bank.safetensors")
        clock, cpu = time.monotonic(), time.process_time()
        moments: dict[str, float] = {}

        def report(event: dict[str, Any]) -> None:
            if event["type"] == "phase":
                moments.setdefault(event["phase"], time.monotonic() - clock)

        request = dataclasses.replace(request, output_folder=str(work))
        result = run(request, work, report, factory=factory)
        cpu = time.process_time() - cpu
        took = {"seconds": 0.0, "cpu_seconds": 0.0}
        if shared:
            took = json.loads(facts.read_text(encoding="utf-8"))
        elif "bank" in moments:
            share = (moments["train"] - moments["bank"]) / max(1e-9, time.monotonic() - clock)
            took = {"seconds": moments["train"] - moments["bank"], "cpu_seconds": share * cpu}
            _link(work / "bank.safetensors", bank)
            facts.write_text(json.dumps(took), encoding="utf-8")
        return Trained(
            Path(result["lora"]),
            read_lora(Path(result["lora"]))[0],
            Concept.from_dict(result["concept"]),
            {
                "seconds": round(result["seconds"] + (took["seconds"] if shared else 0), 1),
                "cpu_seconds": round(cpu + (took["cpu_seconds"] if shared else 0), 1),
                "bank_seconds": round(took["seconds"], 1),
            },
        )

    def kept(self, concept: Any, config: Any, folder: Path) -> Trained:
        """A training whose LoRA is kept for all commands; made below `folder` where there is none."""
        from training.concepts import Concept
        from training.lora.format import KEY_CONCEPT, read_lora

        path = self._lora_file(concept, config)
        if not self._is_kept(path):
            trained = self.train(concept, config, folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            copy = path.with_suffix(f".{os.getpid()}.part")  # another command may train the same
            shutil.copyfile(trained.path, copy)
            os.replace(copy, path)
            facts = {**trained.times, "behaviour": self.behaviour}
            path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
            how = config.method if config.bilevel else f"{config.method}, one level"
            print(f"· trained {concept.phrase}, seed {config.seed}, {how}, in {facts['seconds']} s", flush=True)
        weights, metadata = read_lora(path)
        times = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        times.pop("behaviour", None)
        return Trained(path, weights, Concept.from_dict(json.loads(metadata[KEY_CONCEPT])), times)

    def _lora_file(self, concept: Any, config: Any) -> Path:
        name = key_of({"concept": concept.to_dict(), "config": course(config)})
        return self.folder / "loras" / f"{concept.phrase.replace(' ', '_')}-{config.seed}-{name}.safetensors"

    def _is_kept(self, lora: Path) -> bool:
        facts = lora.with_suffix(".json")  # the last one to be written
        if not facts.is_file():
            return False
        return not self.args.fresh or json.loads(facts.read_text(encoding="utf-8")).get("behaviour") == self.behaviour

    def loras(self, phrase: str, seed: int, variants: Mapping[str, dict[str, Any]]) -> dict[str, Path] | None:
        """A concept's LoRAs by settings beside the defaults, kept for all commands; None: another process is at it.

        Those that are missing are trained, on one bank where they can share it. `seconds_of` tells how long each took.
        """
        concept = self.concept(phrase, seed)
        configs = {name: self.config(overrides, seed) for name, overrides in variants.items()}
        files = {name: self._lora_file(concept, config) for name, config in configs.items()}
        if not all(self._is_kept(path) for path in files.values()):
            with self.group(phrase, seed) as folder:
                if folder is None:
                    return None
                for config in configs.values():
                    self.kept(concept, config, folder)
        return files

    def lora(self, phrase: str, seed: int) -> Path | None:
        """A concept's LoRA by the defaults with its concept inputs, as `loras` has it."""
        from training.concept_inputs import write_missing
        from training.lora.inputs import inputs_path

        concept, config = self.concept(phrase, seed), self.config({}, seed)
        path = self._lora_file(concept, config)
        if self._is_kept(path) and inputs_path(path).is_file():
            return path
        with self.group(phrase, seed) as folder:
            if folder is None:
                return None
            self.kept(concept, config, folder)
            write_missing(self.source, [path], self.args.device, overwrite=True)
        return path

    @staticmethod
    def seconds_of(lora: Path) -> float:
        """How long the training of a kept LoRA took."""
        return json.loads(lora.with_suffix(".json").read_text(encoding="utf-8"))["seconds"]

    def measured(
        self,
        slot: dict[str, Any],
        key: str,
        folder: Path,
        concept: Any,
        config: Any | None,
        factory: Callable | None = None,
        precision: str = "",
        more: Callable[[Path], dict[str, Any]] | None = None,
    ) -> Row:
        """Trains (nothing where `config` is None: attention deletion), measures, and keeps the row.

        factory, precision: see `train`; a LoRA by one, or on a base in fewer bits, is not kept, as no setting tells of
        it. What it does is measured on the model as it is, whatever it was trained on. more: measures the LoRA's file
        too, for more of the row's fields.
        """
        from training.evaluation import measure_deletion, measure_erasure

        trained = None
        if config is not None and (factory or precision):
            trained = self.train(concept, config, folder, factory, precision)
        elif config is not None:
            trained = self.kept(concept, config, folder)
        parts = self.parts()
        options = {**self.counts, "base": self.base}
        began, cpu = time.monotonic(), time.process_time()
        if trained is None:
            score = measure_deletion(parts, self.classifier, concept, **options)
        else:
            score = measure_erasure(parts, self.classifier, trained.concept, trained.weights, **options)
        times = {"measure_seconds": time.monotonic() - began, "measure_cpu_seconds": time.process_time() - cpu}
        if trained is not None:
            times |= trained.times
        further = more(trained.path) if more and trained else {}
        facts = {
            "kind": concept.kind,
            "synonyms": len(concept.synonyms),
            "irrelevant": list(concept.irrelevant),
            "config": None if config is None else config.to_dict(),
            "counts": self.counts,
        }
        rounded = {name: round(took, 1) for name, took in times.items()}
        return self.keep(key, slot, {**facts, **score.to_dict(), **further, **rounded})

    def done(self, key: str) -> bool:
        """Whether there is a row with this key, with --fresh one that today's code has made."""
        return any(
            row["key"] == key and (not self.args.fresh or row.get("behaviour") == self.behaviour)
            for row in self.rows.all()
        )

    def keep(self, key: str, slot: dict[str, Any], row: dict[str, Any]) -> Row:
        """Keeps a row, with what it was made by."""
        made = {"model": self.model, "behaviour": self.behaviour, "threads": self.threads}
        return self.rows.put(key, slot, {**made, **row})


def _link(source: Path, target: Path) -> None:
    """`source` at `target` too, without a copy where the disk allows it."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
