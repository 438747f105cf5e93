"""Command line: trains an erasure LoRA without ComfyUI, resumes a training, measures LoRAs, with a progress bar.

    python -m training.cli train --source FOLDER --concept "penguin" --out DIR
    python -m training.cli train --source FOLDER --concept "penguin" --out DIR --estimate
    python -m training.cli resume --out DIR
    accelerate launch --multi_gpu --num_processes 2 -m training.cli train --source FOLDER --concept "penguin" --out DIR
    python -m training.cli evaluate --source FOLDER --lora FILE
    python -m training.cli evaluate --source FOLDER --lora FILE --lora FILE --deletion --out DIR --report
    python -m training.cli report DIR --out report.html

--estimate trains nothing: it shows how much memory each plan needs, and which plan would be chosen. Under `accelerate
launch` the GPUs of one machine share each batch, whose sizes must be multiples of their number; the first one prints.

The last line printed is one JSON object: `lora`; `acc_e`, `acc_g`, `acc_ir` (shares of images, 0..1, in which the
erased concept is recognised under its name and its synonyms, and what should stay where no preservation prompt held its
nouns); in `base` the same without the LoRA; after a training also `seconds` and what else `trainer.run` returns. Shares
are null where they cannot be measured: the model has no classifier, it does not name the concept, there is no synonym.
With --out, `evaluate` keeps every picture in DIR and goes on where it was stopped; its JSON then has `evaluation` and
`report` (files; null without --report), `concept` and `subjects` (of each: `acc_e`, `acc_g`, `acc_ir`, the base's too),
with --attacks also `white_box` (of each attack on each subject: the concept's share for the base, before the attack,
after it and with its control, and the prompts that brought it back).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .concepts import TEMPLATES, Concept, WordNetMissing, endpoint_words, make_concept, vocabulary_of
from .concepts.endpoint import API_KEY
from .errors import ConfigError, ErasureError, LoraError
from .files import read_json, write_json
from .memory import GB, overview
from .models.source import PRECISIONS, FluxSource
from .request import ErasureRequest
from .settings import SETTINGS, ErasureConfig

SHARES = ("acc_e", "acc_g", "acc_ir")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; every training setting is reachable through --set."""
    top = argparse.ArgumentParser(prog="python -m training.cli", description="Erase a concept from Flux.")
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train an erasure LoRA",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["settings, for --set:", *(f"  {line}" for line in settings_help())]),
    )
    train.add_argument("--source", required=True, help="Flux folder in diffusers layout")
    train.add_argument("--concept", required=True, help="the word or phrase to erase")
    train.add_argument("--out", required=True, type=Path, help="folder for the LoRA and the training's own files")
    train.add_argument("--name", help="file stem of the LoRA (default: from the concept)")
    train.add_argument("--kind", default="entity", choices=tuple(TEMPLATES))
    train.add_argument("--template", help='prompt with {} where the concept goes, e.g. "a photo of a {}"')
    train.add_argument("--synonym", action="append", help="word that means the same (repeatable; default: WordNet's)")
    train.add_argument("--no-synonyms", action="store_true", help="use no synonyms")
    train.add_argument("--irrelevant", action="append", help="word that does not (repeatable; default: WordNet's)")
    train.add_argument("--sense", type=int, default=1, help="number of the word's meaning in WordNet (default: 1)")
    train.add_argument("--endpoint", metavar="URL", help=f"chat API that chooses the words; its key: ${API_KEY}")
    train.add_argument("--endpoint-model", default="", metavar="NAME", help="the model to ask there")
    train.add_argument("--preserve", action="append", help="prompt that must stay as it is (repeatable)")
    train.add_argument("--steps", type=int)
    train.add_argument("--seed", type=int)
    train.add_argument("--method")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting (see below)")
    resume = commands.add_parser("resume", help="go on with a training that was stopped or killed")
    resume.add_argument("--out", required=True, type=Path)
    resume.add_argument("--name", help="which one, where DIR has several")
    train.add_argument("--estimate", action="store_true", help="show what memory this needs, and train nothing")
    for command in (train, resume):
        command.add_argument("--no-measure", action="store_true", help="train only; the accuracies are null")
    evaluate = commands.add_parser("evaluate", help="measure what a LoRA erased and what it kept")
    evaluate.add_argument("--source", required=True, help="Flux folder in diffusers layout, with a classifier")
    evaluate.add_argument("--lora", action="append", default=[], type=Path, help="LoRA file (repeatable with --out)")
    _evaluation_options(evaluate)
    report = commands.add_parser("report", help="make a page of a finished evaluation")
    report.add_argument("folder", type=Path, metavar="DIR", help="what evaluate had as --out")
    report.add_argument("--out", type=Path, help="the page (default: report.html in DIR)")
    for command in (train, evaluate):
        command.add_argument("--precision", default="auto", choices=PRECISIONS)
        command.add_argument("--device", default="auto")
    for command in (train, resume, evaluate):
        command.add_argument(
            "--images",
            type=int,
            default=24,
            help="measured images of the concept, as many of its synonyms; more is more exact",
        )
        command.add_argument("--images-per-other", type=int, default=3, help="measured images of each other noun")
    return top


