"""Shows the pack on a machine with nothing but Python: `python scripts/demo.py`, then open the address it prints.

Makes .venv, gets a ComfyUI host (or uses --comfyui PATH), links this pack into it and starts it; the example workflows
are in the template browser. `--headless` runs the first example workflow through the server instead, training included,
measures how well the concept is gone, writes before_after.png into the current folder, prints JSON as its last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import (
    CACHE,
    ROOT,
    SetupError,
    has_nvidia_gpu,
    install_requirements,
    install_wordnet,
    run_inside_venv,
    say,
)
from scripts.host import PACK_NAME, Host, HostError, get_host

JOBS = "/erase_anything/v1/jobs"
BASE = CACHE / "demo"  # the host's models, outputs and settings; kept between runs
HEADLESS_BASE = CACHE / "demo-headless"  # the same for --headless, made afresh each time
TRAINING_LIMIT = 3600  # seconds


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", metavar="PATH", help="your own ComfyUI instead (nothing in it is changed)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "gpu"], default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--headless", action="store_true", help="run the first example workflow, measure, print JSON")
    parser.add_argument("--keep", action="store_true", help="with --headless: leave the server running afterwards")
    return parser.parse_args()


def main() -> int:
    """Runs the demo; the exit status says whether it worked."""
    arguments = parse()
    began = time.monotonic()
    try:
        install_requirements()
        run_inside_venv()  # from here on the pack's own libraries can be imported
        install_wordnet()
        folder = get_host(arguments.comfyui)
        base = HEADLESS_BASE if arguments.headless else BASE
        if arguments.headless:
            shutil.rmtree(base, ignore_errors=True)
        host = Host(folder, base, arguments.port, cpu=use_cpu(arguments.device))
        say("starting ComfyUI")
        host.start()
        return headless(host, arguments.keep, began) if arguments.headless else interactive(host)
    except (SetupError, HostError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def use_cpu(device: str) -> bool:
    """Whether to start the host with --cpu."""
    if device == "auto":
        return sys.platform != "darwin" and not has_nvidia_gpu()
    return device == "cpu"


def interactive(host: Host) -> int:
    """Keeps the server until Ctrl+C."""
    try:
        print(f"\nOpen {host.url} - the example workflows are under Workflow > Browse Templates > {PACK_NAME}.")
        print(
            "Ctrl+C ends the server. Trainings that still run go on, and are found again at the next start.", flush=True
        )
        host.process.wait()
        raise HostError(f"ComfyUI ended:\n{host.log_tail()}")
    except KeyboardInterrupt:
        return 0
    finally:
        host.stop()


def headless(host: Host, keep: bool, began: float) -> int:
    """Runs the first example workflow to its end, measures, and prints the result as the last line."""
    from training.errors import ErasureError

    try:
        workflow = min((ROOT / "example_workflows").glob("*.json"))
        prompt = host.convert(json.loads(workflow.read_text(encoding="utf-8")))
        node_ids = {node["class_type"]: node_id for node_id, node in prompt.items()}
        say(f"running {workflow.stem}")
        prompt_id = host.queue(prompt)
        follow(host)
        history = host.wait(prompt_id, TRAINING_LIMIT)
        job_id = history["outputs"][node_ids["EraseAnything_Train"]]["job"][0]
        image = Path("before_after.png").resolve()
        image.write_bytes(view(host, history["outputs"][node_ids["EraseAnything_Compare"]]["images"][0]))
        job = host.get(f"{JOBS}/{job_id}")
        lora = host.base / "models" / "loras" / job["lora"]
        events = host.get(f"{JOBS}/{job_id}/events")["events"]
        say("measuring")
        accuracies = measure(host.base / "user" / "__erase_anything" / "jobs" / job_id, lora)
        result = {
            "concept": job["concept"],
            **accuracies,
            "train_seconds": next(e["seconds"] for e in reversed(events) if e["type"] == "completed"),
            "total_seconds": round(time.monotonic() - began, 1),
            "lora": str(lora),
            "image": str(image),
        }
    except BaseException as error:
        cancel_all(host)
        host.stop()
        if isinstance(error, ErasureError):
            raise HostError(str(error)) from error
        raise
    if keep:
        say(f"the server goes on at {host.url} (process {host.process.pid})")
    else:
        host.stop()
    print(json.dumps(result), flush=True)
    return 0


def follow(host: Host) -> None:
    """Prints the progress of the one job until it has ended."""
    told, deadline = "", time.monotonic() + TRAINING_LIMIT
    while time.monotonic() < deadline:
        queue = host.get("/queue")
        jobs = host.get(JOBS)["jobs"]
        if not jobs and not queue["queue_running"] and not queue["queue_pending"]:
            return  # refused before there was a job: wait() says why
        if jobs:
            job = jobs[0]
            line = f"{job['state']} {job['message']}".strip()
            if job["state"] == "running" and job["step"]:
                line = f"step {job['step'] // 20 * 20} of {job['total']}"
            if line != told:
                say(line)
                told = line
            if job["state"] in ("completed", "failed", "cancelled", "interrupted"):
                return
        time.sleep(0.5)


def measure(job: Path, lora: Path) -> dict[str, dict[str, float]]:
    """acc_e, acc_g and acc_ir, each before and after, 0..1, judged by the classifier that comes with the model.

    Raises ErasureError where the model has none.
    """
    from training.concepts import Concept
    from training.evaluation import load_classifier, measure_erasure
    from training.lora.format import read_lora
    from training.models.loading import load_parts
    from training.models.source import FluxSource

    source = FluxSource.from_dict(json.loads((job / "job.json").read_text(encoding="utf-8"))["request"]["source"])
    concept = Concept.from_dict(json.loads((job / "result.json").read_text(encoding="utf-8"))["concept"])
    classifier = load_classifier(Path(source.folder))
    score = measure_erasure(load_parts(source), classifier, concept, read_lora(lora)[0]).to_dict()
    return {
        name: {moment: score[name][moment] for moment in ("before", "after")} for name in ("acc_e", "acc_g", "acc_ir")
    }


def view(host: Host, image: dict[str, str]) -> bytes:
    """The bytes of a picture that a node has shown."""
    status, data = host.request("GET", f"/view?{urllib.parse.urlencode(image)}")
    if status != 200:
        raise HostError(f"The picture {image['filename']} could not be fetched: {status}")
    return data


def cancel_all(host: Host) -> None:
    """Leaves no training behind when the demo fails or is stopped."""
    with contextlib.suppress(HostError, OSError):
        for job in host.get(JOBS)["jobs"]:
            with contextlib.suppress(HostError):
                host.post(f"{JOBS}/{job['id']}/cancel", {})


if __name__ == "__main__":
    sys.exit(main())
