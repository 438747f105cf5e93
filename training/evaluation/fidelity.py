"""How pictures of a caption list compare with others: FID and KID, the same distances of other features, CLIP score.

The distances are torchmetrics' (optional, `pip install torchmetrics`), which does its mathematics without torchvision.
The libraries that bring the Inception network along (torch-fidelity, clean-fid) cannot be imported without torchvision,
of which there is no build for every torch; so that network is read from the TorchScript file that NVIDIA publishes. Of
any other features the same distances are called feature distances: figures of papers are not comparable with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import ConfigError, ErasureError, SourceError
from ..lora.files import sha256_of
from .intervals import bootstrap_mean
from .judges import own_classifier
from .judges.clip import Clip
from .judges.pretrained import sha256_of_weights

MODEL, CLIP, INCEPTION = "model", "clip", "inception"
KINDS = (MODEL, CLIP, INCEPTION)
INCEPTION_FILE = "inception-2015-12-05.pt"  # NVIDIA's name for it
INCEPTION_FEATURES = 2048
SUBSETS, SUBSET = 100, 1000  # of KID, as its authors take them (Bińkowski et al., ICLR 2018)
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # of reference pictures
_CHUNK = 32


class Features(Protocol):
    """Pictures as vectors. name: whose, for a report; sha256: of the weights; is_fid: whether distances of these are
    FID and KID; clip: the CLIP that they are from, where they are from one."""

    name: str
    sha256: str
    is_fid: bool
    clip: Clip | None

    def __call__(self, images: Tensor) -> Tensor:
        """RGB images fp32 [B, 3, H, W] in 0..1 → [B, D]."""
        ...


def parse(choice: str) -> tuple[str, str]:
    """("clip", "FOLDER") of "clip:FOLDER"; "" for the model's own classifier. Raises ConfigError."""
    kind, _, place = choice.partition(":")
    if kind not in KINDS or bool(place) != (kind != MODEL):
        raise ConfigError(
            f"Unknown features {choice[:80]!r}: write {MODEL}, {CLIP}:FOLDER or, for FID and KID, {INCEPTION}:FILE."
        )
    return kind, place


def make_features(choice: str, model: Path | None, device: str) -> Features:
    """The features that `choice` (see `parse`) names. model: the Flux's folder, for its own classifier.

    Raises ErasureError's subclasses where the package, the weights or a classifier are missing.
    """
    kind, place = parse(choice)
    _torchmetrics()
    if kind == MODEL:
        return _ModelFeatures(model)
    return _ClipFeatures(place, device) if kind == CLIP else _Inception(place, device)


class _ModelFeatures:
    is_fid = False
    clip: Clip | None = None

    def __init__(self, model: Path | None) -> None:
        self.classifier = own_classifier(model)
        assert model is not None, "`own_classifier` refuses None"
        self.name = f"{model.name} classifier"
        self.sha256 = sha256_of(model / "classifier" / "model.safetensors")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.classifier.features(images).mean((2, 3))


class _ClipFeatures:
    is_fid = False
    clip: Clip | None

    def __init__(self, folder: str, device: str) -> None:
        self.clip = clip = Clip(folder, device)
        self.name, self.sha256, self.embed = clip.name, sha256_of_weights(Path(folder)), clip.embed_images

    def __call__(self, images: Tensor) -> Tensor:
        return self.embed(images)


class _Inception:
    """The network that FID is defined with, as TorchScript: resizes and scales uint8 pictures itself."""

    is_fid, name = True, "Inception v3 (2015-12-05)"
    clip: Clip | None = None

    def __init__(self, file: str, device: str) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise SourceError(
                f"There is no Inception network at {path}: put NVIDIA's {INCEPTION_FILE} (StyleGAN2-ADA's TorchScript "
                "file, about 90 MB) there; nothing is downloaded."
            )
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as problem:
            raise SourceError(
                f"{path.name} is no TorchScript file that can be read: put NVIDIA's {INCEPTION_FILE} there."
            ) from problem
        self.device, self.sha256 = torch.device(device), sha256_of(path)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        try:
            found = self.network(images.mul(255).round().byte().to(self.device), return_features=True)
        except RuntimeError as problem:
            reason = (str(problem).strip() or "RuntimeError").splitlines()[-1]
            raise SourceError(f"The Inception file takes no pictures ({reason}): use {INCEPTION_FILE}.") from problem
        if found.ndim != 2 or found.shape[1] != INCEPTION_FEATURES:
            raise SourceError(
                f"The Inception file gives {list(found.shape)}, no [B, {INCEPTION_FEATURES}]: use {INCEPTION_FILE}."
            )
        return found


