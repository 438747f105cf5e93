"""The worker process of one job, started by path: `python -s worker.py JOB_FOLDER`. What it does is in runner.py."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path; the pack's root, where `training` is, must take its place.
    here = Path(__file__).resolve().parent  # resolved, or a pack that is a link would keep its folder on the path
    sys.path[:] = [str(here.parents[1]), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]
    sys.exit(importlib.import_module("training.jobs.runner").main(sys.argv[1:]))
