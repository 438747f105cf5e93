"""Trains the demo model's transformer on emoji latents, then folds classifier-free guidance into its guidance input."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from . import autoencoder, replicas, stages
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
SCENES = 16000
CAPTION_DROP = 0.1
POOLED_DROP = 0.6  # often without the pooled vector, so that the T5 tokens must carry the content
GUIDANCE_RANGE = (1.0, 5.0)
DEFAULT_GUIDANCE = 3.5  # Flux.1-dev's: half of the distillation is spent there
SAMPLING_STEPS = 14
ON_DATA = 0.75  # share of the distillation; then on the student's own trajectories, which guidance leads off the data


@dataclass
class Data:
    """Scenes with their packed latents [N, 64, 64] in bf16."""

    scenes: list[Scene]
    latents: torch.Tensor


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, 16, 16, 16] -> [B, 64, 64]: 2x2 patches, in Flux's own channel order."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def _scenes(count: int) -> list[Scene]:
    rng = random.Random(11)
    return [random_scene(rng, pairs=0.5, counts=0.06) for _ in range(count)]


def load_data(work: Path, count: int = SCENES) -> Data:
    """What make_data() left in `work`."""
    return Data(_scenes(count), torch.load(work / "latents.pt", weights_only=True, mmap=True))


def make_data(sprites: np.ndarray, vae: AutoencoderKL, work: Path, device: torch.device, count: int = SCENES) -> None:
    """Draw `count` scenes and encode them once into `work/latents.pt`."""
    scenes, parts = _scenes(count), []
    for start in range(0, len(scenes), 500):
        images = np.stack([scene.render(sprites) for scene in scenes[start : start + 500]])
        parts.append(pack(autoencoder.encode(vae, images, device)))
    stages.save_atomically(torch.cat(parts), work / "latents.pt")


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
        hidden_states=x,
        timestep=t,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=t5,
        txt_ids=text_ids,
        img_ids=image_ids(x.device),
        return_dict=False,
    )[0]


def draw_times(count: int, progress: float) -> torch.Tensor:
    """Timesteps in 0..1: mostly near noise at first, where the noun is decided, then ever more evenly."""
    share = 0.65 if progress < 0.3 else 0.45 if progress < 0.6 else 0.3
    high = torch.rand(count) < share
    return torch.where(high, 0.7 + 0.3 * torch.rand(count), torch.rand(count))


def _start(work: Path, device: torch.device) -> tuple[FluxTransformer2DModel, FluxTransformer2DModel, Encoders]:
    """A fresh model, the same on every replica, a copy to hold its average, and the text encoders."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**CONFIG)
    for name, parameter in model.named_parameters():  # adaLN-zero (DiT): every block starts as the identity
        if ("norm" in name and ".linear." in name) or name.startswith("proj_out."):
            torch.nn.init.zeros_(parameter)
    return model.to(device), copy.deepcopy(model).requires_grad_(False).to(device), Encoders(work, device)


class Optimizers:
    """Muon on the blocks' matrices, AdamW on everything else; each replica updates its share of the matrices."""

    def __init__(self, model: torch.nn.Module, rank: int, count: int, factor: float = 1.0) -> None:
        self.rank, self.count, self.factor = rank, count, factor
        self.weights = list(model.parameters())
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name]
        chosen = {id(p) for p in matrices}
        by_size = sorted(range(len(matrices)), key=lambda i: (-matrices[i].numel(), i))
        self.owned = [[matrices[i] for i in by_size[r::count]] for r in range(count)]
        self.muon = torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        others = [p for p in self.weights if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """Backward, average over the replicas, clip, update; `rate` multiplies the learning rates."""
        for opt, base in ((self.muon, 6e-3), (self.adamw, 2e-3)):
            opt.zero_grad(set_to_none=True)
            for group in opt.param_groups:
                group["lr"] = base * self.factor * rate
        loss.backward()
        replicas.average_gradients(self.weights, self.count)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for owner, matrices in enumerate(self.owned):
            if owner != self.rank:
                for matrix in matrices:
                    matrix.grad = None  # left to its owner
        self.muon.step()
        self.adamw.step()
        replicas.share(self.owned, self.count)

    def state_dict(self) -> dict[str, object]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])

    def gather(self) -> None:
        """Bring every owner's momentum to all replicas, so that one checkpoint holds them all."""
        if self.count > 1:
            for matrix in (m for group in self.owned for m in group):
                self.muon.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            replicas.share([[self.muon.state[m]["momentum_buffer"] for m in group] for group in self.owned], self.count)


