"""The page's own code: its pure functions, run by the Node.js that Playwright brings, and its texts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"


def texts(language: str) -> dict[str, str]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["eraseAnything"]


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "web").glob("*.test.mjs")), ids=lambda path: path.stem)
def test_pure_functions(path: Path) -> None:
    node = compute_driver_executable()[0]
    done = subprocess.run([node, "--test", str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_languages_have_the_same_texts() -> None:
    english, chinese = texts("en"), texts("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key


def test_every_text_that_the_code_names_exists_and_is_used() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.mjs"))
    known = texts("en")
    named = set(re.findall(r'\btext\(\s*"([\w.]+)"', code))
    assert named <= set(known), named - set(known)
    # A key that is put together at run time (`state.${state}`) counts as used by its beginning.
    beginnings = set(re.findall(r"`([\w.]+\.)\$\{", code))
    quoted = set(re.findall(r'"([\w.]+)"', code))
    unused = [key for key in known if key not in quoted and not any(key.startswith(begin) for begin in beginnings)]
    assert not unused