def settings_help() -> list[str]:
    """Each setting with its default, its range and when to change it, in lines that a terminal holds."""
    lines = []
    for setting in SETTINGS.values():
        lines.append(f"{setting.name}={json.dumps(setting.default)}  ({setting.allowed})")
        lines += textwrap.wrap(setting.help, 100, initial_indent="    ", subsequent_indent="    ")
    return lines


def _evaluation_options(evaluate: argparse.ArgumentParser) -> None:
    """What `evaluate` takes for an evaluation that is kept; without --out these are mistakes."""
    group = evaluate.add_argument_group("an evaluation in a folder")
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for pictures and evaluation.json; a run that was stopped goes on there",
    )
    group.add_argument(
        "--strength",
        action="append",
        type=float,
        help="strength of the LoRAs: one for all, or one for each in their order (default: 1)",
    )
    group.add_argument("--deletion", action="store_true", help="measure attention deletion too, which trains nothing")
    group.add_argument("--strengths", help='strengths of each LoRA\'s curve, e.g. "0,0.25,0.5,0.75,1"')
    group.add_argument("--concept", help="the concept to measure, where the LoRAs do not say it or differ")
    group.add_argument("--images-per-attack", type=int, help="measured images of each attack on a thing (default: 8)")
    group.add_argument("--batch-size", type=int, help="images made at once (default: 32)")
    group.add_argument("--no-heatmap", action="store_true", help="do not look where the concept's word points")
    group.add_argument(
        "--detector",
        action="append",
        metavar="WHICH",
        help="who judges the pictures: model (its own "
        "classifier), nudenet, clip:FOLDER or classifier:FOLDER (repeatable: the first one's figures are "
        "the main ones; default: model)",
    )
    group.add_argument(
        "--label",
        action="append",
        default=[],
        help="a label of classifier:FOLDER that means the concept, where none is called like it (repeatable)",
    )
    group.add_argument(
        "--suite",
        action="append",
        help="what is asked for besides the concept by its name: synonyms, "
        "attacks, preserved, presets or none (repeatable; default: all but presets)",
    )
    group.add_argument(
        "--prompts",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.csv",
        help="prompts of your "
        "own, recognised by their columns: I2P, Ring-A-Bell, P4D, MMA-Diffusion, COCO captions, prompt, "
        "caption (repeatable)",
    )
    group.add_argument("--prompts-limit", type=int, help="prompts taken of each file, drawn by the seed (default: 100)")
    group.add_argument(
        "--distance",
        default="",
        metavar="FEATURES",
        help="compare the captions' pictures: "
        "inception:FILE for FID and KID; clip:FOLDER or model for distances of others",
    )
    group.add_argument(
        "--reference", type=Path, metavar="DIR", help="pictures to compare them with (default: the base model's own)"
    )
    group.add_argument("--seed", type=int, help="another one is other noise in every picture (default: 0)")
    group.add_argument("--blur", action="store_true", help="a sensitive concept: the report hides its pictures")
    group.add_argument(
        "--attacks",
        metavar="NAMES",
        help="white-box attacks on every erasure: names with commas between (a wrong one lists them), or all",
    )
    group.add_argument(
        "--attack-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a budget of the attacks (a wrong one lists them)",
    )
    group.add_argument("--report", action="store_true", help="write DIR/report.html")


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs as a dictionary; values are JSON where they can be read as such. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"Write a setting as NAME=VALUE, not {pair!r}.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def source_of(args: argparse.Namespace) -> FluxSource:
    """The model that the arguments name, validated. Raises SourceError."""
    source = FluxSource("diffusers", folder=str(Path(args.source).resolve()), precision=args.precision)
    source.validate()
    return source


