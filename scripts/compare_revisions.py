"""Whether two revisions compute the same: `python scripts/compare_revisions.py OLD [NEW]`, git revisions or folders.

Both run the same fixed requests through their command lines, on the CPU with one thread: a training of four steps for
every method and kind of concept, merges in every mode, an evaluation with its pictures. What they write is compared
byte by byte, figures number by number. NEW is this checkout where it is left out. The exit status is 0 exactly
when nothing differs. Standard library only; the requests run in this checkout's .venv (made by scripts/test.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import NLTK_DATA, ROOT, say, venv_python

SMALL = {
    "steps": 4,
    "erase_prompts": 4,
    "preserve_prompts": 6,
    "sampling_steps": 8,
    "sample_every": 4,
    "sample_count": 1,
    "checkpoint_every": 2,
}
# Words are given, so that a change of the words that are chosen is no change of what is computed.
CAR = (
    "car",
    "--kind",
    "entity",
    "--synonym",
    "automobile",
    "--irrelevant",
    "dog",
    "--irrelevant",
    "boat",
    "--irrelevant",
    "rose",
    "--preserve",
    "a dog",
    "--preserve",
    "a photo of a boat",
)
STYLE = (
    "fluent",
    "--kind",
    "abstraction",
    "--no-synonyms",
    "--irrelevant",
    "noto",
    "--irrelevant",
    "twemoji",
    "--irrelevant",
    "openmoji",
    "--preserve",
    "a dog",
    "--preserve",
    "a cat in the style of noto",
)
RELATION = (
    "above",
    "--kind",
    "relationship",
    "--no-synonyms",
    "--irrelevant",
    "below",
    "--irrelevant",
    "next to",
    "--preserve",
    "a dog",
    "--preserve",
    "a dog next to a cat",
)
TRAININGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "eraseanything": (CAR, {}),
    "one-level": (CAR, {"bilevel": "false", "weight_rsc": 0.1, "refresh_every": 2}),
    "esd": (CAR, {"method": "esd"}),
    "concept_ablation": (CAR, {"method": "concept_ablation"}),
    "gem": (CAR, {"method": "gem"}),
    "random-strength": (CAR, {"random_strength": "true", "gradient_checkpointing": "on"}),
    "style": (STYLE, {}),
    "relation": (RELATION, {}),
}
MERGES = ("fusion", "sum", "normalised", "concat", "svd")
UNLIKE = {"seconds", "date", "created", "command", "versions", "run", "file", "sha256", "time", "lora", "device"}


def requests(out: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, command after the interpreter) of every request, in an order in which each finds what it needs."""
    model = ["--source", "example_models/flux-emoji", "--device", "cpu"]
    for name, (concept, settings) in TRAININGS.items():
        chosen = [part for key, value in {**SMALL, **settings}.items() for part in ("--set", f"{key}={value}")]
        yield (
            name,
            [
                "-m",
                "training.cli",
                "train",
                *model,
                "--concept",
                *concept,
                "--out",
                str(out),
                "--name",
                name,
                "--no-measure",
                "--seed",
                "0",
                *chosen,
            ],
        )
    files = [str(out / f"{name}.safetensors") for name in ("eraseanything", "style", "gem")]
    for mode in MERGES:
        more = ["--rank", "4"] if mode == "svd" else []
        merged = str(out / f"merged-{mode}.safetensors")
        yield f"merge {mode}", ["-m", "training.lora", "merge", *files, "--mode", mode, *more, "--out", merged]
    yield (
        "evaluate",
        [
            "-m",
            "training.cli",
            "evaluate",
            *model,
            "--lora",
            files[0],
            "--deletion",
            "--strengths",
            "0,1",
            "--images",
            "2",
            "--images-per-other",
            "1",
            "--images-per-attack",
            "1",
            "--out",
            str(out / "evaluation"),
            "--report",
        ],
    )


def run(tree: Path, out: Path) -> None:
    """All requests by the code in `tree`, their files into `out`. Raises SystemExit where one fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(tree),
        "NLTK_DATA": str(NLTK_DATA),
        "PYTHONUTF8": "1",
    }
    for name, command in requests(out):
        say(f"{tree.name}: {name}")
        done = subprocess.run([str(venv_python()), *command], cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed in {tree}:\n{done.stderr[-4000:]}")


def read(path: Path) -> dict[str, Any]:
    """What is compared of a file: tensors and metadata of a safetensors file, the figures of JSON, else a hash."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        metadata = header.pop("__metadata__", {})
        found: dict[str, Any] = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            digest = hashlib.sha256(data[end + first : end + last]).hexdigest()
            found[name] = f"{entry['dtype']} {entry['shape']} {digest}"
        for name, text in metadata.items():
            try:
                found |= dict(leaves(json.loads(text), f"metadata/{name}"))
            except ValueError:
                found[f"metadata/{name}"] = text
        return found
    if path.suffix == ".json":
        return dict(leaves(json.loads(data), ""))
    return {"": hashlib.sha256(data).hexdigest()}


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf but times and the places of files."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in UNLIKE:
                yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{number}")
    else:
        yield path, value


def differences(old: Path, new: Path, values_only: bool) -> list[str]:
    """One line for every file that differs. values_only: names in JSON may differ, the values in them not."""
    skipped = {"request.json"}  # holds paths

    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {
            name
            for name in found
            if Path(name).suffix in (".safetensors", ".json", ".png") and Path(name).name not in skipped
        }

    lines = [f"only in {'OLD' if name in files(old) else 'NEW'}: {name}" for name in sorted(files(old) ^ files(new))]
    for name in sorted(files(old) & files(new)):
        one, other = read(old / name), read(new / name)
        if values_only and name.endswith(".json"):
            one, other = ({str(n): v for n, v in enumerate(sorted(map(repr, d.values())))} for d in (one, other))
        wrong = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        if wrong:
            lines.append(
                f"{name}: {len(wrong)} of {len(one)} differ, first {wrong[0] or 'the bytes'}: "
                f"{str(one.get(wrong[0]))[:80]} | {str(other.get(wrong[0]))[:80]}"
            )
    return lines


def tree_of(revision: str, scratch: Path) -> Path:
    """A folder with the revision's files: itself where it is one, else a worktree below `scratch`."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    folder = scratch / f"tree-{revision.replace('/', '-')}"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), revision], cwd=ROOT, check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", help="a git revision or a folder")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="another one (default: this checkout)")
    parser.add_argument("--values-only", action="store_true", help="names in JSON files may differ, their values not")
    parser.add_argument("--keep", type=Path, help="a folder for what both have written, which is kept")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="compare-"))
    outs = [(args.keep or scratch) / name for name in ("old", "new")]
    try:
        for revision, out in zip((args.old, args.new), outs, strict=True):
            if not out.exists():  # kept from an earlier run
                out.mkdir(parents=True)
                run(tree_of(revision, scratch), out)
        lines = differences(*outs, args.values_only)
    finally:
        for folder in scratch.glob("tree-*"):
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT)
        shutil.rmtree(scratch, ignore_errors=True)
    print("\n".join(lines) or "Nothing differs.")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