def _torchmetrics() -> Any:
    """torchmetrics' two distances. Raises ErasureError with what to install."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except Exception as missing:  # a torchvision that does not fit raises more than ImportError
        raise ErasureError(
            f"Distances cannot be measured here ({missing}): run pip install torchmetrics with ComfyUI's Python."
        ) from missing
    return FrechetInceptionDistance, KernelInceptionDistance


class _Given(nn.Module):
    """Features that are there already, for torchmetrics, which wants to extract them itself."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features [n, D], n ≥ 2, as normal distributions (Heusel et al., NeurIPS 2017,
    Eq. 6): ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), in fp64; covariances with n − 1. Of few pictures it is too large, and
    those of different numbers cannot be compared (Chong & Forsyth, CVPR 2020)."""
    metric = _torchmetrics()[0](feature=_Given(first.shape[1])).set_dtype(torch.float64)
    metric.update(first.double(), real=True)
    metric.update(second.double(), real=False)
    return max(0.0, float(metric.compute()))  # rounding takes equal sets below 0


def kernel(first: Tensor, second: Tensor, seed: int = 0) -> tuple[float, float]:
    """Kernel distance of two sets of features [n, D], n ≥ 2: (mean, standard deviation) of the unbiased squared MMD
    with the kernel (x·y/D + 1)³ over SUBSETS random subsets of SUBSET pictures (Bińkowski et al., ICLR 2018); of fewer
    pictures one of all, without a deviation (nan). May be a little below 0."""
    size = min(SUBSET, len(first), len(second))
    subsets = SUBSETS if size == SUBSET else 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all features, which are there anyway
        torch.manual_seed(seed)
        metric = _torchmetrics()[1](feature=_Given(first.shape[1]), subsets=subsets, subset_size=size)
        metric.update(first.double(), real=True)
        metric.update(second.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation) if subsets > 1 else float("nan")


def clip_scores(clip: Clip, images: Tensor, captions: Sequence[str]) -> list[float]:
    """CLIP score of each picture with its caption, 0 to 100: 100·max(0, cos) of their embeddings (Hessel et al., EMNLP
    2021, with the factor of 100 that text-to-image papers use). images: fp32 [B, 3, H, W] in 0..1."""
    cosines = (clip.embed_images(images) * clip.embed_texts(captions)).sum(-1)
    return [100 * max(0.0, cosine) for cosine in cosines.tolist()]


@dataclass(frozen=True)
class Reference:
    """Pictures to compare with. features: [n, D]; unreadable: file name → why, of those left out."""

    name: str
    features: Tensor
    unreadable: dict[str, str]


def read_reference(folder: Path, features: Features) -> Reference:
    """The features of all pictures directly in a folder. Raises ErasureError where fewer than two can be read."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    except OSError as error:
        raise ErasureError(f"The reference pictures in {folder.name} cannot be read ({error.strerror}).") from error
    found, unreadable = [], {}
    for path in files:
        try:
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            found.append(features(pixels[None].float() / 255).cpu())
        except SourceError:
            raise
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as problem:
            unreadable[path.name] = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    if len(found) < 2:
        broken = f", {len(unreadable)} cannot be read" if unreadable else ""
        raise ErasureError(f"{folder.name} holds {len(found)} usable pictures{broken}: a distance needs two at least.")
    return Reference(f"{len(found)} pictures in {folder.name}", torch.cat(found), unreadable)


def features_of(features: Features, images: Tensor) -> Tensor:
    """[B, 3, H, W] → [B, D] on the CPU, some pictures at a time."""
    return torch.cat([features(part.float()).cpu() for part in images.split(_CHUNK)])


def distances(features: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """{"frechet", "kernel", "kernel_deviation" (None of few pictures), "images"}, as JSON takes it."""
    mean, deviation = kernel(reference, features, seed)
    return {
        "frechet": _rounded(frechet(reference, features)),
        "kernel": _rounded(mean),
        "kernel_deviation": None if np.isnan(deviation) else _rounded(deviation),
        "images": len(features),
    }


def mean_score(scores: Sequence[float]) -> dict[str, Any]:
    """{"mean", "interval" (95 %, bootstrap; None of one picture), "images"} of scores, more than none."""
    low, high = bootstrap_mean(scores)
    interval = None if len(scores) < 2 else [round(low, 3), round(high, 3)]
    return {"mean": round(float(np.mean(scores)), 3), "interval": interval, "images": len(scores)}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
