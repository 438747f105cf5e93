"""Runs mypy over training/ and nodes/: `python scripts/check_types.py [mypy's arguments]`; needs the tests' `.venv`.

The pack is imported relatively, from a package that is named after its folder, and most folders under custom_nodes have
a hyphen in their name, which no package may have for mypy. So mypy sees the pack through a link of a fitting name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, venv_python

PACKAGE = "erase_anything"
PARTS = ("__init__.py", "nodes", "training")


def link_package(folder: Path) -> None:
    """Puts the pack into `folder` as the package `PACKAGE`: links, or copies where links are not possible."""
    package = folder / PACKAGE
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for name in PARTS:
        source, target = ROOT / name, package / name
        try:
            target.symlink_to(source, target_is_directory=source.is_dir())
        except OSError:  # Windows without developer mode
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)


def check_types(arguments: list[str]) -> int:
    """mypy's exit status; paths in its messages start with `PACKAGE`, which stands for the root of the repository."""
    folder = ROOT / "build" / "types"
    link_package(folder)
    command = [str(venv_python()), "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *arguments]
    return subprocess.call([*command, "-p", f"{PACKAGE}.training", "-p", f"{PACKAGE}.nodes"], cwd=folder)


if __name__ == "__main__":
    sys.exit(check_types(sys.argv[1:]))
