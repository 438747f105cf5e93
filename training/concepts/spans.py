"""Where a phrase's T5 tokens are in a prompt: every occurrence, exact under punctuation, capitals and truncation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import ConceptError
from .matching import occurrences
from .words import Tokenizer

Span = tuple[int, int]  # half-open range of token positions


def token_spans(tokenizer: Tokenizer, prompt: str, phrase: str, max_length: int) -> list[Span]:
    """Token ranges of every occurrence of `phrase` in `prompt`, cut off at `max_length` tokens as the encoder does.

    A token belongs to an occurrence when it covers a character of it that is not white space (T5's first token of a
    word covers the space before it too). Empty where the phrase is absent or wholly cut off.
    Raises ConceptError for a tokenizer that gives no offsets (a "slow" one).
    """
    try:
        encoded = tokenizer(prompt, truncation=True, max_length=max_length, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ConceptError("The T5 tokenizer gives no offsets: load the folder with its tokenizer.json.") from error
    offsets = list(encoded["offset_mapping"])[:max_length]
    spans = []
    for start, end in occurrences(prompt, phrase):
        letters = {i for i in range(start, end) if not prompt[i].isspace()}
        inside = [n for n, (a, b) in enumerate(offsets) if any(i in letters for i in range(a, b))]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return spans


def span_mask(spans: Sequence[Span], length: int) -> torch.Tensor:
    """Boolean mask [length], True at the tokens of any span."""
    mask = torch.zeros(length, dtype=torch.bool)
    for start, end in spans:
        mask[start:end] = True
    return mask


def require_span(tokenizer: Tokenizer, prompt: str, phrase: str, max_length: int) -> list[Span]:
    """`token_spans`, or one sentence (ConceptError) that says why there is none or why it is of no use."""
    if not occurrences(prompt, phrase):
        raise ConceptError(f'The prompt "{prompt}" does not contain the concept "{phrase}": put it in.')
    spans = token_spans(tokenizer, prompt, phrase, max_length)
    if not spans:
        raise ConceptError(
            f'The concept "{phrase}" lies beyond the {max_length} tokens the text encoder reads: shorten the prompt.'
        )
    ids = list(tokenizer(prompt, truncation=True, max_length=max_length).input_ids)
    pieces = {ids[i] for start, end in spans for i in range(start, end)} - {tokenizer.unk_token_id}
    if not any(piece.strip("▁") for piece in tokenizer.convert_ids_to_tokens(list(pieces))):
        raise ConceptError(f'This model\'s text encoder does not know "{phrase}": choose words it was trained on.')
    return spans
