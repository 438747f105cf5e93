"""Words around a concept from a language model behind any OpenAI-compatible chat endpoint, kept in a cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConceptError
from ..files import read_json_or_none, write_json
from .concept import TEMPLATES, Concept, Kind
from .reading import phrases_of
from .words import mentions

# Environment variables: the key is read from the first and goes into the request alone; the second may name the only
# host that gets it.
API_KEY = "ERASE_ANYTHING_API_KEY"
API_HOST = "ERASE_ANYTHING_API_HOST"

MAX_SYNONYMS = 8
MAX_EACH = 24  # words of one distance
MAX_LETTERS = 60  # of one word or phrase
MAX_ANSWER = 1024 * 1024  # bytes
ECHO = 12  # a key of at least so many characters is looked for in answers; a dummy like "none" may be a word of them

# What an irrelevant word is, by the concept's kind.
SORTS = {
    "entity": "things",
    "abstraction": "art styles",
    "relationship": "spatial or bodily relations",
    "custom": "things",
}

PROMPT = """\
A text-to-image model is to forget one concept: {names}. Choose words for its training.
Answer with one JSON object and nothing else. It has exactly these four fields, each of them a list of strings:
"synonyms": at most {synonyms} other words for the same thing; an empty list if there are none.
"no_relation": {each} {sort} that have nothing to do with the concept.
"far": {each} {sort} that are only distantly like the concept.
"mid": {each} {sort} that are of a similar sort, but clearly something else.
Use common English words or short phrases that a picture can show. Use no word twice, and do not use the concept itself.
Only "synonyms" may have words that mean the concept."""


@dataclass(frozen=True)
class EndpointWords:
    """A language model's words for a concept: those that mean the same, and others at three distances."""

    synonyms: tuple[str, ...]
    no_relation: tuple[str, ...]
    far: tuple[str, ...]
    mid: tuple[str, ...]

    @property
    def irrelevant(self) -> tuple[str, ...]:
        """In the order that a Concept has them."""
        return (*self.no_relation, *self.far, *self.mid)


def endpoint_words(
    phrase: str,
    kind: Kind = "entity",
    *,
    base_url: str,
    model: str,
    cache: Path,
    each: int = 1,
    timeout: float = 60,
    trusted: bool = True,
) -> EndpointWords:
    """Asks a chat model for a concept's synonyms and for `each` (1..24) irrelevant words of every distance.

    phrase: the concept, with other spellings as "Coca-Cola | Coke". base_url: what comes before "/chat/completions",
    e.g. "http://localhost:11434/v1". timeout: seconds for the whole answer. cache: a folder for answers, as JSON with
    the prompt, the model and the date; a question that was answered before is not asked again.
    An API key, where one is needed, is read from the environment variable ERASE_ANYTHING_API_KEY and written nowhere.
    It goes only to the host that ERASE_ANYTHING_API_HOST names. Where that is not set, it goes to the host of a
    `trusted` address: one that the user gave, not a workflow that somebody else may have written.
    Raises ConceptError, one sentence for every way in which this can fail.
    """
    names = phrases_of(phrase, kind) or ("",)
    Concept(names[0], kind, TEMPLATES.get(kind, "{}"), names[1:]).validate()
    if not 1 <= each <= MAX_EACH:
        raise ConceptError(f"{each} words of each distance cannot be asked for: choose 1 to {MAX_EACH}.")
    if not model.strip():
        raise ConceptError("The endpoint's model is missing: give its name.")
    url = _address(base_url)
    shown = " or ".join(json.dumps(name, ensure_ascii=False) for name in names)
    prompt = PROMPT.format(names=shown, each=each, sort=SORTS[kind], synonyms=MAX_SYNONYMS)
    file = Path(cache) / f"{hashlib.sha256(json.dumps([url, model, prompt]).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(ConceptError):  # a broken file is asked for anew
        return _checked((read_json_or_none(file) or {}).get("words"), names, each)
    words = _checked(_ask(url, model, prompt, timeout, trusted), names, each)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write(file, {"phrase": phrase, "model": model, "date": date, "prompt": prompt, "words": asdict(words)})
    return words


def _address(base_url: str) -> str:
    """The address to post to. Raises ConceptError for one that is no plain http address; it may hold no secret."""
    try:
        parts = urlsplit(base_url.strip())
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.username is not None or parts.query or parts.fragment or re.search(r"\s", parts.geturl()):
        raise ConceptError(
            "The endpoint's address must look like https://host/v1, without a user, a password or anything after a "
            f"question mark: correct it, and put a key into the environment variable {API_KEY}."
        )
    return parts.geturl().rstrip("/") + "/chat/completions"


