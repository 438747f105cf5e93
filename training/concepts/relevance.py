"""Whether a prompt is about a concept, told from the text encoder's own outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.6  # of `relevance`, from which on a prompt counts as about the concept


def concept_key(context: Tensor, tokens: Sequence[int]) -> Tensor:
    """What the encoder makes of a concept's name: its tokens' outputs in one prompt, each of length 1.

    context: [L, D], the encoder's output; tokens: positions of the name, in order. → [n, D]
    """
    return F.normalize(context[list(tokens)].float(), dim=-1)


def relevance(context: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """How near the nearest part of each prompt comes to the concept's nearest name, -1..1.

    For a name of n tokens: the mean cosine between them and n neighbouring tokens of the prompt, the best such place.
    Outputs of one word differ with its sentence, so give keys of several prompts for each name.

    context: [B, L, D], the prompts' outputs, padding included; keys: [n, D] each, from `concept_key`. → [B]
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