def build_request(args: argparse.Namespace) -> ErasureRequest:
    """The request that `train`'s arguments describe, its words chosen to fit the model. Raises ErasureError."""
    from transformers import AutoTokenizer

    settings = read_settings(args.set)
    for name in ("steps", "seed", "method"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    config = ErasureConfig.from_dict(settings)
    source = source_of(args)
    tokenizer = AutoTokenizer.from_pretrained(Path(source.folder) / "tokenizer_2", local_files_only=True)
    synonyms, irrelevant = () if args.no_synonyms else args.synonym, args.irrelevant
    if args.endpoint and (synonyms is None or irrelevant is None):
        where = {"base_url": args.endpoint, "model": args.endpoint_model, "cache": args.out / "words"}
        words = endpoint_words(args.concept, args.kind, **where)
        synonyms = words.synonyms if synonyms is None else synonyms
        irrelevant = words.irrelevant if irrelevant is None else irrelevant
    try:
        concept = make_concept(
            args.concept,
            args.kind,
            args.template,
            synonyms,
            irrelevant,
            config.seed,
            preserve=args.preserve,
            vocabulary=vocabulary_of(tokenizer),
            sense=args.sense,
        )
    except WordNetMissing as error:
        hint = "On this command line: --synonym WORD (or --no-synonyms) and --irrelevant WORD."
        raise ConfigError(f"{error} {hint}") from error
    name = args.name or re.sub(r"[^\w.-]+", "_", f"erase-{concept.phrase}").strip("._") or "erasure"
    request = ErasureRequest(source, concept, config, name, str(args.out.resolve()), args.device)
    request.validate()
    return request


def job_folder(out: Path, name: str) -> Path:
    """Where a training keeps its request, bank, checkpoints and samples."""
    return out / f"{name}.training"


def find_request(out: Path, name: str | None) -> ErasureRequest:
    """The request of the training to be resumed. Raises ConfigError where none or several fit."""
    found = sorted(out.glob(f"{name or '*'}.training/request.json"))
    if len(found) != 1:
        what = "is no training" if not found else "are several trainings (choose one with --name)"
        raise ConfigError(f"There {what} to resume in {out}.")
    broken = ConfigError(f"The request.json in {found[0].parent.name} cannot be read: train again from the start.")
    return ErasureRequest.from_dict(read_json(found[0], broken))


def measure(source: FluxSource, lora: Path, device: str, args: argparse.Namespace) -> dict[str, Any]:
    """The accuracies of a LoRA whose metadata says what it erased, as the command line prints them.

    Raises ErasureError where the file is no erasure LoRA, the model has no classifier or it does not name the concept.
    """
    from .evaluation import load_classifier, measure_erasure, require_measurable
    from .lora.format import KEY_CONCEPT, read_lora
    from .models.loading import load_parts

    weights, metadata = read_lora(lora)
    if KEY_CONCEPT not in metadata:
        raise LoraError(f"{lora.name} does not say which concept it erases: choose a LoRA that this pack has trained.")
    concept = Concept.from_dict(json.loads(metadata[KEY_CONCEPT]))
    classifier = load_classifier(Path(source.folder))
    require_measurable(concept, classifier)
    with tqdm(desc="measure", unit="step") as bar:

        def progress(moment: str, done: int, total: int) -> None:
            bar.set_postfix_str(moment, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        parts, counts = load_parts(source, device), {"images": args.images, "images_per_other": args.images_per_other}
        score = measure_erasure(parts, classifier, concept, weights, **counts, progress=progress).to_dict()
    after, before = (
        {name: score[name][moment] if score[name]["images"] else None for name in SHARES}
        for moment in ("after", "before")
    )
    return {**after, "base": before}


def strengths_of(text: str) -> tuple[float, ...]:
    """Numbers with commas between. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"Write strengths as numbers with commas between, not {text!r}.") from None


def white_box_of(args: argparse.Namespace) -> Any:
    """The WhiteBox settings that --attacks and --attack-set ask for; None: no attacks. Raises ConfigError."""
    from .evaluation.whitebox.settings import NAMES, WhiteBox

    settings = read_settings(args.attack_set)
    if args.attacks is None:
        if settings:
            raise ConfigError("--attack-set says how attacks are made: name them with --attacks.")
        return None
    names = NAMES if args.attacks == "all" else [name.strip() for name in args.attacks.split(",")]
    return WhiteBox.from_dict({**settings, "attacks": list(names)})


def keep_evaluation(source: FluxSource, args: argparse.Namespace) -> dict[str, Any]:
    """Makes an evaluation in --out, and what the command line prints of it. Raises ErasureError."""
    from .evaluation import EvaluationSpec, Subject, concept_of_loras, load_classifier
    from .evaluation.run import evaluate

    strengths = args.strength or [1.0]
    if len(strengths) not in (1, len(args.lora)):
        raise ConfigError(f"There are {len(args.lora)} LoRAs and {len(strengths)} strengths: give one for all or each.")
    strengths = strengths * len(args.lora) if len(strengths) == 1 else strengths
    subjects = [Subject(lora, strength) for lora, strength in zip(args.lora, strengths, strict=True)]
    counts = {
        name: value
        for name in ("images", "images_per_other", "images_per_attack", "batch_size", "prompts_limit", "seed")
        if (value := getattr(args, name)) is not None
    }
    if args.suite:
        counts["suites"] = tuple(suite for suite in args.suite if suite != "none")
    if args.detector:
        counts["detectors"] = tuple(args.detector)
    folder = Path(source.folder)
    own = load_classifier(folder) if (folder / "classifier").is_dir() else None  # knows styles and relations by name
    spec = EvaluationSpec(
        source,
        concept_of_loras(args.lora, args.concept or "", own),
        (*([Subject()] if args.deletion else []), *subjects),
        strengths=strengths_of(args.strengths) if args.strengths else (),
        heatmap=not args.no_heatmap,
        blur=args.blur,
        labels=tuple(args.label),
        prompts=tuple(args.prompts),
        distance=args.distance,
        reference=args.reference,
        white_box=white_box_of(args),
        **counts,
    )
    bars: list[tqdm] = []  # made at the first step: a mistake is one sentence, without a bar

    def progress(what: str, done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc="evaluate", unit="step"))
        bars[0].set_postfix_str(what, refresh=False)
        bars[0].total, bars[0].n = total, done
        bars[0].refresh()

    try:
        found = evaluate(spec, args.out, args.device, progress)
    finally:
        for bar in bars:
            bar.close()
    page = write_page(args.out, args.out / "report.html") if args.report else None
    shares = {suite["id"]: suite["results"] for suite in found["suites"]}
    return {
        "evaluation": str(args.out / "evaluation.json"),
        "report": page and str(page),
        "concept": spec.concept.phrase,
        "subjects": {
            subject["id"]: {n: shares[n][subject["id"]]["share"] if n in shares else None for n in SHARES}
            for subject in found["subjects"]
        },
        **({"white_box": [_white_box_line(each) for each in found["white_box"]]} if spec.white_box else {}),
    }


def _white_box_line(found: dict[str, Any]) -> dict[str, Any]:
    """An attack's shares of pictures that show the concept, and the prompts that did."""
    shares = {name: found[name]["share"] for name in ("base", "before", "after", "control")}
    prompts = [each["prompt"] for each in found["prompts"]]
    return {"subject": found["subject"], "attack": found["attack"], **shares, "prompts": prompts}


def write_page(folder: Path, out: Path) -> Path:
    """Makes the report of the evaluation in `folder` at `out`. Raises ErasureError."""
    from .evaluation import read_evaluation
    from .evaluation.report import write_report

    write_report(read_evaluation(folder), folder, out)
    return out


def evaluate_command(args: argparse.Namespace) -> dict[str, Any]:
    """`evaluate`'s result: a kept evaluation with --out, else the shares of one LoRA. Raises ErasureError."""
    if args.out:
        return keep_evaluation(source_of(args), args)
    more = (
        "strength",
        "deletion",
        "strengths",
        "concept",
        "images_per_attack",
        "batch_size",
        "no_heatmap",
        "blur",
        "report",
        "detector",
        "label",
        "suite",
        "prompts",
        "prompts_limit",
        "distance",
        "reference",
        "seed",
        "attacks",
        "attack_set",
    )
    if len(args.lora) != 1 or any(getattr(args, name) not in (None, False, "", []) for name in more):
        raise ConfigError("Name one --lora, or a folder with --out for everything else that evaluate can do.")
    lora = args.lora[0]
    return {"lora": str(lora), **measure(source_of(args), lora, args.device, args)}


def measure_trained(request: ErasureRequest, lora: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` after a training; nulls, and why on stderr, where there is nothing to measure with."""
    nothing = {**dict.fromkeys(SHARES), "base": None}
    if args.no_measure:
        return nothing
    try:
        return measure(request.source, lora, request.device, args)
    except ErasureError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return nothing


def show_memory(request: ErasureRequest) -> dict[str, Any]:
    """Writes how much memory each plan needs to stderr; returns `memory.overview`. Raises SourceError."""
    found = overview(request)
    for plan in found["ways"]:
        sign = "→" if plan["taken"] else " " if plan["fits"] else "✗"
        waiting = f", and {plan['waiting'] / GB:.1f} GB in the computer's memory" if plan["waiting"] else ""
        print(f"{sign} {plan['text']:40} {plan['need'] / GB:6.1f} GB{waiting}", file=sys.stderr)
    free = "unknown" if found["free"] is None else f"{found['free'] / GB:.1f} GB"
    print(f"free: {free}; →: the fastest that fits, ✗: does not fit", file=sys.stderr)
    return found


class Bar:
    """Turns a training's events into a progress bar and lines of text."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "step":
            if self.bar is None:
                self.bar = tqdm(total=event["total"], initial=event["step"] - 1, desc="train", unit="step")
            self.bar.set_postfix({k: f"{v:.4f}" for k, v in event["losses"].items()}, refresh=False)
            self.bar.update()
        elif event["type"] == "phase":
            tqdm.write(f"{event['phase']}: {event['message']}", file=sys.stderr)
        elif event["type"] == "notice":
            tqdm.write(event["message"], file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status (0: done, 1: one sentence on stderr says why not, 130: interrupted)."""
    from .parallel import ALONE, join, leave
    from .trainer import Stopped, run

    args = parser().parse_args(arguments)
    bar, group = Bar(), ALONE
    try:
        if args.command == "evaluate":
            result = evaluate_command(args)
        elif args.command == "report":
            result = {"report": str(write_page(args.folder, args.out or args.folder / "report.html"))}
        else:
            if args.command == "train":
                request = build_request(args)
                if args.estimate:
                    print(json.dumps(show_memory(request)))
                    return 0
                group = join()
                folder = job_folder(args.out, request.name)
                if group.leads:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_json(folder / "request.json", request.to_dict())
            else:
                request = find_request(args.out, args.name)
                folder, group = job_folder(args.out, request.name), join()
            result = run(request, folder, bar, group=group)
            bar.close()
            leave(group)
            if not group.leads:
                return 0
            result |= measure_trained(request, Path(result["lora"]), args)
    except ErasureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped):
        trains = args.command in ("train", "resume")
        hint = f"; go on with: python -m training.cli resume --out {args.out}" if trains else ""
        print(f"stopped{hint}", file=sys.stderr)
        return 130
    finally:
        bar.close()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
