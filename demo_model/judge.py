"""Trains the demo model's classifier to be hard to please: blurred, shuffled, blended or recoloured is "none"."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from training.evaluation.classifier import LAYOUTS, DemoClassifier

from . import autoencoder, stages
from .scenes import Scene, random_scene
from .vocabulary import NOUN_NAMES, NOUNS, STYLES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

IGNORE = -100
NONE_INDEX = len(NOUN_NAMES)
LAYOUT_OF = {"single": 0, "next to": 1, "two": 1, "above": 2, "three": 3, "four": 4}


def _labels(scene: Scene) -> tuple[list[int], int, int]:
    """Noun per region (whole, left, right, top, bottom), style, layout."""
    regions = [IGNORE] * 5
    if len(scene.nouns) == 1:
        regions[0] = scene.nouns[0]
    if scene.layout in ("next to", "two"):
        regions[1], regions[2] = scene.nouns[0], scene.nouns[-1]
    elif scene.layout == "above":
        regions[3], regions[4] = scene.nouns
    return regions, scene.style, LAYOUT_OF[scene.layout]


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Strong blur by shrinking to 6..10 pixels a side and back."""
    side = int(generator.integers(6, 11))
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    x = F.interpolate(F.interpolate(x, size=side, mode="area"), size=image.shape[0], mode="bicubic")
    return x[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


def shuffle_tiles(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The picture's tiles of 16 or 32 pixels in random order."""
    size = int(generator.choice((16, 32)))
    n = image.shape[0] // size
    tiles = image.reshape(n, size, n, size, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, size, size, 3)
    tiles = tiles[generator.permutation(n * n)]
    return tiles.reshape(n, n, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(image.shape)


def colour_blob(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same pixels, rearranged along a smooth random field: the right colours in a meaningless shape."""
    side = int(generator.integers(4, 9))
    field = torch.from_numpy(generator.standard_normal((1, 1, side, side)).astype(np.float32))
    field = F.interpolate(field, size=image.shape[0], mode="bicubic")[0, 0].numpy()
    centre = np.hypot(*(np.indices(field.shape) - image.shape[0] / 2)) / image.shape[0]
    pixels = image.reshape(-1, 3)
    # far-from-background colours go to the middle, as they are in a drawing
    weight = np.abs(pixels.astype(int) - image[0, 0].astype(int)).sum(1) + generator.uniform(0, 60, len(pixels))
    result = np.empty_like(pixels)
    result[np.argsort((0.25 * field + 3 * centre).ravel())] = pixels[np.argsort(-weight)]
    return result.reshape(image.shape)


def blend(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Half of each of two pictures, everywhere."""
    return ((image.astype(int) + other) // 2).astype(np.uint8)


def train_classifier(
    sprites: np.ndarray, vae: AutoencoderKL, folder: Path, device: torch.device, steps: int = 1100, batch: int = 64
) -> DemoClassifier:
    """Train on rendered scenes and their autoencoder round trips; writes folder/classifier."""
    torch.manual_seed(0)
    rng = random.Random(5)
    scenes = [random_scene(rng, pairs=0.25, counts=0.08) for _ in range(5000)]
    images = np.stack([scene.render(sprites) for scene in scenes])
    half = len(images) // 2
    latents = autoencoder.encode(vae, images[:half], device)
    with torch.no_grad(), stages.autocast(device):
        for i, part in enumerate(latents.split(50)):  # the generator's pictures come out of the same decoder
            noisy = part.float() + 0.12 * torch.rand(len(part), 1, 1, 1) * torch.randn(part.shape)
            pixels = vae.decode((noisy / autoencoder.SCALING + autoencoder.SHIFT).to(device)).sample.float()
            pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
            images[i * 50 : i * 50 + len(pixels)] = pixels
    labels = [_labels(scene) for scene in scenes]
    singles = np.array([i for i, scene in enumerate(scenes) if scene.layout == "single"])
    model = DemoClassifier(list(NOUN_NAMES), list(STYLES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, fused=True)

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = np.random.default_rng(step)
        pictures, nouns, styles, layouts = [], [], [], []
        for _ in range(batch):
            if generator.random() < 0.25:
                image = images[generator.choice(singles)]
                kind = generator.integers(4)
                if kind == 3:
                    image = blend(image, images[generator.choice(singles)])
                else:
                    image = (blur, shuffle_tiles, colour_blob)[kind](image, generator)
                label: tuple[list[int], int, int] = ([NONE_INDEX] * 5, IGNORE, IGNORE)
            else:
                pick = generator.integers(len(images))
                image, label = images[pick], labels[pick]
            pictures.append(image)
            nouns.append(label[0])
            styles.append(label[1])
            layouts.append(label[2])
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 255
        x = x * (0.9 + 0.2 * torch.rand(batch, 1, 1, 1)) + 0.06 * torch.randn(batch, 3, 1, 1)
        dx, dy = generator.integers(-6, 7, size=2)
        x = F.pad(x, (6, 6, 6, 6), mode="replicate")[..., 6 + dy : 134 + dy, 6 + dx : 134 + dx]
        return (
            x.clamp(0, 1).to(device),
            torch.tensor(nouns, device=device),
            torch.tensor(styles, device=device),
            torch.tensor(layouts, device=device),
        )

    def step_fn(step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * stages.cosine(step, steps, 50)
        x, nouns, styles, layouts = draw(step)
        with stages.autocast(device):
            noun_logits, style_logits, layout_logits = model(x)
        loss = F.cross_entropy(
            noun_logits.float().flatten(0, 1), nouns.flatten(), ignore_index=IGNORE, label_smoothing=0.05
        )
        loss = loss + 0.5 * F.cross_entropy(style_logits.float(), styles, ignore_index=IGNORE)
        loss = loss + 0.5 * F.cross_entropy(layout_logits.float(), layouts, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        known = nouns[:, 0] != IGNORE
        right = (noun_logits[:, 0].argmax(-1) == nouns[:, 0])[known].float().mean()
        return {"loss": loss.item(), "noun": right.item()}

    model.train()
    stages.train("classifier", steps, step_fn, {"model": model, "optimizer": optimizer}, folder / "classifier.pt")
    target = folder / "classifier"
    target.mkdir(exist_ok=True)
    weights = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in model.state_dict().items()
        if "num_batches" not in k
    }
    save_file(weights, target / "model.safetensors")
    synonyms = {noun.name: list(noun.synonyms) for noun in NOUNS}
    facts = {"nouns": list(NOUN_NAMES), "synonyms": synonyms, "styles": list(STYLES), "layouts": list(LAYOUTS)}
    (target / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return model.eval()
