"""The door to the benchmarks: sets .venv up and runs `python -m benchmarks` in it with the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import SetupError, inside_venv, install_requirements, run_inside_venv

if __name__ == "__main__":
    try:
        if not inside_venv():
            install_requirements(tests=True)
            run_inside_venv()
    except SetupError as error:
        sys.exit(str(error))
    from benchmarks.__main__ import main

    sys.exit(main())
