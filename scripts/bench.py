"""Measures what the README claims: `python scripts/bench.py erasure` trains and judges concepts on the demo model.

Runs in .venv (made by scripts/test.py or scripts/demo.py). Results go to benchmarks/<name>.json with date and machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, SetupError, install_requirements, install_wordnet, run_inside_venv, say

CONCEPTS = ("car", "penguin", "rose", "guitar", "castle", "pizza", "robot", "butterfly")
RESULTS = ROOT / "benchmarks"


def machine() -> dict[str, object]:
    """What a timing depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "machine": platform.machine(), "gpu": gpu, "torch": torch.__version__}


def erase_one(source, noun: str, seed: int, settings: dict, base: dict, folder: Path, args: argparse.Namespace) -> dict:
    """Train on one noun with the settings (default: the pack's) and measure it; one row of the table.

    `base` collects what the untrained model shows.
    """
    from transformers import AutoTokenizer

    from training.concepts import Concept, make_concept, vocabulary_of
    from training.config import ErasureConfig, ErasureRequest
    from training.evaluation import load_classifier, measure_erasure
    from training.flux.loading import load_parts
    from training.lora.format import read_lora
    from training.trainer import run

    tokenizer = AutoTokenizer.from_pretrained(Path(source.folder) / "tokenizer_2", local_files_only=True)
    concept = make_concept(noun, seed=seed, vocabulary=vocabulary_of(tokenizer))
    config = ErasureConfig.from_dict({**settings, "seed": seed})
    request = ErasureRequest(source, concept, config, f"{noun.replace(' ', '_')}-{seed}", str(folder), args.device)
    result = run(request, folder / f"{request.name}.training", lambda event: None)
    parts = load_parts(source, args.device)
    weights, _ = read_lora(Path(result["lora"]))
    score = measure_erasure(
        parts, load_classifier(Path(source.folder)), Concept.from_dict(result["concept"]), weights,
        images=args.images, images_per_other=args.images_per_other, base=base,
    )  # fmt: skip
    return {"concept": noun, "seed": seed, "seconds": round(result["seconds"], 1), **score.to_dict()}


def erasure(args: argparse.Namespace) -> None:
    """Acc_e, Acc_g and Acc_ir (held-out nouns, and those that preservation prompts held) for concepts × seeds."""
    from training.flux.source import FluxSource, demo_model_folder

    settings = {}
    for item in args.set:
        name, _, value = item.partition("=")
        settings[name] = json.loads(value)
    source = FluxSource("diffusers", folder=str(args.source or demo_model_folder()))
    rows, base = [], {}
    print(f"{'concept':12s} seed   Acc_e         Acc_g         Acc_ir        Acc_ir seen   seconds")
    with tempfile.TemporaryDirectory() as folder:
        for noun in args.concepts.split(","):
            for seed in range(args.seeds):
                row = erase_one(source, noun, seed, settings, base, Path(folder), args)
                rows.append(row)
                shares = (row[name] for name in ("acc_e", "acc_g", "acc_ir", "acc_ir_seen"))
                cells = "  ".join(f"{s['before']:.3f}→{s['after']:.3f}" for s in shares)
                print(f"{noun:12s} {seed:4d}   {cells}   {row['seconds']:7.1f}", flush=True)
    summary = {}
    for name in ("acc_e", "acc_g", "acc_ir", "acc_ir_seen"):
        after = [row[name]["after"] for row in rows]
        summary[name] = {
            "before": round(statistics.mean(row[name]["before"] for row in rows), 4),
            "after": round(statistics.mean(after), 4),
            "worst": min(after) if name.startswith("acc_ir") else max(after),
            "spread": round(statistics.pstdev(after), 4),
        }
    summary["seconds"] = {"mean": statistics.mean(r["seconds"] for r in rows), "max": max(r["seconds"] for r in rows)}
    write(args.name, {"settings": settings, "summary": summary, "rows": rows})
    print(json.dumps(summary))


def write(name: str, result: dict) -> None:
    """Save a result with its date and machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    facts = {"date": datetime.date.today().isoformat(), "command": " ".join(sys.argv[1:]), "machine": machine()}
    path.write_text(json.dumps({**facts, **result}, indent=1) + "\n", encoding="utf-8")
    say(f"written to {path.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("erasure", help=erasure.__doc__)
    one.add_argument("--concepts", default=",".join(CONCEPTS), help="nouns of the demo model, separated by commas")
    one.add_argument("--seeds", type=int, default=1, help="trainings per concept")
    one.add_argument("--images", type=int, default=24, help="images of the noun, and about as many of its synonyms")
    one.add_argument("--images-per-other", type=int, default=3)
    one.add_argument("--source", type=Path, help="another model folder that has a classifier")
    one.add_argument("--device", default="auto")
    one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting")
    one.add_argument("--name", default="erasure", help="of the result file")
    one.set_defaults(run=erasure)
    args = parser.parse_args()
    try:
        install_requirements(tests=True)
        install_wordnet()
        run_inside_venv()
        args.run(args)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
