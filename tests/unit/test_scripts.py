"""The set-up scripts: what they link, remember and say."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import environment, host
from scripts.environment import ROOT


@pytest.mark.parametrize("script", ["bench", "bench_jobs", "bench_merge", "demo", "pictures", "soak"])
def test_help_is_printed(script: str):
    told = subprocess.run([sys.executable, ROOT / "scripts" / f"{script}.py", "--help"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("usage:")


def test_the_pack_is_linked_again_and_again(tmp_path):
    for _ in range(2):
        place = host.link_pack(tmp_path)
        assert place.parent == tmp_path / "custom_nodes"
        assert (place / "__init__.py").samefile(ROOT / "__init__.py")


def test_the_pack_is_copied_where_links_are_not_possible(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        place = host.link_pack(tmp_path)
        assert not place.is_symlink()
        assert (place / "nodes" / "train.py").read_bytes() == (ROOT / "nodes" / "train.py").read_bytes()
        assert not (place / ".git").exists()
        assert not (place / ".venv").exists()


def test_what_was_installed_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "VENV", tmp_path)
    calls = []
    monkeypatch.setattr(environment, "pip_install", lambda name, arguments: calls.append((name, arguments)))
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("einops\n")
    for _ in range(3):
        environment.install("things", ["-r", str(wanted)], files=[wanted])
    assert calls == [("things", ["-r", str(wanted)])]
    wanted.write_text("einops\nyarl\n")
    environment.install("things", ["-r", str(wanted)], files=[wanted])
    assert len(calls) == 2


def test_a_failed_install_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "VENV", tmp_path)
    monkeypatch.setattr(environment.subprocess, "call", lambda *_, **__: 1)
    for _ in range(2):
        with pytest.raises(environment.SetupError, match="pip could not install things"):
            environment.install("things", ["no-such-thing"])


def test_a_folder_that_is_no_comfyui(tmp_path):
    with pytest.raises(environment.SetupError, match=r"is no ComfyUI checkout \(main.py is missing\)"):
        host.get_host(str(tmp_path))


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(host.HostError, match=f"Port {port} is in use: stop what listens there"):
            host.Host(tmp_path, tmp_path / "base", port).start()


def test_project_names_of_requirements():
    names = [host._project(line) for line in ("torch", "numpy>=1.25.0", "pydantic~=2.0", "comfyui-frontend-package==1")]
    assert names == ["torch", "numpy", "pydantic", "comfyui-frontend-package"]
