"""Words that T5 and CLIP both read as one token, and prompts that begin with a mixture of them.

An attack that is to end in a prompt somebody can type needs one text for both encoders. A mixture of words is a point
of the simplex: weights of all words that add up to 1; what enters an encoder is the mean of their input embeddings. A
corner of the simplex is a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...concepts import forms_of, occurrences
from ...errors import ErasureError
from ...models.text import TextEmbeds, TextEncoders


class _Space:
    """One encoder's side of the words: their token ids [V], where the first word of a text is, the table [V, D]."""

    def __init__(self, tokenizer: Any, layer: torch.nn.Embedding, length: int, words: Sequence[str]) -> None:
        self.tokenizer, self.length, self.layer = tokenizer, length, layer
        ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]
        self.start = list(tokenizer(words[0]).input_ids).index(ids[0])  # CLIP's texts begin with a token of its own
        self.ids = torch.tensor(ids)
        self.table = self.layer.weight.detach()[self.ids.to(self.layer.weight.device)]

    def read(self, prompts: Sequence[str]) -> Tensor:
        """[B, length] token ids."""
        return TextEncoders.tokens(self.tokenizer, prompts, self.length)

    @contextmanager
    def mixed(self, weights: Tensor) -> Iterator[None]:
        """While the context lasts every text begins with these mixtures [k, V] in place of its first k words."""

        # a hook, since CLIP finds its pooled position by the ids and takes no embeddings from outside
        def put(_module: object, _args: object, out: Tensor) -> Tensor:
            rows = (weights.to(self.table) @ self.table).to(out.dtype).expand(out.shape[0], -1, -1)
            end = self.start + rows.shape[1]
            return torch.cat([out[:, : self.start], rows, out[:, end:]], dim=1)

        handle = self.layer.register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


class Words:
    """The words that attacks may use: all that both encoders read as one token, but those with a forbidden phrase.

    Raises ErasureError where the encoders share no such words.
    """

    def __init__(self, text: TextEncoders, forbidden: Sequence[str] = ()) -> None:
        self.text = text
        self.words = _shared(text.tokenizer_2, text.tokenizer, forbidden)
        if len(self.words) < 2:
            raise ErasureError("The two text encoders have no words in common: prompt attacks cannot be made on them.")
        # not t5.get_input_embeddings(): that table is tied to the encoder's, but the encoder calls its own
        self._t5 = _Space(text.tokenizer_2, text.t5.encoder.get_input_embeddings(), text.sequence_length, self.words)
        self._clip = _Space(
            text.tokenizer, text.clip.get_input_embeddings(), text.tokenizer.model_max_length, self.words
        )

    def __len__(self) -> int:
        return len(self.words)

    def said(self, picked: Sequence[int]) -> str:
        """The text of words by their numbers."""
        return " ".join(self.words[number] for number in picked)

    def reads_back(self, picked: Sequence[int], prompt: str) -> bool:
        """Whether both encoders read `prompt`, which begins with these words, as these very tokens."""
        for space in (self._t5, self._clip):
            found = space.read([prompt])[0, space.start : space.start + len(picked)]
            if not torch.equal(found, space.ids[list(picked)]):
                return False
        return True

    def encode(self, prompts: Sequence[str], weights: Tensor) -> TextEmbeds:
        """Embeddings of prompts that begin with k words, with mixtures in their place, differentiable in `weights`
        [k, V] (rows of the simplex; the float type is the caller's)."""
        device, clip = self.text.device, self.text.clip
        with ExitStack() as stack:
            for space in (self._t5, self._clip):
                stack.enter_context(space.mixed(weights.to(device)))
            t5 = self.text.t5(self._t5.read(prompts).to(device))[0]
            pooled = clip(self._clip.read(prompts).to(device)).pooler_output
        return TextEmbeds(t5, pooled)


def _shared(first: Any, second: Any, forbidden: Sequence[str]) -> list[str]:
    """In the order of the first tokenizer's ids."""
    special = {*first.all_special_ids}
    texts = [first.decode([number]).strip() if number not in special else "" for number in range(len(first))]
    texts = [word for word in texts if word.isalpha()]
    # in one go: the real T5 has 32,000 words
    alone = zip(*(tokenizer(texts, add_special_tokens=False).input_ids for tokenizer in (first, second)), strict=True)
    unknown = (first.unk_token_id, second.unk_token_id)
    found = [
        word
        for word, (a, b) in zip(texts, alone, strict=True)
        if len(a) == len(b) == 1
        and a[0] != unknown[0]
        and b[0] != unknown[1]
        and not any(occurrences(word, form) for phrase in forbidden for form in forms_of(phrase))
    ]
    return list(dict.fromkeys(found))
