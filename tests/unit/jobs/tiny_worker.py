"""A worker process for the job tests: the real runner around a training that only counts.

Its pace and its mishaps come from the concept's template, which the counting has no other use for:
"{} at 0.05" sleeps 0.05 s a step, "{} full at 3" meets a full disk in step 3, "{} deaf" never looks whether to stop,
"{} stuck at 3" takes a minute for step 3.
"""

import errno
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from training.errors import SourceError
from training.jobs.runner import run_job


class Stopped(Exception):
    """As trainer.Stopped."""


def count(request, folder, report, should_stop):
    """Adds one per step, from the last checkpoint on; the "LoRA" is a text file with the sum and the steps taken."""
    manner = request.concept.template
    pace = float((re.search(r" at (0\.\d+)", manner) or [0, 0])[1])
    checkpoint = folder / "checkpoints" / "count.json"
    done = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    report({"type": "phase", "phase": "train", "message": "counting"})
    for step in range(len(done) + 1, request.config.steps + 1):
        if should_stop() and "deaf" not in manner:
            raise Stopped
        if f"full at {step}" in manner:
            raise OSError(errno.ENOSPC, "No space left on device")
        if f"missing at {step}" in manner:
            raise SourceError("The file is missing: put it back.")
        if f"bug at {step}" in manner:
            raise ZeroDivisionError("division by zero")
        time.sleep(60 if f"stuck at {step}" in manner else pace)
        done.append(step)
        scratch = checkpoint.with_suffix(".tmp")
        scratch.write_text(json.dumps(done))
        os.replace(scratch, checkpoint)
        report({"type": "step", "step": step, "total": request.config.steps, "losses": {"esd": 1 / step}})
    lora = Path(request.output_folder) / f"{request.name}.safetensors"
    lora.write_text(json.dumps(done))
    report({"type": "completed", "lora": lora.name, "seconds": 0.0})
    return {"lora": lora.name}


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1]), count, Stopped))
