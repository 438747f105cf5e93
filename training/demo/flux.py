"""Trains the demo model's transformer on emoji latents, then folds classifier-free guidance into its guidance input."""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from . import autoencoder, stages
from .scenes import Scene, caption_spans, caption_text, random_scene
from .text import SEQUENCE_LENGTH, WIDTH

CONFIG = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 3,
    "num_single_layers": 3,
    "attention_head_dim": 128,  # newer hosts detect the number of heads as hidden / 128
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
GRID = 8  # tokens a side: 128 pixels / 8 (autoencoder) / 2 (patch)
CAPTION_DROP = 0.1
POOLED_DROP = 0.6  # often without the pooled vector, so that the T5 tokens must carry the content
GUIDANCE_RANGE = (1.0, 5.0)


@dataclass
class Data:
    """Scenes with their packed latents [N, 64, 64] in bf16."""

    scenes: list[Scene]
    latents: torch.Tensor


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, 16, 16, 16] -> [B, 64, 64]: 2x2 patches, in Flux's own channel order."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def make_data(sprites: np.ndarray, vae: AutoencoderKL, path: Path, device: torch.device, count: int = 16000) -> Data:
    """Draw `count` scenes and encode them once into `path`."""
    rng = random.Random(11)
    scenes = list(dict.fromkeys(random_scene(rng, pairs=0.5, counts=0.06) for _ in range(count)))
    if path.exists():
        return Data(scenes, torch.load(path, weights_only=True))
    parts = []
    for start in range(0, len(scenes), 500):
        images = np.stack([scene.render(sprites) for scene in scenes[start : start + 500]])
        parts.append(pack(autoencoder.encode(vae, images, device)))
    latents = torch.cat(parts)
    stages.save_atomically(latents, path)
    return Data(scenes, latents)


class Encoders:
    """The frozen text encoders; the same calls that FluxPipeline makes."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.t5_tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).to(device).eval()
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device).eval()
        self.device = device
        self.empty_pooled = self.encode([""])[1]

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """T5 outputs [B, 32, 128] and pooled CLIP outputs [B, 128]."""
        ids = self.t5_tokenizer(
            captions, padding="max_length", max_length=SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        # CLIP is causal and its output is read at the first end token, so trailing padding can be cut
        clip_ids = self.clip_tokenizer(
            captions, padding=True, max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return self.t5(ids.to(self.device)).last_hidden_state, self.clip(clip_ids.to(self.device)).pooler_output


def image_ids(device: torch.device) -> torch.Tensor:
    """Position ids [64, 3] of the image tokens: (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.stack([torch.zeros(GRID, GRID), rows, columns], dim=-1).reshape(-1, 3).to(device)


def call(
    model: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    t5: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """Velocity [B, 64, 64]; t in 0..1, guidance [B]."""
    text_ids = torch.zeros(t5.shape[1], 3, device=x.device)
    return model(
        hidden_states=x, timestep=t, guidance=guidance, pooled_projections=pooled, encoder_hidden_states=t5,
        txt_ids=text_ids, img_ids=image_ids(x.device), return_dict=False,
    )[0]  # fmt: skip


def draw_times(count: int, progress: float) -> torch.Tensor:
    """Timesteps in 0..1: mostly near noise at first, where the noun is decided, then ever more evenly."""
    share = 0.65 if progress < 0.3 else 0.45 if progress < 0.6 else 0.3
    high = torch.rand(count) < share
    return torch.where(high, 0.7 + 0.3 * torch.rand(count), torch.rand(count))


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon on the blocks' matrices, AdamW on everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _set_rate(opts: list[torch.optim.Optimizer], factor: float) -> None:
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = factor * group.setdefault("base_lr", group["lr"])


def _start(folder: Path, device: torch.device) -> tuple[FluxTransformer2DModel, FluxTransformer2DModel, Encoders]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**CONFIG)
    for name, parameter in model.named_parameters():  # adaLN-zero (DiT): every block starts as the identity
        if ("norm" in name and ".linear." in name) or name.startswith("proj_out."):
            torch.nn.init.zeros_(parameter)
    return model.to(device), copy.deepcopy(model).requires_grad_(False).to(device), Encoders(folder, device)


class _Batches:
    """Draws training batches; the draw depends on the step alone, so a resumed run sees the same ones."""

    def __init__(self, data: Data, encoders: Encoders, batch: int) -> None:
        self.data, self.encoders, self.batch = data, encoders, batch
        self.pairs = np.array([i for i, s in enumerate(data.scenes) if len(s.nouns) == 2])
        self.singles = np.array([i for i, s in enumerate(data.scenes) if len(s.nouns) == 1])

    def draw(self, step: int, pairs: float) -> tuple[torch.Tensor, list[str]]:
        """Latents [B, 64, 64] in fp32 and captions; `pairs` is the share of two-object scenes."""
        generator, rng = np.random.default_rng(step), random.Random(step)
        two = generator.random(self.batch) < pairs
        picks = np.where(two, generator.choice(self.pairs, self.batch), generator.choice(self.singles, self.batch))
        captions = [caption_text(caption_spans(rng, self.data.scenes[i])) for i in picks]
        return self.data.latents[torch.from_numpy(picks)].float().to(self.encoders.device), captions


def train_flux(
    data: Data, folder: Path, device: torch.device, steps: int = 4000, batch: int = 64, decay: float = 0.999
) -> FluxTransformer2DModel:
    """Flow matching on (latents, caption); returns the average of the weights (EMA)."""
    model, average, encoders = _start(folder, device)
    opts = optimizers(model)
    batches = _Batches(data, encoders, batch)
    model.compile_repeated_blocks(dynamic=False)
    ones = torch.ones(batch, device=device)
    weights, averages = list(model.parameters()), list(average.parameters())

    def step_fn(step: int) -> dict[str, float]:
        progress = step / steps
        _set_rate(opts, stages.cosine(step, steps, 150))
        latents, captions = batches.draw(step, pairs=0.1 if progress < 0.25 else 0.3 if progress < 0.5 else 0.4)
        dropped = torch.rand(batch) < CAPTION_DROP
        t5, pooled = encoders.encode(["" if d else c for d, c in zip(dropped, captions, strict=False)])
        no_pooled = (torch.rand(batch) < POOLED_DROP).to(device)
        pooled = torch.where(no_pooled[:, None], encoders.empty_pooled, pooled)
        t, noise = draw_times(batch, progress).to(device), torch.randn(latents.shape).to(device)
        x = (1 - t[:, None, None]) * latents + t[:, None, None] * noise
        with stages.autocast(device):
            velocity = call(model, x, t, t5, pooled, ones)
        loss = (velocity.float() - (noise - latents)).square().mean()
        for opt in opts:
            opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for opt in opts:
            opt.step()
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (step + 1) / (step + 10)))
        return {"loss": loss.item()}

    state = {"model": model, "average": average, "muon": opts[0], "adamw": opts[1]}
    stages.train("flux", steps, step_fn, state, folder / "flux.pt")
    return average.eval()


