"""Random LoRAs for tests, and the dense float64 change that each stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from training.lora.format import LoraWeights

HIDDEN = 32
TEXT_QK = ("attn.add_q_proj", "attn.add_k_proj")


def random_lora(
    seed: int,
    rank: int = 4,
    alpha: float = 4.0,
    targets: tuple[str, ...] = TEXT_QK,
    blocks: int = 2,
    dtype: torch.dtype = torch.float32,
    hidden: int = HIDDEN,
    single: tuple[str, ...] = (),
) -> LoraWeights:
    """A LoRA on `targets` of double blocks and on `single` of single blocks, of attention's widths."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"transformer_blocks.{i}.{target}" for i in range(blocks) for target in targets]
    names += [f"single_transformer_blocks.{i}.{target}" for i in range(blocks) for target in single]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).float()

    return {name: (draw(rank, hidden), draw(hidden, rank), alpha) for name in names}


def dense(weights: LoraWeights) -> dict[str, Tensor]:
    """Module → ΔW = alpha / rank · B A in float64."""
    return {name: alpha / len(a) * (b.double() @ a.double()) for name, (a, b, alpha) in weights.items()}


def weighted(sources: list[LoraWeights], weights: list[float]) -> dict[str, Tensor]:
    """Module → Σ w_i ΔW_i in float64."""
    total: dict[str, Tensor] = {}
    for source, weight in zip(sources, weights, strict=True):
        for name, change in dense(source).items():
            total[name] = total.get(name, 0) + weight * change
    return total


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Frobenius norm of the difference over all modules, relative; a missing module is zero."""
    names = found.keys() | expected.keys()
    zero = torch.zeros((), dtype=torch.float64)
    lost = sum(float((found.get(n, zero) - expected.get(n, zero)).square().sum()) for n in names)
    return (lost / sum(float(change.square().sum()) for change in expected.values())) ** 0.5


# Layers of the native layout: (inputs, outputs) in hidden sizes, and the rows of each that diffusers calls otherwise.
NATIVE = {
    "double_blocks.1.img_attn.qkv": (
        1,
        3,
        ["transformer_blocks.1.attn.to_q", "transformer_blocks.1.attn.to_k", "transformer_blocks.1.attn.to_v"],
    ),
    "double_blocks.1.txt_attn.qkv": (1, 3, [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"]),
    "double_blocks.0.img_attn.proj": (1, 1, ["transformer_blocks.0.attn.to_out.0"]),
    "double_blocks.0.txt_attn.proj": (1, 1, ["transformer_blocks.0.attn.to_add_out"]),
    "double_blocks.0.img_mlp.0": (1, 4, ["transformer_blocks.0.ff.net.0.proj"]),
    "double_blocks.0.txt_mlp.2": (4, 1, ["transformer_blocks.0.ff_context.net.2"]),
    "double_blocks.0.img_mod.lin": (1, 6, ["transformer_blocks.0.norm1.linear"]),
    "single_blocks.2.linear1": (
        1,
        7,
        [*(f"single_transformer_blocks.2.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.2.proj_mlp"],
    ),
    "single_blocks.2.linear2": (5, 1, ["single_transformer_blocks.2.proj_out"]),
    "single_blocks.0.modulation.lin": (1, 3, ["single_transformer_blocks.0.norm.linear"]),
    "final_layer.linear": (1, 2, ["proj_out"]),
    "final_layer.adaLN_modulation.1": (1, 2, ["norm_out.linear"]),
    "time_in.out_layer": (1, 1, ["time_text_embed.timestep_embedder.linear_2"]),
}


def native_lora(
    seed: int = 0, hidden: int = HIDDEN, without: tuple[str, ...] = ()
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Native module → (A, B, alpha) with ranks 3 and 6 and alphas of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, (name, (inputs, outputs, _)) in enumerate(NATIVE.items()):
        if name not in without:
            rank = 3 + 3 * (number % 2)
            a = torch.randn(rank, inputs * hidden, generator=generator)
            found[name] = (a, torch.randn(outputs * hidden, rank, generator=generator), 1.0 + number)
    return found


def in_native_layout(weights: LoraWeights, hidden: int = HIDDEN) -> dict[str, Tensor]:
    """What a LoRA under diffusers' names changes in the native layout, dense, by the rows written above."""
    changes = dense(weights)
    found = {}
    for name, (inputs, outputs, parts) in NATIVE.items():
        if not any(part in changes for part in parts):
            continue
        sizes = [hidden] * 3 + [4 * hidden] if len(parts) == 4 else [outputs * hidden // len(parts)] * len(parts)
        zeros = [torch.zeros(size, inputs * hidden, dtype=torch.float64) for size in sizes]
        pieces = [changes.get(part, zero) for part, zero in zip(parts, zeros, strict=True)]
        if name == "final_layer.adaLN_modulation.1":  # diffusers has scale before shift
            pieces = [pieces[0][hidden:], pieces[0][:hidden]]
        found[name] = torch.cat(pieces)
    return found


def kohya(lora: dict[str, tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:
    """Tensors as kohya's sd-scripts name them."""
    tensors = {}
    for name, (a, b, alpha) in lora.items():
        stem = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}
    return tensors


def dotted(lora: dict[str, tuple[Tensor, Tensor, float]], prefix: str, ends=("lora_A.weight", "lora_B.weight")) -> dict:
    """Tensors under `prefix` and the modules' own names."""
    tensors = {}
    for name, (a, b, alpha) in lora.items():
        tensors |= {f"{prefix}{name}.{ends[0]}": a, f"{prefix}{name}.{ends[1]}": b}
        tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return tensors


def native_dialects(lora: dict[str, tuple[Tensor, Tensor, float]]) -> dict[str, dict[str, Tensor]]:
    """The same LoRA in every dialect with native names."""
    return {
        "kohya": kohya(lora),
        "native": dotted(lora, "diffusion_model."),
        "native, lora_down": dotted(lora, "diffusion_model.", ("lora_down.weight", "lora_up.weight")),
    }


def diffusers_dialects(weights: LoraWeights) -> dict[str, dict[str, Tensor]]:
    """The same LoRA in every dialect with diffusers' names that the host knows."""
    underscored = {name.replace(".", "_"): value for name, value in weights.items()}
    down_up = ("lora_down.weight", "lora_up.weight")
    return {
        "diffusers": dotted(weights, "transformer."),
        "diffusers, lora.down": dotted(weights, "transformer.", ("lora.down.weight", "lora.up.weight")),
        "onetrainer": dotted(underscored, "lora_transformer_", down_up),
        "lycoris": dotted(underscored, "lycoris_", down_up),
    }
