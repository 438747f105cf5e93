"""Makes this checkout's own `.venv` and installs into it what is missing. Standard library only; any OS.

What was installed is remembered by a hash of what was asked for (`.venv/.installed/<name>`), so a second run asks pip
nothing. Nothing outside the checkout is changed, except Debian packages when the tests run as root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
NLTK_DATA = CACHE / "nltk_data"
WORDNET_PACKAGES = ("wordnet-base", "wordnet-sense-index")


class SetupError(Exception):
    """Setting up failed: one clear sentence that says what to do."""


def say(message: str) -> None:
    """One line of progress, at once even when the output is a pipe."""
    print(f"· {message}", flush=True)


def venv_python() -> Path:
    """The interpreter of `.venv`, whether or not it exists yet."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def inside_venv() -> bool:
    """Whether this very process is run by `.venv`'s interpreter."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def run_inside_venv() -> None:
    """Runs this script again with `.venv`'s interpreter and exits with its status, unless it already runs there.

    The working folder stays: paths on the command line are relative to it.
    """
    if inside_venv():
        return
    try:
        sys.exit(subprocess.call([str(venv_python()), *sys.argv]))
    except KeyboardInterrupt:
        sys.exit(130)


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver reports a GPU; torch need not be installed."""
    command = shutil.which("nvidia-smi")
    return bool(command) and subprocess.run([command, "-L"], capture_output=True).returncode == 0


def make_venv() -> None:
    """Creates `.venv` with the running interpreter where it is missing."""
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts a script may have any Python
        version = sys.version.split()[0]
        raise SetupError(f"Python 3.10 or newer is needed, this is {version}: run the script with a newer one.")
    if venv_python().exists():
        return
    say("making .venv")
    if subprocess.call([sys.executable, "-m", "venv", str(VENV)]) != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError("Python could not make .venv: on Debian and Ubuntu install python3-venv, then run this again.")


def pip_install(name: str, arguments: Sequence[str]) -> None:
    """`pip install` into `.venv`; `name` is for the message. Raises SetupError when pip fails."""
    command = [str(venv_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.call(command, cwd=ROOT) != 0:
        raise SetupError(f"pip could not install {name} (its words are above): check the network and run this again.")


def install(name: str, *groups: Sequence[str], files: Sequence[Path] = ()) -> None:
    """Runs `pip install` for each group of arguments, unless it was done before with the same arguments and files.

    `name` tells one set of packages from another in `.venv/.installed`. Raises SetupError when pip fails.
    """
    text = repr([sys.version_info[:2], groups, [path.read_text(encoding="utf-8") for path in files]])
    digest = hashlib.sha256(text.encode()).hexdigest()
    stamp = VENV / ".installed" / name
    if stamp.exists() and stamp.read_text() == digest:
        return
    say(f"installing {name}")
    for arguments in groups:
        pip_install(name, arguments)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)


def torch_constraint() -> list[str]:
    """pip's arguments that keep torch as it is: the pinned version without a GPU, none with one."""
    return [] if has_nvidia_gpu() else ["-c", str(CONSTRAINTS)]


def install_requirements(tests: bool = False) -> None:
    """Makes `.venv` and puts torch, requirements.txt and (for `tests`) requirements-dev.txt into it."""
    make_venv()
    files = [ROOT / "requirements.txt"] + ([ROOT / "requirements-dev.txt"] if tests else [])
    arguments = ["torch", *torch_constraint()]
    for path in files:
        arguments += ["-r", str(path)]
    install("test requirements" if tests else "requirements", arguments, files=[*files, CONSTRAINTS])


def install_debian(packages: Sequence[str]) -> bool:
    """Installs Debian packages when root and apt-get are there; returns whether all are installed afterwards."""

    def missing() -> list[str]:
        query = ["dpkg-query", "-W", "-f", "${Status}"]
        found = [subprocess.run([*query, name], capture_output=True, text=True).stdout for name in packages]
        return [name for name, status in zip(packages, found, strict=True) if "install ok installed" not in status]

    if not shutil.which("apt-get"):
        return False
    wanted = missing()
    if wanted and hasattr(os, "geteuid") and os.geteuid() == 0:
        say(f"installing Debian packages: {', '.join(wanted)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *wanted]):
            subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL)
        wanted = missing()
    return not wanted


def install_wordnet() -> None:
    """Puts WordNet's data where NLTK finds them: out of Debian's packages where possible, else by NLTK's own download.

    Sets NLTK_DATA for this process and those it starts. Without WordNet everything works but the automatic words, so
    a failure is only said.
    """
    parts = [str(NLTK_DATA), os.environ.get("NLTK_DATA", "")]
    os.environ["NLTK_DATA"] = os.pathsep.join(part for part in parts if part)
    python = str(venv_python())
    check = "import sys; from training.concepts import wordnet; sys.exit(0 if wordnet.available() else 1)"
    if (NLTK_DATA / "corpora" / "wordnet" / "lexnames").exists() or subprocess.call(
        [python, "-c", check], cwd=ROOT
    ) == 0:
        return
    say("getting WordNet")
    if install_debian(WORDNET_PACKAGES):
        code = f"from training.concepts.wordnet import assemble_wordnet; assemble_wordnet({str(NLTK_DATA)!r})"
        command = [python, "-c", code]
    else:
        command = [python, "-m", "nltk.downloader", "-q", "-d", str(NLTK_DATA), "wordnet"]
    subprocess.call(command, cwd=ROOT)
    if subprocess.call([python, "-c", check], cwd=ROOT) != 0:
        say("WordNet could not be had: write synonyms and irrelevant words into the Erasure Concept node by hand")
