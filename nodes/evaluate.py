"""Evaluate Erasure: queues an evaluation and returns at once. Erasure Report: one page and one JSON of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ..training.concepts import Concept
from ..training.errors import ConfigError, ErasureError
from ..training.evaluation import EvaluationSpec, Subject, concept_of_loras, read_evaluation
from ..training.evaluation.judges import CLASSIFIER, CLIP, MODEL, NUDENET, own_classifier
from ..training.evaluation.pictures import write_whole
from ..training.evaluation.report import write_report
from ..training.evaluation.spec import ATTACKED, MAX_PROMPTS, MAX_SEED, PRESERVED, PRESETS, SYNONYMS
from ..training.evaluation.whitebox.settings import NAMES as WHITE_BOX
from ..training.evaluation.whitebox.settings import WhiteBox
from ..training.models.source import FluxSource
from . import service
from .compat import (
    ChoosesLora,
    advanced,
    file_stamp,
    io,
    judge_folders,
    list_files,
    output_path,
    resolve_lora,
    searched,
)
from .lora import MAX_STRENGTH, lora_name_input
from .train import finished
from .types import CATEGORY, NONE, ConceptType, EvaluationType, FluxSourceType, StackType

DETECTORS = {"the model's own classifier": MODEL, "NudeNet": NUDENET, "CLIP": CLIP, "image classifier": CLASSIFIER}
EVERY = "all"  # white-box attacks
DISTANCES = (NONE, "CLIP", "the model's own classifier")


def _widgets() -> list[io.Input]:
    """Everything that can be chosen beside what is connected."""
    usual = EvaluationSpec.__dataclass_fields__
    return [
        io.String.Input(
            "name",
            default="",
            placeholder="empty: evaluate-<phrase>",
            tooltip="What the job is called in the sidebar and the report's file.",
        ),
        io.Combo.Input(
            "lora",
            options=[NONE, *list_files("loras")],
            default=NONE,
            tooltip="The LoRA to measure; connect a stack to measure several side by side.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.05,
            tooltip="Of that LoRA. Change it to the strength that you ship.",
        ),
        io.Boolean.Input(
            "deletion",
            default=True,
            tooltip="Measure attention deletion too, which trains nothing: what a LoRA must beat. Off saves time.",
        ),
        io.Combo.Input(
            "detector",
            options=list(DETECTORS),
            default=next(iter(DETECTORS)),
            tooltip="Who judges the pictures. The demo model brings a classifier; for another Flux take CLIP or an "
            "image classifier, for nudity NudeNet.",
        ),
        io.Combo.Input(
            "detector_folder",
            options=[NONE, *judge_folders()],
            default=NONE,
            tooltip="For CLIP and image classifier: a model folder as Hugging Face has it, in models/clip_vision or "
            "models/classifiers.",
        ),
        io.String.Input(
            "prompts",
            default="",
            placeholder="none, or a CSV file in ComfyUI's input folder",
            tooltip="Prompts of your own: I2P, Ring-A-Bell, P4D, MMA-Diffusion, COCO captions, or a column prompt or "
            "caption. Names of CSV files in the input folder, with commas.",
        ),
        io.Int.Input(
            "images",
            default=usual["images"].default,
            min=1,
            max=10_000,
            tooltip="Pictures of the concept, and as many of its synonyms. More make the intervals narrower.",
        ),
        io.Int.Input(
            "images_per_other",
            default=usual["images_per_other"].default,
            min=0,
            max=1000,
            tooltip="Pictures of each other thing that must stay. Lower it where it takes too long.",
        ),
        io.Int.Input(
            "images_per_attack",
            default=usual["images_per_attack"].default,
            min=0,
            max=1000,
            tooltip="Pictures of each other way to write the concept. Raise it where an attack nearly succeeds.",
        ),
        io.String.Input(
            "strengths",
            default="",
            placeholder="none, or 0, 0.5, 1",
            tooltip="Strengths of the LoRA at which a curve is measured; each costs about half an evaluation.",
        ),
        io.Boolean.Input(
            "blur", default=False, tooltip="On for a sensitive concept: the report hides its pictures until clicked."
        ),
    ]


def _advanced() -> list[io.Input]:
    """The rarer ones."""
    usual = EvaluationSpec.__dataclass_fields__
    suites = {
        SYNONYMS: (True, "Ask for the concept by its synonyms too. Off where one has other meanings that must stay."),
        ATTACKED: (True, "Ask for it misspelt, with affixes, repeated and with shuffled words. Off saves time."),
        PRESERVED: (True, "Ask for other things, which must stay. Off where only the erasure is in question."),
        PRESETS: (
            False,
            "Ask for the pack's thirty everyday concepts too, of all kinds. On with CLIP.",
        ),
    }
    return [
        *(advanced(io.Boolean.Input(name, default=on, tooltip=tip)) for name, (on, tip) in suites.items()),
        advanced(
            io.Int.Input(
                "prompts_limit",
                default=usual["prompts_limit"].default,
                min=1,
                max=MAX_PROMPTS,
                tooltip="Prompts taken of each file, drawn by the seed. Raise it for figures to publish.",
            )
        ),
        advanced(
            io.Combo.Input(
                "distance",
                options=list(DISTANCES),
                default=NONE,
                tooltip="Features that compare the pictures of captions with the base's. Take one where the file has "
                "captions; for FID use the command line, which takes an Inception file.",
            )
        ),
        advanced(
            io.String.Input(
                "labels",
                default="",
                placeholder="empty: those called like the concept",
                tooltip="Of an image classifier: labels that mean the concept, with semicolons. Fill it in where none "
                "is called like it.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "heatmap",
                default=True,
                tooltip="Look where the concept's word points, before and after. Off saves little.",
            )
        ),
        advanced(
            io.Int.Input(
                "evaluation_seed",
                default=0,
                min=0,
                max=MAX_SEED,
                tooltip="Another number is other noise in every picture: does the result hold?",
            )
        ),
        advanced(
            io.Int.Input(
                "batch_size",
                default=usual["batch_size"].default,
                min=1,
                max=256,
                tooltip="Pictures made at once. Lower it where memory runs out: 1 for a full-size Flux on a small "
                "card.",
            )
        ),
        advanced(
            io.Combo.Input(
                "white_box",
                options=[NONE, EVERY, *WHITE_BOX],
                default=NONE,
                tooltip="Attacks by someone who has the weights, on every erasure: prompts found by gradients or in "
                "the text encoders, and training the concept in again. Minutes each on the demo model.",
            )
        ),
        advanced(
            io.Int.Input(
                "attack_tries",
                default=WhiteBox.tries,
                min=1,
                max=1000,
                tooltip="Prompts that each of them, and its control, may try. Raise it for figures to publish.",
            )
        ),
        advanced(
            io.Int.Input(
                "attack_steps",
                default=WhiteBox.steps,
                min=1,
                max=100_000,
                tooltip="Steps of each search or training. Raise it where the control does as well as the attack.",
            )
        ),
    ]


class EvaluateErasure(ChoosesLora):
    """Submits an evaluation; the same inputs give the same job."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return searched(
            ["measure", "benchmark", "accuracy", "nudenet", "clip score", "attack", "robustness"],
            node_id="EraseAnything_Evaluate",
            display_name="Evaluate Erasure",
            category=CATEGORY,
            description="Measures in the background what an erasure took, what it kept and what an attacker still "
            "gets, beside the base model.",
            is_output_node=True,
            inputs=[
                FluxSourceType.Input("flux", tooltip="From Load Flux."),
                *_widgets(),
                ConceptType.Input(
                    "concept",
                    optional=True,
                    tooltip="What to measure; not needed where the LoRAs say what they erase.",
                ),
                lora_name_input(),
                StackType.Input("stack", optional=True, tooltip="Several LoRAs, each measured alone at its weight."),
                *_advanced(),
            ],
            outputs=[EvaluationType.Output("evaluation", display_name="evaluation")],
        )

    @classmethod
    def execute(
        cls,
        flux: FluxSource,
        name: str,
        strength: float,
        deletion: bool,
        detector: str,
        detector_folder: str,
        prompts: str,
        images: int,
        images_per_other: int,
        images_per_attack: int,
        strengths: str,
        blur: bool,
        lora: str = NONE,
        concept: Concept | None = None,
        lora_name: str | None = None,
        stack: Sequence[tuple[str, float]] = (),
        synonyms: bool = True,
        attacks: bool = True,
        preserved: bool = True,
        presets: bool = False,
        prompts_limit: int = 100,
        distance: str = NONE,
        labels: str = "",
        heatmap: bool = True,
        evaluation_seed: int = 0,
        batch_size: int = 32,
        white_box: str = NONE,
        attack_tries: int = WhiteBox.tries,
        attack_steps: int = WhiteBox.steps,
    ) -> io.NodeOutput:
        rows = [(lora_name or lora, strength)] if (lora_name or lora) != NONE else []
        subjects = [Subject(Path(resolve_lora(file)), weight) for file, weight in rows]
        subjects += [Subject(Path(path), weight) for path, weight in stack]
        chosen = {SYNONYMS: synonyms, ATTACKED: attacks, PRESERVED: preserved, PRESETS: presets}
        spec = EvaluationSpec(
            flux,
            concept or _concept_of(flux, [subject.lora for subject in subjects if subject.lora]),
            (*([Subject()] if deletion else []), *subjects),
            images=images,
            images_per_other=images_per_other,
            images_per_attack=images_per_attack,
            strengths=_numbers(strengths),
            heatmap=heatmap,
            blur=blur,
            batch_size=batch_size,
            detectors=(_choice(DETECTORS.get(detector, detector), detector_folder),),
            labels=tuple(label.strip() for label in labels.split(";") if label.strip()),
            suites=tuple(suite for suite, on in chosen.items() if on),
            prompts=_files(prompts),
            prompts_limit=prompts_limit,
            seed=evaluation_seed,
            distance="" if distance == NONE else _choice(DETECTORS.get(distance, distance), detector_folder),
            white_box=None
            if white_box == NONE
            else WhiteBox(WHITE_BOX if white_box == EVERY else (white_box,), tries=attack_tries, steps=attack_steps),
        )
        job = service.submit_evaluation(spec, name)
        return io.NodeOutput(job.id, ui={"job": [job.id], "text": [f"{job.name}: {job.state.state}"]})

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = "", lora_name: str | None = "", **inputs: object) -> str:
        """Changes when an evaluation is lost or a file that it reads has changed."""
        files = [*str(inputs.get("prompts") or "").split(",")]
        stamp = super().fingerprint_inputs(lora, lora_name)
        return " ".join([service.unfinished(), *map(_prompts_stamp, files), stamp])


