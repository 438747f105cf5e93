"""The Erasure Report as a page: whole, self-contained, escaped, bounded, and one sentence for what cannot be shown."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.reports import make_evaluation, noise_picture
from training.errors import ErasureError
from training.evaluation.report import ROWS, write_report

VOID = {"meta", "img", "br", "rect", "line", "circle", "polygon", "polyline", "link", "input"}
HOSTILE = {
    "script": "</title></style><script>alert(1)</script>",
    "quotes": "\"><img src=x onerror='alert(1)'>&amp;\"'`",
    "right to left": "\u202eשלום\u2066 evil \u200f",
    "control": "a\x00b\x1bc\ud800d\r\ne",
    "long": "w" * 20_000,
}


class Page(HTMLParser):
    """Every element with its attributes, the text, and whether what opens is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inside: list[str] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self.veiled: list[bool] = []
        self.feed(self.source)
        self.close()
        assert self.inside == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "img":
            self.veiled.append("button" in self.inside)
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.inside[-1] if self.inside else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(data for tag, data in self.texts if tag not in ("style", "script")).split())


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[dict], Page]:
    def make(evaluation: dict) -> Page:
        write_report(json.loads(json.dumps(evaluation)), tmp_path / "run", tmp_path / "out" / "report.html")
        return Page(tmp_path / "out" / "report.html")

    return make


def assert_self_contained(page: Page) -> None:
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style"
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert value.startswith("data:image/" if tag == "img" else "#"), (tag, value[:80])
    code = "".join(data for tag, data in page.texts if tag in ("style", "script"))
    assert not re.search(r"https?://|//[a-z]|@import|url\(|fetch\(|XMLHttp|innerHTML", code)
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1 and not page.all("link")
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        source = "".join(data for inside, data in page.texts if inside == tag)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in policy


def test_the_page_is_whole_and_asks_the_network_nothing(tmp_path: Path, page_of):
    page = page_of(make_evaluation(tmp_path / "run"))
    assert_self_contained(page)
    assert not re.search(r"https?://", page.source)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) >= 5
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    assert all(image["alt"] for image in page.all("img")) and not any(page.veiled)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    for told in (
        "Not seen by its name, but by other words. Asked for",
        "Seen less often, but still seen. Asked for",
        "the concept is recognised in 1 of 6 (16.7 %; 95 % interval 7 to 27 %)",  # the LoRA
        "the concept is recognised in 0 of 6 (0 %; 95 % interval 0 to 10 %)",  # deletion
        "Rewriting the prompt in 1 way brought the concept back in 1 of 6 pictures",
        "move by 0.012 (perceptual distance, 0 to 2) and keep 31.5 dB PSNR",
        "Version of torch",
        "2.6.0",
        "flux-3x3-0123456789abcdef",
        "1" * 64,
        "2026-01-02",
        "Rest recognised",
        "python -m training.cli evaluate --concept 'car'",
    ):
        assert told in page.text, told


@pytest.mark.parametrize("name", list(HOSTILE))
def test_texts_out_of_files_stay_texts(tmp_path: Path, page_of, name: str):
    evaluation = make_evaluation(tmp_path / "run", HOSTILE[name], images=2)
    page, tame = page_of(evaluation), HOSTILE[name]
    assert_self_contained(page)
    assert {tag for tag, _ in page.elements} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "p",
        "h1",
        "h2",
        "h3",
        "nav",
        "ul",
        "li",
        "a",
        "main",
        "section",
        "div",
        "dl",
        "dt",
        "dd",
        "span",
        "strong",
        "small",
        "bdi",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "rect",
        "line",
        "text",
        "polygon",
        "polyline",
        "circle",
        "figure",
        "figcaption",
        "img",
        "details",
        "summary",
        "pre",
        "code",
        "footer",
        "script",
    }
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page.source)
    if name == "long":
        assert "w" * 299 + "…" in page.text or "w" * 300 + "…" in page.text
        assert "w" * 5000 not in page.source and len(page.source) < 300_000
    elif name == "control":
        assert "a\ufffdb\ufffdc\ufffdd e" in page.text
    else:  # every copy in the page's text is an element of its own writing direction
        assert " ".join(tame.split()) in page.text and tame not in html.unescape(
            "".join(data for tag, data in page.texts if tag in ("p", "td", "th", "h1", "h3", "dd", "div", "li"))
        )


def test_sensitive_pictures_are_veiled_all_of_them(tmp_path: Path, page_of):
    evaluation = make_evaluation(tmp_path / "run")
    evaluation["blur"] = True
    page = page_of(evaluation)
    veils = [button for button in page.all("button") if button.get("class") == "veil"]
    assert page.veiled and all(page.veiled) and len(veils) == len(page.all("img"))
    assert all(veil["aria-pressed"] == "false" and veil["type"] == "button" and veil["aria-label"] for veil in veils)


