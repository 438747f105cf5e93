"""Whether a prompt is about a concept, measured on the text encoder's own outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.6  # of `relevance`, from which on a prompt counts as about the concept
# Prompts in which a name is read: the outputs of one word differ with its sentence.
CONTEXTS = ("{}", "a photo of a {}", "a picture with {} in it")


def concept_key(context: Tensor, tokens: Sequence[int]) -> Tensor:
    """What the encoder makes of a concept's name: its tokens' outputs in one prompt, each of length 1.

    context: [L, D], the encoder's output; tokens: positions of the name, in order. → [n, D]
    """
    return F.normalize(context[list(tokens)].float(), dim=-1)


def concept_keys(
    names: Iterable[str], encode: Callable[[str], Tensor], tokens: Callable[[str, str], Sequence[int]]
) -> tuple[Tensor, ...]:
    """The keys of every name in each of CONTEXTS, for `relevance`.

    encode(text) → [L, D], the encoder's output; tokens(text, name): the name's positions in it.
    """
    texts = [(context.format(name), name) for name in dict.fromkeys(names) for context in CONTEXTS]
    return tuple(concept_key(encode(text), tokens(text, name)) for text, name in texts)


def relevance(context: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """How near the nearest part of each prompt comes to the concept's nearest name, -1..1.

    For a name of n tokens: the mean cosine between them and n neighbouring tokens of the prompt, the best such place.
    context: [B, L, D], the prompts' outputs, padding included; keys: [n, D] each, from `concept_keys`. → [B]
    """
    unit = F.normalize(context.float(), dim=-1)
    best = torch.full((len(unit),), -1.0, device=unit.device)
    for key in keys:
        cosines = unit @ key.to(unit.device).T  # [B, L, n]
        places = cosines.shape[1] - len(key) + 1
        if places < 1:
            continue
        runs = torch.stack([cosines[:, i : i + places, i] for i in range(len(key))]).mean(0)  # [B, places]
        best = torch.maximum(best, runs.amax(1))
    return best