def _key(url: str, trusted: bool) -> str:
    """The API key for this address, or "" where there is none. Raises ConceptError where a request cannot carry it."""
    host = os.environ.get(API_HOST, "").strip().lower()
    if not (trusted if not host else host == urlsplit(url).hostname):
        return ""
    key = os.environ.get(API_KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):  # the HTTP library would show it in its error
        raise ConceptError(f"The environment variable {API_KEY} holds no key: it may have no spaces, lines or accents.")
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the key to another host, so it is an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask(url: str, model: str, prompt: str, timeout: float, trusted: bool) -> Any:
    """The JSON value that the model answers with. Raises ConceptError; its text never holds what the server sent."""
    key, host = _key(url, trusted), urlsplit(url).netloc
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]}).encode()
    request = urllib.request.Request(url, body, headers, method="POST")
    late = ConceptError(f"The endpoint {host} gave no answer in {timeout:g} seconds: try again or use a faster model.")
    try:
        data = _exchange(request, timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403) and not key and os.environ.get(API_KEY):
            raise ConceptError(
                f"The endpoint {host} wants a key, and yours was not sent there: set the environment variable "
                f"{API_HOST} to {urlsplit(url).hostname} if it is the key's, and start again."
            ) from None
        raise ConceptError(_refusal(host, error.code)) from None
    except TimeoutError:
        raise late from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise late from None
        raise ConceptError(
            f"No connection to the endpoint {host}: check its address and that its server runs."
        ) from None
    if len(data) > MAX_ANSWER:
        raise ConceptError(f"The endpoint's answer is larger than {MAX_ANSWER // 1024} KB: use another model.")
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise ConceptError(
            f"The endpoint {host} did not answer as a chat API does: check its address, which mostly ends in /v1."
        ) from None
    if len(key) >= ECHO and key in content:
        raise _wrong("it repeats the API key")
    content = re.sub(r"^.*</think>", "", content, flags=re.DOTALL)  # what a reasoning model says to itself
    fenced = re.fullmatch(r"\s*```\w*\s*(.*?)\s*```\s*", content, flags=re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else content)
    except (ValueError, RecursionError):
        raise _wrong("it is not JSON") from None


def _exchange(request: urllib.request.Request, timeout: float) -> bytes:
    """The answer's body, no more than a little above MAX_ANSWER. Raises TimeoutError after `timeout` seconds in all."""
    end = time.monotonic() + timeout
    data = b""
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
        while len(data) <= MAX_ANSWER and (part := response.read1(65536)):
            data += part
            if time.monotonic() > end:  # the socket's own timeout begins again with every byte
                raise TimeoutError
    return data


def _refusal(host: str, status: int) -> str:
    """What an HTTP status other than success means to the user."""
    if status in (401, 403):
        return f"The endpoint {host} refuses the key ({status}): set the environment variable {API_KEY} to a valid one."
    if status == 429:
        return f"The endpoint {host} allows no more requests now (429): wait, or check your quota there."
    if 300 <= status < 400:
        return f"The endpoint {host} wants another address ({status}): give its final one."
    return f"The endpoint {host} answered with error {status}: check its address and the model's name, or try later."


def _wrong(why: str) -> ConceptError:
    return ConceptError(f"The endpoint's answer cannot be used, because {why}: try again or use another model.")


def _checked(answer: Any, names: Sequence[str], each: int) -> EndpointWords:
    """The words of a model's answer, validated. Raises ConceptError."""
    expected = [field.name for field in fields(EndpointWords)]
    if not isinstance(answer, dict) or set(answer) != set(expected):
        raise _wrong(f"it has not exactly the fields {', '.join(expected)}")
    taken = {name.lower() for name in names}
    for field in expected:
        words = answer[field]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise _wrong(f'"{field}" is no list of texts')
        if len(words) > MAX_SYNONYMS if field == "synonyms" else len(words) != each:
            number = f"at most {MAX_SYNONYMS}" if field == "synonyms" else each
            raise _wrong(f'"{field}" has {len(words)} words instead of {number}')
        if not all(map(_plain, words)):
            raise _wrong(f'"{field}" has a text that is empty, longer than {MAX_LETTERS} letters or no plain word')
        lower = [word.lower() for word in words]
        if len(set(lower)) < len(lower) or taken & set(lower):
            raise _wrong(f'"{field}" has a word twice, or the concept itself')
        if field != "synonyms" and any(
            mentions(word, name) for word in words for name in (*names, *answer["synonyms"])
        ):
            raise _wrong(f'"{field}" has a word that names the concept')
        taken |= set(lower)
    return EndpointWords(**{field: tuple(answer[field]) for field in expected})


def _plain(word: str) -> bool:
    """Whether a word can stand in a prompt: printable, in single spaces, with a letter, without braces."""
    tidy = word.isprintable() and word == " ".join(word.split()) and not re.search(r"[{}|]", word)
    return tidy and len(word) <= MAX_LETTERS and any(c.isalpha() for c in word)


def _write(file: Path, value: dict[str, Any]) -> None:
    """Writes an answer. A cache that cannot be written costs the next request, not this answer."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value)
    except OSError as error:
        logging.warning("The endpoint's words are not cached in %s (%s).", file.parent, error.strerror)