class _Batches:
    """Draws training batches; the draw depends on seed and rank alone, so a resumed run sees the same ones."""

    def __init__(self, data: Data, encoders: Encoders, batch: int, rank: int) -> None:
        self.data, self.encoders, self.batch, self.rank = data, encoders, batch, rank
        self.pairs = np.array([i for i, s in enumerate(data.scenes) if len(s.nouns) == 2])
        self.singles = np.array([i for i, s in enumerate(data.scenes) if len(s.nouns) == 1])

    def draw(self, seed: int, pairs: float, drop: float, progress: float) -> tuple[torch.Tensor, ...]:
        """x_t and noise - x_0 [B, 64, 64], t [B], T5 and pooled outputs; `pairs`: share of two-object scenes."""
        seed = seed * 64 + self.rank
        generator, rng = np.random.default_rng(seed), random.Random(seed)
        torch.manual_seed(seed)
        two = generator.random(self.batch) < pairs
        picks = np.where(two, generator.choice(self.pairs, self.batch), generator.choice(self.singles, self.batch))
        captions = [caption_text(caption_spans(rng, self.data.scenes[i])) for i in picks]
        device = self.encoders.device
        latents = self.data.latents[torch.from_numpy(picks)].float().to(device)
        t5, pooled = self.encoders.encode(["" if rng.random() < drop else caption for caption in captions])
        no_pooled = (torch.rand(self.batch) < POOLED_DROP).to(device)
        pooled = torch.where(no_pooled[:, None], self.encoders.empty_pooled, pooled)
        t, noise = draw_times(self.batch, progress).to(device), torch.randn(latents.shape).to(device)
        return (1 - t[:, None, None]) * latents + t[:, None, None] * noise, noise - latents, t, t5, pooled


def _average(averages: list[torch.Tensor], weights: list[torch.nn.Parameter], decay: float, step: int) -> None:
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (step + 1) / (step + 10)))


def _fit(
    name: str,
    model: torch.nn.Module,
    average: FluxTransformer2DModel,
    optimizers: Optimizers,
    loss_of: Callable[[int], torch.Tensor],
    rate: Callable[[int], float],
    decay: float,
    steps: int,
    work: Path,
    result: str,
) -> None:
    """One replica's part of a training: rank 0 writes the average of the weights (EMA with `decay`) to work/result."""
    averages = list(average.parameters())

    def step_fn(step: int) -> dict[str, float]:
        loss = loss_of(step)
        optimizers.step(loss, rate(step))
        _average(averages, optimizers.weights, decay, step)
        return {"loss": loss.item()}

    state = {"model": model, "average": average, "optimizers": optimizers}
    stages.train(name, steps, step_fn, state, work / f"{name}.pt", optimizers.rank, optimizers.gather)
    if optimizers.rank == 0:
        average.save_pretrained(work / result)


