"""Thousands of random requests to a real server: none breaks it, leads outside the pack's folders or tells a secret.

A generator of our own (hypothesis and schemathesis are no requirements of this pack): it knows every route and draws
path parts, queries, headers and bodies from right ones, nearly right ones and hostile ones. The seed is in each
failure; FUZZ_SEED repeats it, FUZZ_REQUESTS changes the number.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from scripts.host import Host
from training.concepts.endpoint import API_KEY

ROOT = "/erase_anything/v1"
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "5000"))
KEY = "sk-never-to-be-seen-0123456789"
SECRET = "the-secret-outside"
HOSTILE = [
    "..", ".", "", "../..", "..%2f..%2fetc%2fpasswd", "../state.json", "../../secret.txt", "..\\..\\secret.txt",
    "/etc/passwd", "C:\\Windows\\win.ini", "\\\\server\\share", "con", "NUL", "aux.png", "com1.txt", "CLOCK$",
    "a\0b", "\0", "\n", "\r\nX-Injected: 1", "\u202e", "é" * 50, "💣", "\ud83d", "%00", "%2e%2e", "%25", "~root", "-rf",
    "$(id)", "`id`", "'; --", "<script>", "{{7*7}}", "file:///etc/passwd", "a" * 3000, "state.json", "job.json",
    "link.png", "log.txt", "20260101-000000-linked-00000000", "precious",
]  # fmt: skip
ACTIONS = ["pause", "resume", "retry", "cancel", "stop", "clone", "move", "delete"]
FORMS = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "application/json5"]


class Fuzz:
    """Draws requests: (method, target, body, headers)."""

    def __init__(self, seed: int, known: list[str]):
        self.draw, self.known = random.Random(seed), known

    def text(self) -> str:
        kind = self.draw.random()
        if kind < 0.6:
            return self.draw.choice(HOSTILE)
        return "".join(chr(self.draw.choice((self.draw.randrange(128), self.draw.randrange(0x3000)))) for _ in range(9))

    def job(self) -> str:
        return self.draw.choice(self.known) if self.draw.random() < 0.6 else self.text()

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can hold, and numbers that it should not."""
        scalars = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5, self.text()]
        kind = self.draw.random()
        if depth < 3 and kind < 0.15:
            return [self.value(depth + 1) for _ in range(self.draw.randrange(4))]
        if depth < 3 and kind < 0.3:
            return {self.text(): self.value(depth + 1) for _ in range(self.draw.randrange(4))}
        return self.draw.choice(scalars)

    def near(self, right: dict[str, Any]) -> Any:
        """A body that is right, or has a field that is wrong, missing or too much."""
        body, kind = dict(right), self.draw.random()
        if kind < 0.2:
            return body
        if kind < 0.7 and body:
            body[self.draw.choice(list(body))] = self.value()
        elif kind < 0.8 and body:
            del body[self.draw.choice(list(body))]
        elif kind < 0.9:
            body[self.text()] = self.value()
        else:
            return self.value()
        return body

    def concept(self) -> dict[str, Any]:
        return self.near({"phrase": "car", "synonyms": [], "irrelevant": ["house", "tree", "apple"], "kind": "entity"})

    def config(self) -> dict[str, Any]:
        small = {"steps": 2, "rank": 2, "seed": self.draw.randrange(50), "targets": "text_qk", "blocks": []}
        return self.near(small)

    def body(self, action: str) -> Any:
        """For an action or a route; never one that would start a training or a download."""
        if action == "jobs":
            name = self.draw.choice(["fuzz", "", self.text()])
            return self.near({"concept": self.concept(), "config": self.config(), "name": name, "model": self.model()})
        if action == "clone":
            return self.near({"config": self.config(), "name": self.draw.choice(["", "again", self.text()])})
        if action == "move":
            return self.near({"to": self.draw.choice(["first", "up", "down", "last", 1, 3, 99, self.value()])})
        if action == "settings":
            body = self.near({"slots": 0, "wait_for_memory": True})
            slots = body.get("slots") if isinstance(body, dict) else None
            return {} if isinstance(slots, int) and 1 <= slots <= 16 else body
        if action == "concept":
            return self.concept()
        rest = {"delete": {"lora": self.draw.random() < 0.5}, "retry": {"cheaper": True}}
        return self.near(rest.get(action, {}))

    def model(self) -> str:
        return self.draw.choice(["demo (flux-emoji)", "single files", self.text()])

    def request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        draw = self.draw
        part = lambda text: quote(text, safe=draw.choice(["", "/.%\\"]), errors="replace")  # noqa: E731
        prefix = draw.choice(["", "/api"]) + ROOT
        if draw.random() < 0.45:
            tail = draw.choice(["", "/events", "/log", "/samples/" + part(self.text()), "/" + part(self.text())])
            query = draw.choice(["", "?since=" + part(str(self.value())), "?since=3", "?" + part(self.text())])
            other = ["/jobs", "/presets", "/settings", "/senses?phrase=" + part(self.text())]
            target = f"/jobs/{part(self.job())}{tail}{query}" if draw.random() < 0.8 else draw.choice(other)
            return draw.choice(["GET"] * 8 + ["HEAD", "PUT"]), prefix + target, None, {}
        action = draw.choice([*ACTIONS, *ACTIONS, "jobs", "jobs", "settings", "concept", self.text()])
        target = (
            f"/{action}" if action in ("jobs", "settings", "concept") else f"/jobs/{part(self.job())}/{part(action)}"
        )
        body = json.dumps(self.body(action)).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            body = draw.choice([b"", b"{", b"\xff\xfe", b"[" * 50_000, body[:-1], bytes(draw.randbytes(50))])
        headers = {"Content-Type": "application/json"}
        if draw.random() < 0.1:
            headers["Content-Type"] = draw.choice(FORMS)
        if draw.random() < 0.1:
            headers["Sec-Fetch-Site"] = "cross-site"
        if draw.random() < 0.1:
            headers["Origin"] = "http://evil.example"
        return "POST", prefix + target, body, headers


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file in and around the server's base directory that the pack has no business with."""
    own = tuple(f"comfyui/{name}" for name in ("user/__erase_anything", "user/comfyui.db", "host.log", "custom_nodes"))
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(own):
            found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


