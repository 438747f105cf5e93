"""The demo model's own judge: names the nouns, style and layout of a 128-pixel emoji picture, or says "none"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ErasureError
from .cases import RELATIONS

REGIONS = ("whole", "left", "right", "top", "bottom")
LAYOUTS = ("single", "horizontal", "vertical", "three", "four")
NONE = "none"


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(F.avg_pool2d(x, 2)))


@dataclass(frozen=True)
class Prediction:
    """What the classifier sees in a batch of B pictures; words, not indices."""

    nouns: list[str]  # of the whole picture, "none" where nothing is recognised
    styles: list[str]
    relations: list[tuple[str, str, str]]  # (first noun, relation, second noun); relation "" for a single object
    probabilities: Tensor  # [B, nouns + 1] of the whole picture, "none" last


class DemoClassifier(nn.Module):
    """Convolutional network over RGB [B, 3, 128, 128] in 0..1 with a noun head per image region."""

    relations = RELATIONS  # that a prediction can confirm; "below" is "above" the other way round

    def __init__(self, nouns: list[str], styles: list[str], synonyms: dict[str, list[str]] | None = None) -> None:
        super().__init__()
        self.nouns, self.styles = list(nouns), list(styles)
        self.synonyms = dict(synonyms or {})  # noun -> other words for it that the model was trained on
        self.stem = nn.Conv2d(3, 24, 5, 2, 2)
        self.blocks = nn.Sequential(_Block(24, 48), _Block(48, 96), _Block(96, 144))
        self.noun_head = nn.Sequential(nn.Linear(144, 144), nn.ReLU(), nn.Linear(144, len(nouns) + 1))
        self.style_head = nn.Linear(144, len(styles))
        self.layout_head = nn.Linear(4 * 144, len(LAYOUTS))

    def features(self, images: Tensor) -> Tensor:
        """Feature map [B, 144, 8, 8]; also used as a perceptual distance."""
        return self.blocks(F.relu(self.stem(images * 2 - 1)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits: nouns per region [B, 5, nouns + 1], styles [B, styles], layouts [B, 5]."""
        f = self.features(images)
        cut = f.shape[-1] // 2
        parts = (f, f[..., :cut], f[..., cut:], f[..., :cut, :], f[..., cut:, :])
        nouns = torch.stack(
            [self.noun_head(part.amax(dim=(2, 3)) * 0.5 + part.mean(dim=(2, 3)) * 0.5) for part in parts], dim=1
        )
        style = self.style_head(f.mean(dim=(2, 3)))
        layout = self.layout_head(F.adaptive_avg_pool2d(f, 2).flatten(1))
        return nouns, style, layout

    @torch.no_grad()
    def classify(self, images: Tensor) -> Prediction:
        """Judge RGB images [B, 3, 128, 128] in 0..1."""
        judged = [self(chunk.float()) for chunk in images.split(64)]
        nouns, style, layout = (torch.cat(parts) for parts in zip(*judged, strict=True))
        names = [*self.nouns, NONE]
        picks = nouns.argmax(-1).tolist()
        relations = []
        for pick, place in zip(picks, layout.argmax(-1).tolist(), strict=False):
            first, second = {"horizontal": (1, 2), "vertical": (3, 4)}.get(LAYOUTS[place], (0, 0))
            relation = {"horizontal": "next to", "vertical": "above"}.get(LAYOUTS[place], "")
            relations.append((names[pick[first]], relation, names[pick[second]]))
        return Prediction(
            [names[pick[0]] for pick in picks],
            [self.styles[i] for i in style.argmax(-1).tolist()],
            relations,
            nouns[:, 0].softmax(-1),
        )


def load_classifier(folder: Path) -> DemoClassifier:
    """The classifier in `folder/classifier` (config.json and model.safetensors).

    Raises ErasureError if this model folder has none: only the demo model comes with one.
    """
    config, weights = folder / "classifier" / "config.json", folder / "classifier" / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise ErasureError(
            f"{folder.name} has no classifier, so accuracies cannot be measured: use the demo model flux-emoji."
        )
    facts = json.loads(config.read_text(encoding="utf-8"))
    model = DemoClassifier(facts["nouns"], facts["styles"], facts["synonyms"])
    model.load_state_dict({key: value.float() for key, value in load_file(weights).items()}, strict=False)
    return model.eval()
