"""The words of a prompt and the T5 tokens that carry them: exact, from the tokenizer's own character offsets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..concepts.matching import is_unspaced, occurrences
from ..concepts.words import Tokenizer
from ..errors import ConceptError

Range = tuple[int, int]  # half-open


@dataclass(frozen=True)
class Word:
    """One word, or run of punctuation, of a prompt.

    Attributes:
        start, end: Its characters in the prompt, [start, end).
        tokens: Positions of its tokens; none where the tokenizer drops all of its characters (some control characters).
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PromptWords:
    """A prompt as the text encoder reads it.

    Between the words of `words` (and before `cut`) the prompt has nothing but white space.

    Attributes:
        ids, pieces, characters: One entry for every token of the prompt, without end token and padding. The end token
            is at position len(ids), padding fills the rest.
        length: Positions in all.
        cut: The text beyond the limit, which the encoder does not read.
    """

    prompt: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    characters: tuple[Range, ...]
    words: tuple[Word, ...]
    length: int
    cut: str = ""

    @property
    def end(self) -> int:
        """Position of the end token."""
        return len(self.ids)

    @property
    def padding(self) -> range:
        """Positions of the padding."""
        return range(self.end + 1, self.length)

    def positions(self, phrase: str) -> tuple[int, ...]:
        """The tokens of all occurrences of a phrase; none where the prompt lacks it."""
        found = occurrences(self.prompt, phrase)
        return tuple(
            n for n, (a, b) in enumerate(self.characters) if any(a < end and start < b for start, end in found)
        )

    def phrase(self, phrase: str) -> Word:
        """The phrase as one word, with the tokens of all its occurrences; ConceptError if the prompt lacks it."""
        tokens = self.positions(phrase)
        if not tokens:
            raise ConceptError(f'The prompt "{self.prompt}" does not contain "{phrase}" where the encoder reads it.')
        return Word(phrase, *occurrences(self.prompt, phrase)[0], tokens)


def read_prompt(tokenizer: Tokenizer, segments: str | Sequence[str], length: int) -> PromptWords:
    """The words of a prompt under a T5 tokenizer.

    segments: the prompt, or the parts that are tokenised one by one (prompt weights cut it); they rebuild the prompt
    when joined. length: positions the encoder reads, end token included. A word is a run without white space; leading
    and trailing punctuation are words of their own where the tokens allow, and so are the tokens of scripts without
    spaces. Raises ConceptError for a tokenizer that gives no offsets (a "slow" one).
    """
    segments = [segments] if isinstance(segments, str) else list(segments)
    prompt = "".join(segments)
    ids: list[int] = []
    characters: list[Range] = []
    base = 0
    for segment in segments:
        try:
            encoded = tokenizer(segment, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise ConceptError("The T5 tokenizer gives no offsets: load the folder with its tokenizer.json.") from error
        ids += encoded["input_ids"]
        characters += [_trimmed(prompt, base + a, base + b) for a, b in encoded["offset_mapping"]]
        base += len(segment)
    limit = max(length - 1, 0)
    words = [
        Word(word.text, word.start, word.end, tuple(n for n in word.tokens if n < limit))
        for word in _words(prompt, characters)
        if not word.tokens or word.tokens[0] < limit
    ]
    while len(ids) > limit and words and not words[-1].tokens:  # dropped characters beyond the limit
        words.pop()
    cut = prompt[words[-1].end if words else 0 :].strip() if len(ids) > limit else ""
    pieces = tokenizer.convert_ids_to_tokens(ids[:limit])
    return PromptWords(prompt, tuple(ids[:limit]), tuple(pieces), tuple(characters[:limit]), tuple(words), length, cut)


def _trimmed(prompt: str, start: int, end: int) -> Range:
    """The range without white space at its ends: T5's first token of a word covers the space before it too."""
    while start < end and prompt[start].isspace():
        start += 1
    while end > start and prompt[end - 1].isspace():
        end -= 1
    return start, end


def _words(prompt: str, characters: Sequence[Range]) -> Iterator[Word]:
    tokens = _placed(characters)
    for run in re.finditer(r"\S+", prompt):
        inside = [n for n, (a, _) in enumerate(tokens) if run.start() <= a < run.end()]
        groups = _groups(prompt, tokens, inside) if inside else [[]]
        # a group reaches to the next one, so that characters which the tokenizer drops belong to a word too
        starts = [run.start(), *(tokens[group[0]][0] for group in groups[1:])]
        for group, start, end in zip(groups, starts, [*starts[1:], run.end()], strict=True):
            yield Word(prompt[start:end], start, end, tuple(group))


def _placed(characters: Sequence[Range]) -> list[Range]:
    """Every token with a place: one without characters of its own (a bare "▁") stands where the next one does."""
    placed = list(characters)
    for n in range(len(placed) - 1, -1, -1):
        a, b = placed[n]
        if a >= b:
            # at the very end it goes with the token before it
            neighbours = placed[n + 1 : n + 2] or [r for r in reversed(placed[:n]) if r[0] < r[1]][:1]
            placed[n] = neighbours[0] if neighbours else (a, b)
    return placed


def _groups(prompt: str, tokens: Sequence[Range], inside: Sequence[int]) -> list[list[int]]:
    """The tokens of one run without white space, as words; tokens that share a character stay together."""
    atoms: list[list[int]] = []
    reach = -1
    for n in inside:
        if atoms and tokens[n][0] < reach:
            atoms[-1].append(n)
        else:
            atoms.append([n])
        reach = max(reach, tokens[n][1])
    texts = [prompt[min(tokens[n][0] for n in atom) : max(tokens[n][1] for n in atom)] for atom in atoms]
    spoken = [i for i, text in enumerate(texts) if not all(_is_punctuation(character) for character in text)]
    if not spoken:
        return [list(inside)]
    groups: list[list[int]] = []
    previous = ""
    for i, (atom, text) in enumerate(zip(atoms, texts, strict=True)):
        # "don't" and "1.5" stay whole: only punctuation before the first and after the last letter is apart
        kind = "before" if i < spoken[0] else "after" if i > spoken[-1] else "word"
        if kind == "word" and any(is_unspaced(character) for character in text):
            kind = f"token {i}"
        if kind == previous:
            groups[-1] += atom
        else:
            groups.append(list(atom))
        previous = kind
    return groups


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
