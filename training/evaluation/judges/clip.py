"""CLIP: pictures and texts as vectors, and a judge that chooses among words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ErasureError
from .base import Finding, Judge, classified, each_picture
from .pretrained import complete_model, loading, model_folder, processed, sha256_of_weights

CLIP_TEMPLATE = "This is a photo of {}."  # what transformers' zero-shot pipeline asks with
TEMPLATES = {  # by the concept's kind
    "abstraction": "This is a picture in the style of {}.",
    "relationship": "This is a picture of one thing {} another.",
}
_CHUNK = 32  # pictures that the network judges at once


class Clip:
    """A CLIP (Radford et al., ICML 2021): pictures and texts as unit vectors whose cosine says how well they match.

    folder: a CLIP in transformers' layout (openai/clip-vit-large-patch14, for example). Raises SourceError where there
    is no such model.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        folder = model_folder(folder, "CLIP model", "openai/clip-vit-large-patch14", "the tokenizer's files", ("clip",))
        self.name = f"CLIP {folder.name}"
        with loading(folder, "CLIP model"):
            self._model = complete_model(folder, CLIPModel, device)
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.longest: int = self._model.config.text_config.max_position_embeddings  # tokens that it reads
        self.scale = float(self._model.logit_scale.exp())  # of the cosine, in its own classification

    def tokens(self, text: str) -> int:
        """How many tokens a text has, beginning and end included."""
        return len(self._tokenizer(text)["input_ids"])

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W] in 0..1 → [B, D] of length 1; resized, cropped and normalised as the folder's
        preprocessor says."""
        seen = self._model.vision_model(pixel_values=processed(self._processor, images, self._model.device))
        return F.normalize(self._model.visual_projection(seen.pooler_output), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → [B, D] of length 1; what is longer than `longest` tokens is cut there."""
        text = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.longest
        ).to(self._model.device)
        pooled = self._model.text_model(
            input_ids=text["input_ids"], attention_mask=text["attention_mask"]
        ).pooler_output
        return F.normalize(self._model.text_projection(pooled), dim=-1)


class ClipJudge(Judge):
    """CLIP's zero-shot classification: softmax over labels of the scaled cosine between a picture and `template` with
    each label.

    Args:
        folder: As `Clip` takes it.
        labels: At least two, all different.
        template: Has {} once.

    Raises:
        SourceError: Where there is no such model.
        ErasureError: For labels or a template that cannot be used.

    Source: Radford et al., ICML 2021, section 3.1.2.
    """

    kind = "clip"
    clip: Clip  # of other judges it may be None

    def __init__(
        self, folder: str | Path, labels: Sequence[str], template: str = CLIP_TEMPLATE, device: str = "cpu"
    ) -> None:
        if len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(str.strip, labels)):
            raise ErasureError("CLIP chooses among labels: give at least two, all different and none empty.")
        if template.count("{}") != 1:
            raise ErasureError(f'The template "{template}" must have {{}} once, where the label goes.')
        self.clip = Clip(folder, device)
        prompts = {label: template.replace("{}", label) for label in labels}
        if long := [label for label, prompt in prompts.items() if self.clip.tokens(prompt) > self.clip.longest]:
            raise ErasureError(
                f'This CLIP reads {self.clip.longest} tokens, fewer than a label has: shorten "{long[0][:60]}".'
            )
        super().__init__(self.clip.name, sha256_of_weights(Path(folder)), labels, {label: (label,) for label in labels})
        self._words = self.clip.embed_texts(list(prompts.values()))  # [labels, D]

    def detect(self, images: Tensor) -> list[Finding]:
        """See Judge."""

        def chosen(part: Tensor) -> list[Finding]:
            logits = self.clip.scale * self.clip.embed_images(part) @ self._words.T
            return classified(self.labels, logits.softmax(-1))

        return each_picture(images, chosen, _CHUNK)
