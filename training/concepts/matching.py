"""Where a phrase stands in a text, however it is typed: capitals, hyphens, underscores, apostrophes and accents."""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces between words: a neighbouring letter there does not mean another word.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´＇", "'"))
_SEPARATORS = r"[\s_\-‐‑‒–]"  # what people put between the words of one name: "Van Gogh", "van_gogh", "Van-Gogh"


def tidy(text: str) -> str:
    """`text` in composed Unicode (NFC) with straight apostrophes: one spelling of what looks the same."""
    return unicodedata.normalize("NFC", text).translate(_APOSTROPHES)


def plain(text: str) -> str:
    """`text` without the accents on its letters, as a keyboard that lacks them types it: "café" → "cafe"."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that writes words without spaces between them."""
    return unicodedata.name(character, "").startswith(_UNSPACED)


def _edge(character: str, pattern: str) -> str:
    """The word-boundary test next to a phrase's outer character; none beside punctuation and in unspaced scripts."""
    if not character.isalnum():
        return ""
    return "" if is_unspaced(character) else pattern


def _composed(text: str) -> tuple[str, list[int]]:
    """`text` as `tidy` has it, and where each of its characters begins in `text` (one more entry: the end)."""
    out: list[str] = []
    starts: list[int] = []
    at = 0
    while at < len(text):
        end = at + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = tidy(text[at:end])
        out.append(piece)
        starts += [at] * len(piece)
        at = end
    return "".join(out), [*starts, len(text)]


def occurrences(prompt: str, phrase: str) -> list[tuple[int, int]]:
    """Character ranges of `phrase` in `prompt`: whole words, in any capitals, with white space, hyphens or underscores
    between them, straight or typographic apostrophes, accents composed or not."""
    words = [word for word in re.split(_SEPARATORS, tidy(phrase)) if word]
    if not words:
        return []
    text, starts = _composed(prompt)
    body = rf"{_SEPARATORS}+".join(re.escape(word) for word in words)
    pattern = _edge(words[0][0], r"(?<![^\W_])") + body + _edge(words[-1][-1], r"(?![^\W_])")
    found = re.finditer(pattern, text, flags=re.IGNORECASE)
    return [(starts[match.start()], starts[match.end()]) for match in found]


def contains(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words, as `occurrences` finds them."""
    return bool(occurrences(text, phrase))
