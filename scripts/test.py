"""Sets up everything the tests need and runs them all: `python scripts/test.py [pytest's arguments]`.

Makes .venv, gets a ComfyUI host (or takes COMFYUI_PATH), on Debian as root also Chromium and WordNet; the second time
all of it is there. The exit status is 0 exactly when ruff finds nothing to correct or format, mypy finds no wrong
type and every test passes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.check_types import check_types
from scripts.environment import (
    ROOT,
    WORDNET_PACKAGES,
    SetupError,
    install_debian,
    install_requirements,
    install_wordnet,
    say,
    venv_python,
)
from scripts.host import get_host

# Three at a time, on two cores too, since a browser or a server keeps its test waiting half of the time; file by file,
# since the tests of a file share what it has made; in order, so that the long ones come first. `-n 0` switches it off.
AT_A_TIME = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]


def main() -> int:
    """Runs ruff (lint and format), mypy, then pytest with this script's arguments; a failed one's exit status."""
    try:
        with ThreadPoolExecutor() as pool:  # apt-get and pip wait for the network, not for each other
            debian = pool.submit(install_debian, ["chromium", *WORDNET_PACKAGES])
            install_requirements(tests=True)
        if not debian.result():
            say("no apt-get, or not root: the browser tests need Chromium, installed by hand")
        install_wordnet()
        get_host()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    python = str(venv_python())
    # passive: a thread of torch's that waits for another one leaves its core to the other tests
    environment = {**os.environ, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    # servers and workers are started a hundred times: they need not compile the host and the pack each time
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    lint = subprocess.call([python, "-m", "ruff", "check", "."], cwd=ROOT)
    lint |= subprocess.call([python, "-m", "ruff", "format", "--check", "--quiet", "."], cwd=ROOT)
    lint |= check_types([])
    tests = subprocess.call([python, "-m", "pytest", *AT_A_TIME, *sys.argv[1:]], cwd=ROOT, env=environment)
    return tests or lint


if __name__ == "__main__":
    sys.exit(main())