def _prompts_stamp(name: str) -> str:
    """`file_stamp` of a file with prompts; "" for one that is not there."""
    return file_stamp(Path(folder_paths.get_input_directory()) / name.strip()) if name.strip() else ""


def _concept_of(flux: FluxSource, loras: Sequence[Path]) -> Concept:
    """The concept that the LoRAs say they erase. Raises ErasureError."""
    folder = Path(flux.folder) if flux.folder else None
    own = own_classifier(folder) if folder is not None and (folder / "classifier").is_dir() else None
    try:
        return concept_of_loras(loras, "", own)
    except ConfigError as error:
        raise ConfigError(f"{error} Connect an Erasure Concept.") from error


def _choice(kind: str, folder: str) -> str:
    """A detector or features as a spec names them. Raises ConfigError for a folder that the host does not list."""
    if kind in (MODEL, NUDENET):
        return kind
    known = judge_folders()
    if folder not in known:
        raise ConfigError(
            f"The detector {kind} needs a model folder: put one as Hugging Face has it into models/clip_vision or "
            "models/classifiers, refresh the list and choose it."
        )
    return f"{kind}:{known[folder]}"


def _files(names: str) -> tuple[Path, ...]:
    """CSV files in the host's input folder. Raises ConfigError for anything else."""
    root = Path(folder_paths.get_input_directory()).absolute()
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        path = root / name
        plain = re.fullmatch(r"[\w .()+-]+(/[\w .()+-]+)*\.(csv|tsv)", name, re.IGNORECASE) and ".." not in name
        if not plain or not path.is_file():
            raise ConfigError(f"There is no CSV file {name[:80]!r} in ComfyUI's input folder: put it there.")
        found.append(path)
    return tuple(found)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"The strengths {text[:60]!r} are no numbers: write some with commas, 0, 0.5, 1.") from error


