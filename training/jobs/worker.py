"""The training process of one job, started by path: `python -s worker.py JOB_FOLDER`. What it does is in runner.py."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path; the pack's root, where `training` is, must take its place.
    root = Path(__file__).resolve().parents[2]
    sys.path[:] = [str(root), *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent)]
    sys.exit(importlib.import_module("training.jobs.runner").main(sys.argv[1:]))
