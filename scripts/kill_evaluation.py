"""Kills an evaluation without warning and checks that nothing is lost: `python scripts/kill_evaluation.py --times 10`.

Runs one small `evaluate` with white-box attacks on the demo model twice: left alone, and killed (as kill -9 does it) at
random moments of its whole course, started again each time. The evaluation.json of both must be the same to the last
byte, but for its part "run", and so must all pictures. Prints one JSON object; the exit status is 0 when it held.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, SetupError, install_requirements, run_inside_venv
from scripts.kill_jobs import request_into

STEPS = 4  # of the LoRA's training
SMALL = (
    "--deletion",
    "--strengths",
    "0,0.5,1",
    "--images",
    "3",
    "--images-per-attack",
    "1",
    "--suite",
    "attacks",
    "--batch-size",
    "2",
    "--attacks",
    "all",
    "--attack-set",
    "images=2",
    "--attack-set",
    "judged=1",
    "--attack-set",
    "targets=1",
    "--attack-set",
    "tries=1",
    "--attack-set",
    "steps=4",
    "--attack-set",
    "candidates=3",
)


def train(folder: Path) -> Path:
    """A LoRA that has only begun to learn, so that attacks on it find something."""
    from training.trainer import run

    return Path(run(request_into(folder, STEPS), folder / "work", lambda event: None)["lora"])


def start(lora: Path, out: Path, log: Path) -> subprocess.Popen:
    """The command, beginning or going on."""
    from training.models.source import demo_source

    source = demo_source("fp32")
    command = [sys.executable, "-m", "training.cli", "evaluate", "--source", source.folder, "--precision", "fp32"]
    with log.open("a") as file:
        return subprocess.Popen(
            [*command, "--device", "cpu", "--lora", str(lora), *SMALL, "--out", str(out)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def kept(out: Path) -> list[Path]:
    """The files of an evaluation that is under way, in the order in which they were written."""
    files = [path for path in out.rglob("*") if path.suffix in (".json", ".png") and path.name[0] != "."]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def finish(process: subprocess.Popen, log: Path) -> None:
    """Waits for the end; SetupError with what was said where it failed."""
    if process.wait():
        raise SetupError(f"The evaluation failed: {log.read_text()[-2000:]}")


def result_of(out: Path) -> tuple[str, dict[str, bytes]]:
    """evaluation.json without "run", and the pictures."""
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    del found["run"]
    pictures = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}
    return json.dumps(found, ensure_ascii=False), pictures


def measure(times: int, seed: int, folder: Path) -> dict[str, object]:
    """The evaluation left alone, and killed `times` times."""
    draw, lora, log = random.Random(seed), train(folder / "lora"), folder / "log.txt"
    began = time.monotonic()
    finish(start(lora, folder / "alone", log), log)
    alone = round(time.monotonic() - began, 1)
    moments = [path.stat().st_mtime for path in kept(folder / "alone")]
    out, kills, began = folder / "killed", 0, time.monotonic()
    at = sorted(draw.sample(range(1, len(moments) - 1), times))
    for files in at:  # somewhere between the writing of this file and of the next one
        process = start(lora, out, log)
        while len(kept(out)) < files and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * (moments[files] - moments[files - 1]))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    finish(start(lora, out, log), log)
    (first, before), (second, after) = (result_of(folder / name) for name in ("alone", "killed"))
    return {
        "seed": seed,
        "kills": kills,
        "at_files": at,
        "files": len(moments),
        "identical": first == second,
        "pictures": len(before),
        "same_pictures": before == after,
        "seconds_alone": alone,
        "seconds_killed": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often it is killed")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: another one each time)")
    args = parser.parse_args()
    try:
        install_requirements(tests=True)
        run_inside_venv()
        seed = random.randrange(10**6) if args.seed is None else args.seed
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args.times, seed, Path(folder))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if result["identical"] and result["same_pictures"] and result["kills"] == args.times else 1


if __name__ == "__main__":
    sys.exit(main())
