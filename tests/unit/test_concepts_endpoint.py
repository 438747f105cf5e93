"""Words from a chat endpoint, a real HTTP server, and what is said where it answers badly."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_server import GOOD, KEY, Endpoint, chat_server
from training.concepts import endpoint_words, make_concept
from training.concepts.endpoint import API_HOST, API_KEY
from training.errors import ConceptError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", API_HOST):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(API_KEY, KEY)
    with chat_server() as server:
        yield server


def ask(server: Endpoint, cache: Path, phrase: str = "car", **options: Any):
    return endpoint_words(phrase, base_url=server.url, model="tiny", cache=cache, **options)


def test_a_good_answer(server: Endpoint, tmp_path: Path):
    words = ask(server, tmp_path)
    assert words.synonyms == ("automobile", "motorcar") and words.irrelevant == ("cheese", "lamp", "train")
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "tiny" and '"car"' in body["messages"][0]["content"]
    made = make_concept("car", synonyms=words.synonyms, irrelevant=words.irrelevant)
    assert made.irrelevant == ("cheese", "lamp", "train")


def test_fences_and_thoughts_around_the_answer(server: Endpoint, tmp_path: Path):
    server.content = f"<think>Perhaps {{a bus}}?</think>\n```json\n{json.dumps(GOOD)}\n```\n"
    assert ask(server, tmp_path).mid == ("train",)


def test_what_was_answered_is_not_asked_again(server: Endpoint, tmp_path: Path):
    first = ask(server, tmp_path)
    assert ask(server, tmp_path) == first and len(server.requests) == 1
    [file] = tmp_path.iterdir()
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["prompt"] == server.requests[0][2]["messages"][0]["content"]
    assert kept["model"] == "tiny" and kept["phrase"] == "car" and kept["date"].startswith("20")
    assert kept["words"]["far"] == ["lamp"]
    server.content = json.dumps({name: [*words, f"{words[0]} two"] for name, words in GOOD.items()})
    assert len(ask(server, tmp_path, each=2).irrelevant) == 6 and len(server.requests) == 2


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"words": {"synonyms": ["{car}"]}}'])
def test_a_broken_cache_file_is_asked_for_anew(server: Endpoint, tmp_path: Path, broken: str):
    ask(server, tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(broken, encoding="utf-8")
    assert ask(server, tmp_path).far == ("lamp",) and len(server.requests) == 2
    assert ask(server, tmp_path).far == ("lamp",) and len(server.requests) == 2


def test_a_cache_that_cannot_be_written_costs_nothing(server: Endpoint, tmp_path: Path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert ask(server, tmp_path / "file").far == ("lamp",)
    assert "not cached" in caplog.text and KEY not in caplog.text


def test_without_a_key_none_is_sent(server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(API_KEY)
    ask(server, tmp_path)
    assert "Authorization" not in server.requests[0][1]


def test_the_key_goes_to_its_own_host_alone(server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sent(number: int, **options: Any) -> bool:
        ask(server, tmp_path / str(number), **options)
        return "Authorization" in server.requests[-1][1]

    assert not sent(1, trusted=False)
    monkeypatch.setenv(API_HOST, "api.example.com")
    assert not sent(2) and not sent(3, trusted=False)
    server.status = 401
    with pytest.raises(ConceptError, match=f"{API_HOST} to 127.0.0.1"):
        ask(server, tmp_path / "4", trusted=False)
    server.status = 200
    monkeypatch.setenv(API_HOST, "127.0.0.1")
    assert sent(5) and sent(6, trusted=False)


WRONG = {
    "no list": ({"far": "lamp"}, '"far" is no list'),
    "no texts": ({"far": [3]}, '"far" is no list of texts'),
    "too few": ({"mid": []}, '"mid" has 0 words instead of 1'),
    "too many": ({"synonyms": [f"wagon{'x' * i}" for i in range(9)]}, "9 words instead of at most 8"),
    "another field": ({"near": ["bus"]}, "exactly the fields"),
    "twice": ({"far": ["Cheese"]}, "twice"),
    "the concept": ({"synonyms": ["CAR"]}, "the concept itself"),
    "its plural": ({"far": ["cars"]}, "names the concept"),
    "a synonym": ({"far": ["old automobile"]}, "names the concept"),
    "long": ({"far": ["x" * 61]}, "longer than 60"),
    "empty": ({"far": [""]}, "empty"),
    "braces": ({"far": ["{lamp}"]}, "no plain word"),
    "line break": ({"far": ["a\nlamp"]}, "no plain word"),
    "no letters": ({"far": ["42"]}, "no plain word"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields(server: Endpoint, tmp_path: Path, case: str):
    change, message = WRONG[case]
    server.content = json.dumps(GOOD | change)
    fails(server, tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("I'd be glad to help!", "not JSON"),
        ("[1, 2]", "exactly the fields"),
        ("[" * 100_000, "not JSON"),
        (json.dumps(GOOD | {"far": [KEY]}), "repeats the API key"),
        (f"not JSON at all, {KEY}", "repeats the API key"),
    ],
)
def test_contents_that_are_no_answer(server: Endpoint, tmp_path: Path, content: str, message: str):
    server.content = content
    fails(server, tmp_path, message)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b'{"choices": []}', b"\xff\xfe", b"", b"[" * 100_000])
def test_bodies_that_are_no_chat(server: Endpoint, tmp_path: Path, body: bytes):
    server.body = body
    fails(server, tmp_path, "did not answer as a chat API does")


def test_an_endless_body(server: Endpoint, tmp_path: Path):
    server.body = b" " * 3_000_000
    fails(server, tmp_path, "larger than 1024 KB")


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, API_KEY), (403, API_KEY), (404, "the model's name"), (429, "no more requests"), (500, "error 500")],
)
def test_refusals(server: Endpoint, tmp_path: Path, status: int, message: str):
    server.status, server.body = status, json.dumps({"error": f"Incorrect API key provided: {KEY}"}).encode()
    fails(server, tmp_path, message)


def test_a_redirection_does_not_carry_the_key_away(server: Endpoint, tmp_path: Path):
    server.status, server.headers = 302, {"Location": f"{server.url}/elsewhere"}
    fails(server, tmp_path, "wants another address")
    assert len(server.requests) == 1


@pytest.mark.parametrize("delay", [1.5, 0.05])  # before the first byte; between bytes, each of them in time
def test_a_slow_endpoint(server: Endpoint, tmp_path: Path, delay: float):
    server.delay = delay
    start = time.monotonic()
    fails(server, tmp_path, "no answer in 0.5 seconds", timeout=0.5)
    assert time.monotonic() - start < 5


def test_nobody_listens(server: Endpoint, tmp_path: Path):
    server.url = "http://127.0.0.1:1/v1"
    fails(server, tmp_path, "No connection to the endpoint 127.0.0.1:1")


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "file:///etc/passwd", f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}", "http://[::1"],
)
def test_addresses_that_are_none(server: Endpoint, tmp_path: Path, url: str):
    server.url = url
    fails(server, tmp_path, "must look like https://host/v1")


def test_a_key_that_no_header_can_carry(server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for bad in (f"{KEY}\r\nX: y", f"{KEY}é", f"{KEY} {KEY}"):
        monkeypatch.setenv(API_KEY, bad)
        fails(server, tmp_path, "holds no key")
    assert not server.requests


@pytest.mark.parametrize("options", [{"phrase": " "}, {"phrase": "word " * 40}, {"kind": "colour"}, {"each": 0}])
def test_bad_questions_are_not_sent(server: Endpoint, tmp_path: Path, options: dict[str, Any]):
    fails(server, tmp_path, "", **options)
    assert not server.requests


def fails(server: Endpoint, cache: Path, message: str, **options: Any) -> None:
    """Asks, and sees one sentence with `message`, nothing cached, and the key in no text that an error can leave."""
    with pytest.raises(ConceptError) as caught:
        ask(server, cache, **options)
    text = str(caught.value)
    assert message in text and text.endswith(".") and "\n" not in text
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in "".join(file.read_text(encoding="utf-8") for file in cache.rglob("*") if file.is_file())
    assert not list(cache.iterdir())