def test_every_attack_is_shown_beside_the_base_and_the_erasure_at_equal_seeds(tmp_path: Path, page_of):
    evaluation = make_evaluation(tmp_path / "run")
    page = page_of(evaluation)
    shown = [image["alt"] for image in page.all("img") if "P4D" in image["alt"] or "RELEARNING" in image["alt"]]
    assert shown == [
        f"{label}, under {attack}: {told}"
        for label in ("Attention deletion", "car, strength 1")
        for attack in ("P4D", "RELEARNING")
        for told in ("shown", "not shown")
    ]
    assert "P4D: “p4d words, car” for “a photo of a car”, seed 50000" in page.text
    for each in evaluation["white_box"]:  # evaluations of earlier versions kept no pictures of them
        del each["pictures"]
    assert not any("under" in image["alt"] for image in page_of(evaluation).all("img"))


def test_pictures_of_attacks_leave_room_for_the_others(tmp_path: Path, page_of):
    evaluation = make_evaluation(tmp_path / "run")
    (attack, *_) = evaluation["white_box"]
    noise_picture(tmp_path / "run" / attack["pictures"][0]["after"]["file"], 300)
    evaluation["white_box"] = [{**attack, "attack": f"attack {number}"} for number in range(40)]
    page = page_of(evaluation)
    count = sum("under" in image["alt"] for image in page.all("img"))
    assert 40 < count < 80 and len(page.source.encode()) < 2_000_000  # of every attack something
    assert f"Suite acc_e{ROWS} of 6 shown." in page.text


def test_of_many_pictures_the_failures_are_shown_first_and_the_rest_is_counted(tmp_path: Path, page_of):
    page = page_of(make_evaluation(tmp_path / "run", images=9))
    shown = re.findall(r"“(\w[\w ]*: a car, \d)”", page.text)
    for suite in ("acc_e", "acc_g", "attack prefix", "acc_ir"):
        assert sum(prompt.startswith(f"{suite}:") for prompt in shown) == ROWS
        assert f"Suite {suite}{ROWS} of 9 shown." in page.text
    assert next(p for p in shown if p.startswith("acc_e")) == "acc_e: a car, 8"  # the one that is still there


def test_the_page_stays_small(tmp_path: Path, page_of):
    """Pictures that no format can make small, a hundred suites of them."""
    evaluation = make_evaluation(tmp_path / "run")
    for name in ("base", "deletion", "lora-1"):
        noise_picture(tmp_path / "run" / "pictures" / name / f"{'a' * 16}.png", 300)
    suite = evaluation["suites"][0]
    for number in range(40):
        evaluation["suites"].append({**suite, "id": f"attack {number}", "title": f"Attack: {number}"})
        for row in copy.deepcopy(evaluation["pictures"][:4]):
            row["prompt"], row["suites"] = f"{number} {row['prompt']}", [f"attack {number}"]
            for name, each in row["results"].items():
                each["file"] = f"pictures/{name}/{'a' * 16}.png"
            evaluation["pictures"].append(row)
    page = page_of(evaluation)
    size = len(page.source.encode())
    counts = [int(found[1]) for _, text in page.texts if (found := re.match(r"(\d+) of \d+ shown", text))]
    print(f"{size} bytes, {len(page.all('img'))} pictures")
    rows = len(page.all("figure")) - 1  # but the heatmap's
    assert 3_000_000 < size < 5_000_000 and len(page.all("img")) == 2 + 3 * rows and rows == 8 + sum(counts)
    assert counts[:4] == [ROWS] * 4 and len(counts) == 44 and set(counts[4:]) == {0, 1}  # none takes another's room


def test_what_cannot_be_shown_is_one_sentence_and_nothing_is_written(tmp_path: Path):
    good = make_evaluation(tmp_path / "run")
    first = good["pictures"][0]["results"]["base"]["file"]
    picture, out = tmp_path / "run" / first, tmp_path / "report.html"
    whole = picture.read_bytes()

    def refused(evaluation: object, part: str) -> None:
        with pytest.raises(ErasureError, match=part) as caught:
            write_report(evaluation, tmp_path / "run", out)
        told = str(caught.value)
        assert told.endswith(".") and "\n" not in told and str(tmp_path) not in told and not out.exists()

    picture.unlink()
    refused(good, "is missing")
    picture.write_bytes(whole[: len(whole) // 2])
    refused(good, "cannot be read to its end")
    picture.write_bytes(b"GIF89a" + whole)
    refused(good, "cannot be read to its end")
    picture.write_bytes(whole)
    secret = tmp_path / "secret.png"
    secret.write_bytes(whole)
    for path in ("../secret.png", str(secret), "pictures/../../secret.png", "pictures/base/\n.png", 5, None):
        evil = copy.deepcopy(good)
        evil["pictures"][0]["results"]["base"]["file"] = path
        refused(evil, "outside its folder")
    refused({**good, "version": 3}, "version 1 to 2")
    refused([], "version 1 to 2")
    refused({name: value for name, value in good.items() if name != "suites"}, "damaged")
    refused({**good, "suites": [{"id": 5}]}, "damaged")
    refused({**good, "drift": {"lora-1": {"perceptual": "much", "psnr": 1, "images": 2}}}, "damaged")
    write_report(good, tmp_path / "run", out)
    assert out.is_file() and [path.name for path in tmp_path.glob("*.part")] == []
