"""What several test folders share: the demo model, and a real ComfyUI server with this pack in it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.environment import install_wordnet
from scripts.host import Host, get_host
from training.models.source import demo_model_folder

install_wordnet()  # finds what scripts/test.py has put in place; sets NLTK_DATA for this process and all it starts

Graph = dict[str, dict[str, Any]]

# They wait for browsers, servers and trainings for minutes: begun late, one of them would keep the others waiting at
# the end, when tests run several at a time (a file is always run by one process).
LONG_FILES = ("test_sidebar.py", "test_jobs_in_host.py", "test_cluster.py", "test_example_workflows.py")

DEMO = "demo (flux-emoji)"
A_TRAINING_OF_SECONDS = {
    "steps": 4,
    "erase_prompts": 2,
    "preserve_prompts": 2,
    "batch_erase": 1,
    "batch_preserve": 1,
    "sample_every": 2,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model, in diffusers layout."""
    folder = demo_model_folder()
    assert (folder / "model_index.json").is_file(), f"the demo model is missing in {folder}"
    return folder


@pytest.fixture(scope="session")
def host_folder() -> Path:
    """The ComfyUI to test with: COMFYUI_PATH, or the one of the scripts."""
    return get_host()


def end_workers(base: Path) -> None:
    """Ends training processes that a test left behind under a host's base directory."""
    for state_file in base.glob("user/__erase_anything/jobs/*/state.json"):
        state = json.loads(state_file.read_text(encoding="utf-8"))
        if state["state"] in ("starting", "running") and state["pid"] and psutil.pid_exists(state["pid"]):
            psutil.Process(state["pid"]).kill()


@pytest.fixture(scope="session")
def host(host_folder: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A running server on the CPU with a fresh base directory, shared by all tests: use names of your own in it."""
    base = tmp_path_factory.mktemp("comfyui")
    with Host(host_folder, base) as host:
        yield host
        end_workers(base)


@pytest.fixture
def own_host(host_folder: Path, demo_folder: Path, tmp_path: Path) -> Iterator[Host]:
    """A server for one test alone, not started yet: for tests that kill it, or fill its disk."""
    host = Host(host_folder, tmp_path / "comfyui")
    yield host
    host.stop(kill=True)
    end_workers(host.base)


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[str], AbstractContextManager[Path]]:
    """Mounts a real disk of a given size ("1m") as long as a with block runs; needs Linux and root."""

    @contextmanager
    def mount(size: str) -> Iterator[Path]:
        disk = tmp_path / "disk"
        disk.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
        if made.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    return mount


@pytest.fixture(scope="session")
def erase_graph() -> Callable[..., Graph]:
    """Makes a graph (API format) that erases `phrase`: Load Flux, Erasure Concept, Train, and Wait if asked for.

    Further arguments overrule widgets of the Train node. Nodes: "flux", "concept", "train", "wait".
    """

    def make(phrase: str, name: str, wait: bool = True, **settings: Any) -> Graph:
        words = {"kind": "entity", "template": "", "synonyms": "-", "irrelevant": "house, tree, apple", "word_seed": 0}
        train = {
            "method": "eraseanything",
            "rank": 4,
            "targets": "text_qk",
            "eta": 1.0,
            "random_strength": False,
            "training_seed": 0,
            **A_TRAINING_OF_SECONDS,
            **settings,
        }
        graph = {
            "flux": node("EraseAnything_LoadFlux", model=DEMO, precision="fp32"),
            "concept": node("EraseAnything_Concept", phrase=phrase, **words),
            "train": node("EraseAnything_Train", flux=["flux", 0], concept=["concept", 0], name=name, **train),
        }
        for file in ("transformer", "clip_l", "t5", "vae"):
            graph["flux"]["inputs"][file] = "none"
        if wait:
            graph["wait"] = node("EraseAnything_Wait", job=["train", 0])
            graph["show"] = node("PreviewAny", source=["wait", 0])
        return graph

    return make


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a graph in API format."""
    return {"class_type": class_type, "inputs": inputs}