def distill_guidance(
    teacher: FluxTransformer2DModel,
    data: Data,
    folder: Path,
    device: torch.device,
    steps: int = 900,
    batch: int = 40,
    decay: float = 0.99,
) -> FluxTransformer2DModel:
    """Teach one pass at guidance g what classifier-free guidance at scale g gives in two, as in Flux.1-dev."""
    torch.manual_seed(1)
    student, average, encoders = (
        copy.deepcopy(teacher).requires_grad_(True),
        copy.deepcopy(teacher),
        Encoders(folder, device),
    )
    opts = optimizers(student)
    batches = _Batches(data, encoders, batch)
    for model in (teacher, student):
        model.compile_repeated_blocks(dynamic=False)
    empty_t5, empty_pooled = encoders.encode([""])
    empty_t5, empty_pooled = empty_t5.expand(batch, -1, -1), empty_pooled.expand(batch, -1)
    ones = torch.ones(batch, device=device)
    weights, averages = list(student.parameters()), list(average.parameters())

    def step_fn(step: int) -> dict[str, float]:
        _set_rate(opts, 0.35 * stages.cosine(step, steps, 50))
        latents, captions = batches.draw(10**7 + step, pairs=0.35)
        t5, pooled = encoders.encode(["" if torch.rand(()) < 0.05 else c for c in captions])
        no_pooled = (torch.rand(batch) < POOLED_DROP).to(device)
        pooled = torch.where(no_pooled[:, None], empty_pooled, pooled)
        t, noise = draw_times(batch, 0.5).to(device), torch.randn(latents.shape).to(device)
        x = (1 - t[:, None, None]) * latents + t[:, None, None] * noise
        low, high = GUIDANCE_RANGE
        guidance = (low + (high - low) * torch.rand(batch)).to(device)
        with stages.autocast(device), torch.no_grad():
            with_text = call(teacher, x, t, t5, pooled, ones).float()
            without = call(teacher, x, t, empty_t5, empty_pooled, ones).float()
        target = without + guidance[:, None, None] * (with_text - without)
        with stages.autocast(device):
            velocity = call(student, x, t, t5, pooled, guidance)
        loss = (velocity.float() - target).square().mean()
        for opt in opts:
            opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for opt in opts:
            opt.step()
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (step + 1) / (step + 10)))
        return {"loss": loss.item()}

    state = {"student": student, "average": average, "muon": opts[0], "adamw": opts[1]}
    stages.train("guidance", steps, step_fn, state, folder / "guidance.pt")
    return average.eval()


@torch.no_grad()
def sample(
    model: FluxTransformer2DModel,
    encoders: Encoders,
    captions: list[str],
    seeds: list[int],
    guidance: float = 3.5,
    cfg: float = 1.0,
    steps: int = 14,
) -> torch.Tensor:
    """Euler samples as normalised latents [B, 16, 16, 16]; `cfg` > 1 adds classifier-free guidance (two passes)."""
    device = encoders.device
    noise = torch.cat([torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    x = pack(noise).to(device)
    t5, pooled = encoders.encode(captions)
    empty_t5, empty_pooled = encoders.encode([""] * len(captions))
    g = torch.full((len(captions),), guidance, device=device)
    sigmas = [*torch.linspace(1, 1 / steps, steps).tolist(), 0.0]
    for now, then in itertools.pairwise(sigmas):
        t = torch.full((len(captions),), now, device=device)
        with stages.autocast(device):
            velocity = call(model, x, t, t5, pooled, g).float()
            if cfg > 1:
                without = call(model, x, t, empty_t5, empty_pooled, g).float()
                velocity = without + cfg * (velocity - without)
        x = x + (then - now) * velocity
    return x.reshape(-1, GRID, GRID, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 16, 2 * GRID, 2 * GRID)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents -> images [B, 3, 128, 128] in 0..1."""
    pixels = torch.cat(
        [vae.decode(part).sample for part in (latents / autoencoder.SCALING + autoencoder.SHIFT).split(16)]
    )
    return (pixels / 2 + 0.5).clamp(0, 1)