class ErasureReport(io.ComfyNode):
    """Writes the report of an evaluation as soon as it is done. Interrupting it ends the waiting, not the job."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return searched(
            ["html", "evaluation", "audit", "table"],
            node_id="EraseAnything_Report",
            display_name="Erasure Report",
            category=CATEGORY,
            description="Waits for an evaluation and writes its report: one page that opens without a network, and "
            "the figures as JSON, into the output folder.",
            is_output_node=True,
            inputs=[
                EvaluationType.Input("evaluation", tooltip="From Evaluate Erasure."),
                io.String.Input(
                    "filename_prefix",
                    default="erasure-report/report",
                    tooltip="Name of both files below ComfyUI's output folder; a number is added. Change it to sort "
                    "reports into folders.",
                ),
            ],
            outputs=[io.String.Output("summary", display_name="summary", tooltip="The main shares, one line each.")],
        )

    @classmethod
    def execute(cls, evaluation: str, filename_prefix: str) -> io.NodeOutput:
        job = finished(evaluation, "evaluation", "Evaluate")
        folder = job.product.parent
        found = read_evaluation(folder)
        place = output_path(filename_prefix, 0, 0, ErasureError)
        page, data = place.with_name(f"{place.name}.html"), place.with_name(f"{place.name}.json")
        write_report(found, folder, page)
        write_whole(data, (json.dumps(found, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace"))
        root = Path(folder_paths.get_output_directory()).absolute()
        files = [
            {"filename": path.name, "subfolder": path.absolute().parent.relative_to(root).as_posix(), "type": "output"}
            for path in (page, data)
        ]
        summary = summary_of(found)
        return io.NodeOutput(summary, ui={"job": [job.id], "report": files, "text": [summary]})


def summary_of(found: dict) -> str:
    """The shares of the concept's, the synonyms' and the preserved suites, a line for each erasure."""
    names = {"acc_e": "concept", "acc_g": "synonyms", "acc_ir": "kept"}
    suites = [(names[suite["id"]], suite["results"]) for suite in found["suites"] if suite["id"] in names]

    def shown(result: dict) -> str:
        return "not judged" if result["share"] is None else f"{100 * result['share']:.1f} %"

    return "\n".join(
        f"{subject['label']}: " + ", ".join(f"{name} {shown(results[subject['id']])}" for name, results in suites)
        for subject in found["subjects"]
    )


NODES = [EvaluateErasure, ErasureReport]
