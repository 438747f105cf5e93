"""Thousands of requests to a real server: none breaks it, leads outside the pack's folders or tells a secret.

Hypothesis draws them. A third of the bodies follow the schema that the server itself gives out (openapi.json), a third
are right ones with something wrong in them, the rest is anything; path parts, queries and headers are hostile as often
as right. `--hypothesis-seed` repeats a failure, FUZZ_REQUESTS changes the number.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.host import Host
from training.concepts.endpoint import API_KEY

ROOT = "/erase_anything/v1"
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "5000"))
KEY = "sk-never-to-be-seen-0123456789"
SECRET = "the-secret-outside"
HOSTILE = [
    "..",
    ".",
    "",
    "../..",
    "..%2f..%2fetc%2fpasswd",
    "../state.json",
    "../../secret.txt",
    "..\\..\\secret.txt",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\server\\share",
    "con",
    "NUL",
    "aux.png",
    "com1.txt",
    "CLOCK$",
    "a\0b",
    "\0",
    "\n",
    "\r\nX-Injected: 1",
    "\u202e",
    "é" * 50,
    "💣",
    "\ud83d",
    "%00",
    "%2e%2e",
    "%25",
    "~root",
    "-rf",
    "$(id)",
    "`id`",
    "'; --",
    "<script>",
    "{{7*7}}",
    "file:///etc/passwd",
    "a" * 3000,
    "state.json",
    "job.json",
    "link.png",
    "log.txt",
    "20260101-000000-linked-00000000",
    "precious",
]
FORMS = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "application/json5"]


Request = tuple[str, str, bytes | None, dict[str, str]]  # method, path and query, body, headers

TEXT = st.sampled_from(HOSTILE) | st.text(max_size=9)
# what JSON can hold, and numbers that it should not
SCALAR = st.sampled_from([None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5]) | TEXT
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
HEADERS = st.sampled_from(
    [
        *[{}] * 7,
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        *({"Content-Type": kind} for kind in FORMS),
    ]
)
BROKEN = st.sampled_from([b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"a": 1}}']) | st.binary(max_size=50)


@st.composite
def nearly(draw: st.DrawFn, right: dict[str, Any]) -> Any:
    """`right`, or with one field wrong, missing or too much. A strategy among its values is drawn from."""
    body = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in right.items()}
    change = draw(st.sampled_from(["none", "wrong", "wrong", "less", "more"])) if body else "more"
    if change == "wrong":
        body[draw(st.sampled_from(sorted(body)))] = draw(VALUE)
    elif change == "less":
        del body[draw(st.sampled_from(sorted(body)))]
    elif change == "more":
        body[draw(TEXT)] = draw(VALUE)
    return body


CONCEPT = nearly({"phrase": "car", "synonyms": [], "irrelevant": ["house", "tree", "apple"], "kind": "entity"})
CONFIG = nearly({"steps": 2, "rank": 2, "seed": st.integers(0, 50), "targets": "text_qk", "blocks": []})
NAME = st.sampled_from(["fuzz", ""]) | TEXT
RIGHT: dict[str, st.SearchStrategy] = {  # by the end of the path
    "jobs": nearly(
        {
            "concept": CONCEPT,
            "config": CONFIG,
            "name": NAME,
            "model": st.sampled_from(["demo (flux-emoji)", "single files"]) | TEXT,
        }
    ),
    "concept": CONCEPT,
    "settings": nearly({"slots": 0, "wait_for_memory": True}),
    "clone": nearly({"config": CONFIG, "name": NAME}),
    "move": nearly({"to": st.sampled_from(["first", "up", "down", "last", 1, 3, 99])}),
    "delete": nearly({"lora": st.booleans()}),
    "retry": nearly({"cheaper": True}),
}


def following(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy:
    """What a JSON schema allows, of the words that pydantic writes; `known`: the schemas that it refers to by name."""
    if "$ref" in schema:
        return st.deferred(lambda: following(known[schema["$ref"].rsplit("/", 1)[1]], known))
    if "anyOf" in schema:
        return st.one_of([following(each, known) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object":
            fields = {name: following(each, known) for name, each in schema.get("properties", {}).items()}
            need = {name: fields.pop(name) for name in schema.get("required", ())}
            more = schema.get("additionalProperties", True)
            if fields or need or more is False:
                return st.fixed_dictionaries(need, optional=fields)
            return st.dictionaries(TEXT, VALUE if more is True else following(more, known), max_size=3)
        case "array":
            return st.lists(following(schema["items"], known), max_size=3)
        case "integer":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -2))
            return st.integers(low, schema.get("maximum", schema.get("exclusiveMaximum", 2**31)))
        case "string":
            return TEXT.filter(lambda text: len(text) <= schema.get("maxLength", 10**6))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case None:
            return VALUE
    raise AssertionError(f"the schema {schema} has a word that this test does not know")


def held(body: Any) -> Any:
    """The settings without slots that would let a job start: the queue shall stay as it is."""
    free = isinstance(body, dict) and isinstance(body.get("slots"), (int, float)) and 1 <= body["slots"] <= 16
    return {**body, "slots": 0} if free else body


class Requests:
    """Draws requests on the routes that the server describes. known: ids of jobs there are."""

    def __init__(self, described: dict[str, Any], known: list[str]):
        self.known, schemas = known, described["components"]["schemas"]
        self.routes: list[tuple[str, str]] = []
        self.bodies: dict[str, st.SearchStrategy] = {}
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                self.routes.append((method.upper(), path))
                if "requestBody" in operation:
                    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                    allowed = following(schemas[name], schemas)
                    self.bodies[path] = allowed | RIGHT.get(path.rsplit("/", 1)[1], nearly({})) | VALUE

    def one(self) -> st.SearchStrategy[Request]:
        """Any of them."""
        return st.composite(self._draw)()

    def _draw(self, draw: st.DrawFn) -> Request:
        def part(text: str) -> str:
            return quote(text, safe=draw(st.sampled_from(["", "/.%\\"])), errors="replace")

        def fill(found: re.Match) -> str:
            if found[1] == "id" and draw(st.integers(0, 9)) < 6:
                return self.known[draw(st.integers(0, 19)) % len(self.known)]
            return part(draw(TEXT))

        method, path = draw(st.sampled_from(self.routes))
        target = draw(st.sampled_from(["", "/api"])) + ROOT + re.sub(r"{(\w+)}", fill, path)
        if method == "GET":
            method = draw(st.sampled_from(["GET"] * 8 + ["HEAD", "PUT"]))
            name = draw(st.sampled_from(["", "", "since", "phrase"]))
            query = f"?{name}={part(str(draw(VALUE)))}" if name else draw(st.sampled_from(["", "?", "?a&b=%00"]))
            return method, target + query, None, {}
        if draw(st.integers(0, 19)) == 0:  # an action that there is not
            target = f"{target.rsplit('/', 1)[0]}/{part(draw(TEXT))}"
        body = draw(self.bodies[path])
        data = json.dumps(held(body) if path == "/settings" else body).encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 9)) == 0:
            data = draw(BROKEN)
        return method, target, data, {"Content-Type": "application/json"} | draw(HEADERS)


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
    host = fuzzed_host
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
    before, requests, answers = tree(tmp_path), Requests(host.get(f"{ROOT}/openapi.json"), known), Counter()
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=120)

    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(request=requests.one())
    def answer_is_right(request: Request) -> None:
        method, target, data, headers = request
        target = re.sub(r"[\x00-\x20\x7f]", lambda found: quote(found[0]), target)
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        status, answer = response.status, response.read()
        answers[status] += 1
        assert status < 500, f"{answer[:2000]!r}\n{host.log_tail()}"
        for secret in (SECRET, KEY, str(tmp_path), "Traceback"):
            assert secret.encode() not in answer, answer[:2000]
        assert "X-Injected" not in response.headers
        if method == "POST" and (headers != {"Content-Type": "application/json"}):  # a form, or from another site
            assert status >= 400
        if answer and status >= 400 and response.headers.get_content_type() == "application/json":
            assert {"error"} <= set(json.loads(answer)) <= {"error", "missing"}
        if answers.total() % 500 == 250:  # jobs that were deleted are made again
            requests.known = [job["id"] for job in host.get(f"{ROOT}/jobs")["jobs"]][:20] or ["none"]

    answer_is_right()
    connection.close()
    print(f"{answers.total()} requests, answers {dict(sorted(answers.items()))}")
    assert answers.total() >= REQUESTS
    assert answers[200] > REQUESTS / 10, "most were refused: nothing behind the door was tried"
    assert tree(tmp_path) == before
    assert not list(host.base.glob("models/loras/*.part"))
    # The server is well, nothing was trained, and no file of a job or log holds the key.
    told = host.get(f"{ROOT}/jobs")
    assert told["settings"]["slots"] == 0
    assert {job["state"] for job in told["jobs"]} <= {"queued", "paused", "cancelled"}
    for path in [host.log, *jobs.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), path


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