def train_flux(rank: int, count: int, work: Path, device: torch.device, steps: int = 3800, batch: int = 64) -> None:
    """One replica of flow matching on (latents, caption)."""
    model, average, encoders = _start(work, device)
    batches = _Batches(load_data(work), encoders, batch // count, rank)
    model.compile_repeated_blocks(dynamic=False)
    ones = torch.ones(batch // count, device=device)

    def loss_of(step: int) -> torch.Tensor:
        progress = step / steps
        pairs = 0.05 if progress < 0.3 else 0.3 if progress < 0.55 else 0.35
        x, goal, t, t5, pooled = batches.draw(step, pairs, CAPTION_DROP, progress)
        with stages.autocast(device):
            velocity = call(model, x, t, t5, pooled, ones)
        return (velocity.float() - goal).square().mean()

    def rate(step: int) -> float:
        return stages.plateau(step, steps, 150)

    optimizers = Optimizers(model, rank, count)
    _fit("flux", model, average, optimizers, loss_of, rate, 0.998, steps, work, "transformer_base")


def distill_guidance(
    rank: int, count: int, work: Path, device: torch.device, steps: int = 1040, batch: int = 64
) -> None:
    """One replica of teaching one pass at guidance g what classifier-free guidance at scale g gives in two."""
    teacher = FluxTransformer2DModel.from_pretrained(work / "transformer_base").to(device).eval().requires_grad_(False)
    student, average = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
    encoders = Encoders(work, device)
    batch //= count
    batches = _Batches(load_data(work), encoders, batch, rank)
    for model in (teacher, student):
        model.compile_repeated_blocks(dynamic=False)
    empty_t5, empty_pooled = (part.expand(batch, *part.shape[1:]) for part in encoders.encode([""]))
    ones, (low, high) = torch.ones(batch, device=device), GUIDANCE_RANGE

    def draw_guidance() -> torch.Tensor:
        anywhere = low + (high - low) * torch.rand(batch)
        return torch.where(torch.rand(batch) < 0.5, DEFAULT_GUIDANCE, anywhere).to(device)

    levels = torch.linspace(1, 0, SAMPLING_STEPS + 1, device=device)
    own: list[tuple[torch.Tensor, ...]] = []  # the student's last trajectories, as training points not used yet

    def roll_out(step: int) -> None:
        """Points of trajectories that the student draws now: each batch has every time in it."""
        x, _, _, t5, pooled = batches.draw(10**7 + step, pairs=0.4, drop=0.05, progress=0.5)
        x, guidance, visited = torch.randn(x.shape).to(device), draw_guidance(), []
        with stages.autocast(device), torch.no_grad():
            for t, after in itertools.pairwise(levels):
                visited.append(x)
                x = x + (after - t) * call(student, x, t.expand(batch), t5, pooled, guidance).float()
        rows = torch.arange(batch, device=device)
        for first in range(SAMPLING_STEPS):
            index = (rows + first) % SAMPLING_STEPS
            own.append((torch.stack(visited)[index, rows], levels[index], t5, pooled, guidance))

    def points(step: int) -> tuple[torch.Tensor, ...]:
        """x_t, t, T5 and pooled outputs, guidance: noised data, in the end where sampling itself leads."""
        if step < ON_DATA * steps:
            x, _, t, t5, pooled = batches.draw(10**7 + step, pairs=0.4, drop=0.05, progress=0.5)
            return x, t, t5, pooled, draw_guidance()
        if not own:
            roll_out(step)
        return own.pop()

    def loss_of(step: int) -> torch.Tensor:
        x, t, t5, pooled, guidance = points(step)
        with stages.autocast(device), torch.no_grad():
            with_text = call(teacher, x, t, t5, pooled, ones).float()
            without = call(teacher, x, t, empty_t5, empty_pooled, ones).float()
        with stages.autocast(device):
            velocity = call(student, x, t, t5, pooled, guidance)
        push = guidance[:, None, None] * (with_text - without)
        error = (velocity.float() - without - push).square().mean((1, 2))
        # Guidance pushes hardest near noise; unweighted, the details that make a style come too short.
        return (error / (push.square().mean((1, 2)) + 0.1)).mean()

    def rate(step: int) -> float:
        return stages.plateau(step, steps, 30)

    optimizers = Optimizers(student, rank, count, factor=0.35)
    _fit("guidance", student, average, optimizers, loss_of, rate, 0.98, steps, work, "transformer")


@torch.no_grad()
def sample(
    model: FluxTransformer2DModel,
    encoders: Encoders,
    captions: list[str],
    seeds: list[int],
    guidance: float = DEFAULT_GUIDANCE,
    cfg: float = 1.0,
    steps: int = SAMPLING_STEPS,
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