@pytest.fixture
def fuzzed_host(host_folder: Path, demo_folder: Path, tmp_path: Path, monkeypatch) -> Iterator[Host]:
    """A server of its own that holds its queue and knows an API key, with secrets around its folders."""
    monkeypatch.setenv(API_KEY, KEY)
    base = tmp_path / "comfyui"
    with Host(host_folder, base) as host:
        (tmp_path / "secret.txt").write_text(SECRET)
        (base / "secret.txt").write_text(SECRET)
        (base / "models" / "loras" / "precious.safetensors").write_text(SECRET)
        host.post(f"{ROOT}/settings", {"slots": 0})
        yield host


def test_no_request_breaks_the_server_or_leaves_its_folders(fuzzed_host, tmp_path):
    host, seed = fuzzed_host, int(os.environ.get("FUZZ_SEED", random.randrange(10**6)))
    body = {"concept": {"phrase": "car", "synonyms": [], "irrelevant": ["house", "tree", "apple"]}}
    known = [host.post(f"{ROOT}/jobs", {**body, "name": f"known-{i}", "config": {"seed": i}})["id"] for i in range(3)]
    jobs = host.base / "user" / "__erase_anything" / "jobs"
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in ("job.json", "state.json"):  # a folder elsewhere that would be a job
        (outside / file).write_bytes((jobs / known[0] / file).read_bytes().replace(b'"car"', f'"{SECRET}"'.encode()))
    (jobs / "20260101-000000-linked-00000000").symlink_to(outside)
    (jobs / known[0] / "samples" / "link.png").symlink_to(tmp_path / "secret.txt")
    (jobs / known[1] / "log.txt").symlink_to(tmp_path / "secret.txt")
    before, fuzz, answers = tree(tmp_path), Fuzz(seed, known), Counter()
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=120)
    for number in range(REQUESTS):
        method, target, data, headers = fuzz.request()
        told = f"seed {seed}, request {number}: {method} {target[:200]!r} {headers} {(data or b'')[:300]!r}"
        target = re.sub(r"[\x00-\x20\x7f]", lambda found: quote(found[0]), target)
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        status, answer = response.status, response.read()
        answers[status] += 1
        assert status < 500, f"{told}\n{answer[:2000]!r}\n{host.log_tail()}"
        for secret in (SECRET, KEY, str(tmp_path), "Traceback"):
            assert secret.encode() not in answer, f"{told}\n{answer[:2000]!r}"
        assert "X-Injected" not in response.headers, told
        if method == "POST" and headers.get("Content-Type") != "application/json":
            assert status >= 400, told
        if method == "POST" and (headers.get("Sec-Fetch-Site") or headers.get("Origin")):
            assert status >= 400, told
        if number % 500 == 250:  # jobs that were deleted are made again
            fuzz.known = [job["id"] for job in host.get(f"{ROOT}/jobs")["jobs"]][:20] or ["none"]
    connection.close()
    assert tree(tmp_path) == before, f"seed {seed}"
    assert not list(host.base.glob("models/loras/*.part"))
    # The server is well, nothing was trained, and no file of a job or log holds the key.
    told = host.get(f"{ROOT}/jobs")
    assert told["settings"]["slots"] == 0
    assert {job["state"] for job in told["jobs"]} <= {"queued", "paused", "cancelled"}
    for path in [host.log, *jobs.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), path
    print(f"seed {seed}: {sum(answers.values())} requests, answers {dict(sorted(answers.items()))}")


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("where", ["jobs", "settings", "concept", "jobs/20260101-000000-x/delete"])
def test_ten_megabytes_are_refused(host, where, kind):
    body = b'{"name": "' + b"x" * 10_000_000 + b'"}'
    try:
        status, _ = host.request("POST", f"{ROOT}/{where}", body, {"Content-Type": kind})
    except OSError:  # the server has closed the connection before all of it was sent
        status = 413
    assert status in (404, 413, 415)
    assert host.get(f"{ROOT}/settings")["slots"] >= 0
