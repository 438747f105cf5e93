"""A table of the layouts in which Flux LoRAs come: tensors as a trainer names them, and the change that they mean.

The change is computed here in float64 by each layout's own rule, from tables that share nothing with the code under
test: `meant` maps diffusers' linear layers to ΔW.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN = 32
TEXT, POOLED, LATENT, OUT = 48, 40, 16, 64  # widths of the text embeddings, of the pooled one, of tokens in and out
DEPTH, SINGLE = 2, 3

Layers = dict[str, tuple[Tensor, Tensor, float]]  # module → A, B, alpha


@dataclass(frozen=True)
class Layout:
    """tensors, metadata: of the file; config: adapter_config.json beside it; meant: None where the file is refused.

    says: parts of the sentences about what was left out, converted or read from elsewhere, or of the refusal.
    """

    tensors: Mapping[str, Tensor]
    meant: Mapping[str, Tensor] | None
    says: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    stem: str = "lora"
    tolerance: float = 1e-6

    def save(self, folder: Path) -> Path:
        """Writes the file, and what lies beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.safetensors"
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}, path, dict(self.metadata)
        )
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        return path


# native layer → (inputs, outputs, diffusers' layers that it stacks)
NATIVE: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "double_blocks.1.img_attn.qkv": (HIDDEN, 3 * HIDDEN, tuple(f"transformer_blocks.1.attn.to_{x}" for x in "qkv")),
    "double_blocks.0.txt_attn.qkv": (
        HIDDEN,
        3 * HIDDEN,
        tuple(f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"),
    ),
    "double_blocks.0.img_attn.proj": (HIDDEN, HIDDEN, ("transformer_blocks.0.attn.to_out.0",)),
    "double_blocks.1.txt_attn.proj": (HIDDEN, HIDDEN, ("transformer_blocks.1.attn.to_add_out",)),
    "double_blocks.0.img_mlp.0": (HIDDEN, 4 * HIDDEN, ("transformer_blocks.0.ff.net.0.proj",)),
    "double_blocks.1.txt_mlp.2": (4 * HIDDEN, HIDDEN, ("transformer_blocks.1.ff_context.net.2",)),
    "double_blocks.0.img_mod.lin": (HIDDEN, 6 * HIDDEN, ("transformer_blocks.0.norm1.linear",)),
    "single_blocks.2.linear1": (
        HIDDEN,
        7 * HIDDEN,
        (*(f"single_transformer_blocks.2.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.2.proj_mlp"),
    ),
    "single_blocks.1.linear2": (5 * HIDDEN, HIDDEN, ("single_transformer_blocks.1.proj_out",)),
    "single_blocks.0.modulation.lin": (HIDDEN, 3 * HIDDEN, ("single_transformer_blocks.0.norm.linear",)),
    "img_in": (LATENT, HIDDEN, ("x_embedder",)),
    "txt_in": (TEXT, HIDDEN, ("context_embedder",)),
    "time_in.in_layer": (256, HIDDEN, ("time_text_embed.timestep_embedder.linear_1",)),
    "vector_in.in_layer": (POOLED, HIDDEN, ("time_text_embed.text_embedder.linear_1",)),
    "guidance_in.out_layer": (HIDDEN, HIDDEN, ("time_text_embed.guidance_embedder.linear_2",)),
    "final_layer.linear": (HIDDEN, OUT, ("proj_out",)),
    "final_layer.adaLN_modulation.1": (HIDDEN, 2 * HIDDEN, ("norm_out.linear",)),
}
FEW = (
    "double_blocks.0.txt_attn.qkv",
    "double_blocks.0.img_mlp.0",
    "single_blocks.2.linear1",
    "final_layer.adaLN_modulation.1",
)
OWN = {
    part: (inputs, outputs * (4 if part.endswith("proj_mlp") else 1) // (7 if len(parts) == 4 else len(parts)))
    for inputs, outputs, parts in NATIVE.values()
    for part in parts
}


def drawn(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def layers(widths: Mapping[str, tuple[int, ...]], rank: int = 4, seed: int = 0) -> Layers:
    draw = drawn(seed)
    return {
        name: (draw(rank, wide[0]), draw(wide[1], rank), 1.0 + number % 3)
        for number, (name, wide) in enumerate(widths.items())
    }


def dense(found: Layers, alpha: bool = True) -> dict[str, Tensor]:
    return {name: (own / len(a) if alpha else 1.0) * (b.double() @ a.double()) for name, (a, b, own) in found.items()}


def unstacked(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Changes of native layers as those of diffusers'."""
    found = {}
    for name, change in changes.items():
        parts = NATIVE[name][2]
        if name == "final_layer.adaLN_modulation.1":  # shift, scale → scale, shift
            found[parts[0]] = torch.cat([change[HIDDEN:], change[:HIDDEN]])
            continue
        sizes = [OWN[part][1] for part in parts]
        found.update(zip(parts, change.split(sizes), strict=True))
    return found


def spelt(found: Layers, stem: Callable[[str], str], down: str, up: str, alpha: str = ".alpha") -> dict[str, Tensor]:
    tensors = {}
    for name, (a, b, own) in found.items():
        tensors |= {stem(name) + down: a, stem(name) + up: b}
        if alpha:
            tensors[stem(name) + alpha] = torch.tensor(own)
    return tensors


def under(prefix: str, end: str = "") -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_") + end


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


KOHYA, PEFT, OLD = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
N, D = layers(NATIVE), layers(OWN, seed=1)
MEANT_N, MEANT_D = unstacked(dense(N)), dense(D)
SOME = {name: N[name] for name in FEW}


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], Layers]:
    """kohya's tensors of N in a number type, and the layers that they are then."""
    made = {name: tensor if name.endswith("alpha") else tensor.to(dtype) for name, tensor in tensors.items()}
    rounded = {name: (a.to(dtype).float(), b.to(dtype).float(), own) for name, (a, b, own) in N.items()}
    return made, rounded


def of_dtype(dtype: torch.dtype) -> Layout:
    tensors, rounded = cast(spelt(N, under("lora_unet_"), *KOHYA), dtype)
    return Layout(tensors, unstacked(dense(rounded)))


def native(stem: Callable[[str], str], ends: tuple[str, str] = PEFT, **kwargs) -> Layout:
    return Layout(spelt(N, stem, *ends), MEANT_N, **kwargs)


def diffusers(stem: Callable[[str], str], ends: tuple[str, str] = PEFT, **kwargs) -> Layout:
    return Layout(spelt(D, stem, *ends), MEANT_D, **kwargs)


def kernels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, :, None, None] if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}


def mid() -> Layout:
    draw, tensors, meant = drawn(5), {}, {}
    for name in FEW:
        inputs, outputs, _ = NATIVE[name]
        up, middle, down = draw(outputs, 4), draw(4, 4), draw(4, inputs)
        stem = under("lora_unet_")(name)
        tensors |= kernels(
            {f"{stem}.lora_up.weight": up, f"{stem}.lora_mid.weight": middle, f"{stem}.lora_down.weight": down}
        )
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        meant[name] = 0.5 * (up.double() @ middle.double() @ down.double())
    return Layout(tensors, unstacked(meant))


def loha(
    key: Callable[[str], str],
    widths: Mapping,
    alpha: float | None = 3.0,
    rank: int = 3,
    kernel: bool = False,
    names: tuple[str, ...] = FEW,
    **kwargs,
) -> Layout:
    draw, tensors, meant = drawn(6), {}, {}
    for name in names:
        inputs, outputs = widths[name][:2]
        parts = {
            "w1_a": draw(outputs, rank),
            "w1_b": draw(rank, inputs),
            "w2_a": draw(outputs, rank),
            "w2_b": draw(rank, inputs),
        }
        made = {f"{key(name)}.hada_{part}": value for part, value in parts.items()}
        tensors |= kernels(made) if kernel else made
        if alpha is not None and not kwargs:
            tensors[f"{key(name)}.alpha"] = torch.tensor(alpha)
        d = {part: value.double() for part, value in parts.items()}
        change = (d["w1_a"] @ d["w1_b"]) * (d["w2_a"] @ d["w2_b"])
        meant[name] = change * (1.0 if alpha is None else alpha / rank)
    return Layout(tensors, unstacked(meant) if names[0] in NATIVE else meant, ("LoHa layer", "exactly"), **kwargs)


def lokr(
    key: Callable[[str], str],
    widths: Mapping,
    whole: tuple[bool, bool],
    alpha: float | None = 6.0,
    dtype: torch.dtype = torch.float32,
    kernel: bool = False,
    names: tuple[str, ...] = FEW,
    always: bool = False,
    **kwargs,
) -> Layout:
    """whole: whether w1, w2 are stored whole; always: scaled by alpha / rank also where both are, as PEFT does."""
    draw, tensors, meant, rank = drawn(7), {}, {}, 2
    for name in names:
        inputs, outputs = widths[name][:2]
        matrices = []
        for number, (is_whole, rows, columns) in enumerate(
            ((whole[0], 4, 4), (whole[1], outputs // 4, inputs // 4)), start=1
        ):
            part = f"{key(name)}.lokr_w{number}"
            if is_whole:
                tensors[part] = draw(rows, columns).to(dtype)
                matrices.append(tensors[part].double())
            else:
                tensors |= {f"{part}_a": draw(rows, rank).to(dtype), f"{part}_b": draw(rank, columns).to(dtype)}
                matrices.append(tensors[f"{part}_a"].double() @ tensors[f"{part}_b"].double())
        if alpha is not None and not kwargs:
            tensors[f"{key(name)}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None or (all(whole) and not always) else alpha / rank
        meant[name] = scale * torch.kron(*matrices)
    tensors = kernels(tensors) if kernel else tensors
    return Layout(tensors, unstacked(meant) if names[0] in NATIVE else meant, ("LoKr layer", "exactly"), **kwargs)


def difference(stem: Callable[[str], str], end: str = ".diff") -> Layout:
    draw = drawn(8)
    changes = {name: draw(NATIVE[name][1], NATIVE[name][0]) for name in FEW}
    meant = unstacked({name: change.double() for name, change in changes.items()})
    return Layout(
        {stem(name) + end: change for name, change in changes.items()}, meant, ("whole difference", "exactly")
    )


def with_more(layout: Layout, more: Mapping[str, Tensor], *says: str) -> Layout:
    return Layout({**layout.tensors, **more}, layout.meant, says)


XLABS = {
    "double_blocks.1.processor.qkv_lora1": ("double_blocks.1.img_attn.qkv", HIDDEN, 3 * HIDDEN),
    "double_blocks.0.processor.qkv_lora2": ("double_blocks.0.txt_attn.qkv", HIDDEN, 3 * HIDDEN),
    "double_blocks.0.processor.proj_lora1": ("double_blocks.0.img_attn.proj", HIDDEN, HIDDEN),
    "double_blocks.1.processor.proj_lora2": ("double_blocks.1.txt_attn.proj", HIDDEN, HIDDEN),
    "single_blocks.2.processor.qkv_lora": ("single_blocks.2.linear1", HIDDEN, 3 * HIDDEN),
    "single_blocks.1.processor.proj_lora": ("single_blocks.1.linear2", 5 * HIDDEN, HIDDEN),
}


def xlabs(prefix: str = "", only: str = "") -> Layout:
    draw, tensors, meant = drawn(9), {}, {}
    for name, (layer, inputs, outputs) in XLABS.items():
        if not name.startswith(only):
            continue
        a, b = draw(4, inputs), draw(outputs, 4)
        tensors |= {f"{prefix}{name}.down.weight": a, f"{prefix}{name}.up.weight": b}
        change = b.double() @ a.double()
        padding = torch.zeros(NATIVE[layer][1] - outputs, inputs, dtype=torch.float64)
        meant |= unstacked({layer: torch.cat([change, padding])})
    return Layout(tensors, meant)


def settings(rank: int, alpha: float, **more: object) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        **more,
    }


def by_settings(
    values: Mapping[str, object],
    scale: Callable[[str, int], float],
    where: str,
    prefix: str = "transformer.",
    nest: str = "transformer.",
    found: Layers = D,
    **kwargs,
) -> Layout:
    """D without alphas, scaled by what PEFT's settings say. nest: what diffusers writes before each of their names."""
    tensors = spelt(found, dotted(prefix), *PEFT, alpha="")
    meant = {name: scale(name, len(a)) * (b.double() @ a.double()) for name, (a, b, _) in found.items()}
    if where == "adapter_config.json":
        return Layout(tensors, meant, (f"alpha was read from {where}",), config=values, **kwargs)
    packed = json.dumps({nest + name: value for name, value in values.items()})
    return Layout(tensors, meant, (f"alpha was read from {where}",), {"lora_adapter_metadata": packed}, **kwargs)


PATTERNED = {
    **layers({name: OWN[name] for name in list(OWN)[:8]}, rank=2, seed=3),
    **layers({name: OWN[name] for name in list(OWN)[8:12]}, rank=6, seed=4),
}
RANKS = dict.fromkeys(list(OWN)[8:12], 6)
ALPHAS = {"attn.add_q_proj": 5.0, r"transformer_blocks\.1\.attn\.to_[kv]": 7.0}
OTHERS = {
    "transformer_blocks.1.attn.to_k": 7.0,
    "transformer_blocks.1.attn.to_v": 7.0,
    "transformer_blocks.0.attn.add_q_proj": 5.0,
}
META = "lora_adapter_metadata"
T5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
FUSED_BIAS = {f"diffusion_model.{name}.diff_b": torch.ones(NATIVE[name][1]) for name in FEW}
MIXED = {
    **spelt(SOME, under("lora_unet_"), *KOHYA),
    **spelt({name: D[name] for name in list(D)[:3]}, dotted("base_model.model."), *PEFT),
    **spelt({"img_in": N["img_in"]}, dotted("diffusion_model."), *KOHYA),
}
MEANT_MIXED = (
    unstacked(dense(SOME)) | dense({name: D[name] for name in list(D)[:3]}) | unstacked(dense({"img_in": N["img_in"]}))
)

READ: dict[str, Layout] = {
    # kohya's sd-scripts and what comes near
    "kohya": native(under("lora_unet_"), KOHYA),
    "kohya without alpha": Layout(spelt(N, under("lora_unet_"), *KOHYA, alpha=""), unstacked(dense(N, alpha=False))),
    "kohya fp16": of_dtype(torch.float16),
    "kohya bf16": of_dtype(torch.bfloat16),
    "kohya fp8 e4m3": of_dtype(torch.float8_e4m3fn),
    "kohya fp8 e5m2": of_dtype(torch.float8_e5m2),
    "kohya, trailing underscore": native(under("lora_unet_", "_"), KOHYA),
    "kohya, two underscores": native(under("lora_unet__"), KOHYA),
    "kohya, 1x1 kernels": Layout(kernels(spelt(N, under("lora_unet_"), *KOHYA)), MEANT_N),
    "kohya, PEFT ends": native(under("lora_unet_")),
    "LoCon of 1x1 kernels": mid(),
    "kohya with text encoders": with_more(
        native(under("lora_unet_"), KOHYA),
        {
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 2),
            f"{T5}.alpha": torch.ones(()),
        },
        "2 tensors for the text encoders were left out",
    ),
    "OneTrainer with embeddings": with_more(
        diffusers(under("lora_transformer_"), KOHYA),
        {"bundle_emb.mytoken.clip_l": torch.ones(2, 4), "bundle_emb.mytoken.t5_out": torch.ones(2, 4)},
        "the embeddings of 'mytoken' were left out",
    ),
    # native names with dots
    "native": native(dotted("diffusion_model.")),
    "native, lora_down": native(dotted("diffusion_model."), KOHYA),
    "native in a checkpoint's names": native(dotted("model.diffusion_model.")),
    "native without prefix": native(dotted("")),
    "native, PEFT (fal Kontext)": native(dotted("base_model.model.")),
    "native, transformer": native(dotted("transformer.")),
    "native, unet": native(dotted("unet."), OLD),
    "native, bare lora_A": native(dotted("diffusion_model."), (".lora_A", ".lora_B")),
    "native with underscores inside (musubi)": native(
        lambda name: "diffusion_model." + name.replace("attn.", "attn_").replace("mlp.", "mlp_")
    ),
    "the first part of linear1": Layout(
        {
            "diffusion_model.single_blocks.2.linear1_qkv.lora_down.weight": N["single_blocks.2.linear1"][0],
            "diffusion_model.single_blocks.2.linear1_qkv.lora_up.weight": N["single_blocks.2.linear1"][1][: 3 * HIDDEN],
        },
        {
            f"single_transformer_blocks.2.attn.to_{x}": change
            for x, change in zip("qkv", dense(N, alpha=False)["single_blocks.2.linear1"].split(HIDDEN), strict=False)
        },
    ),
    # diffusers' names
    "diffusers": diffusers(dotted("transformer.")),
    "diffusers without alpha": Layout(spelt(D, dotted("transformer."), *PEFT, alpha=""), dense(D, alpha=False)),
    "diffusers, lora.down": diffusers(dotted("transformer."), OLD),
    "diffusers, lora_linear_layer": diffusers(
        dotted("transformer."), (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    ),
    "diffusers' former processors": Layout(
        {
            f"transformer.transformer_blocks.1.attn.processor.to_{x}_lora.{way}.weight": value
            for x in "qkv"
            for way, value in zip(("down", "up"), D[f"transformer_blocks.1.attn.to_{x}"][:2], strict=True)
        },
        {name: dense(D, alpha=False)[name] for name in (f"transformer_blocks.1.attn.to_{x}" for x in "qkv")},
    ),
    "diffusers without prefix": diffusers(dotted("")),
    "diffusers without prefix, bare": diffusers(dotted(""), (".lora_A", ".lora_B")),
    "PEFT": diffusers(dotted("base_model.model.")),
    "PEFT, transformer": diffusers(dotted("base_model.model.transformer.")),
    "transformer, PEFT": diffusers(dotted("transformer.base_model.model.")),
    "adapter called default": diffusers(dotted("transformer."), (".lora_A.default.weight", ".lora_B.default.weight")),
    "adapter called my-style_2": diffusers(
        dotted("base_model.model."), (".lora_A.my-style_2.weight", ".lora_B.my-style_2.weight")
    ),
    "diffusers' names in kohya's prefix": diffusers(under("lora_unet_"), KOHYA),
    "diffusers' names in a checkpoint's prefix": diffusers(dotted("model.diffusion_model.")),
    "AI Toolkit": diffusers(dotted("diffusion_model."), PEFT),
    "OneTrainer": diffusers(under("lora_transformer_"), KOHYA),
    "OneTrainer, trailing underscore": diffusers(under("lora_transformer_", "_"), KOHYA),
    "SimpleTuner LyCORIS": diffusers(under("lycoris_"), KOHYA),
    "a compiled model": diffusers(dotted("transformer._orig_mod.")),
    "a compiled layer": diffusers(lambda name: "transformer." + name.replace("attn.", "_orig_mod.attn.")),
    "a distributed model": diffusers(dotted("module.")),
    "mixed dialects": Layout(MIXED, MEANT_MIXED),
    # XLabs
    "XLabs": xlabs(),
    "XLabs, one block": xlabs(only="double_blocks.0"),
    "XLabs, single blocks": xlabs(only="single_blocks"),
    "XLabs in native's prefix": xlabs("diffusion_model."),
    # alpha elsewhere
    "save_lora_weights": by_settings(settings(4, 16), lambda _, r: 16 / r, META),
    "save_lora_adapter": by_settings(settings(4, 1), lambda _, r: 1 / r, META, prefix="", nest=""),
    "rsLoRA": by_settings(settings(4, 8, use_rslora=True), lambda _, r: 8 / math.sqrt(r), META),
    "patterns": by_settings(
        settings(2, 3, rank_pattern=RANKS, alpha_pattern=ALPHAS),
        lambda name, r: OTHERS.get(name, 3) / r,
        META,
        found=PATTERNED,
    ),
    "rsLoRA with patterns": by_settings(
        settings(2, 3, rank_pattern=RANKS, alpha_pattern=ALPHAS, use_rslora=True),
        lambda name, r: OTHERS.get(name, 3) / math.sqrt(r),
        META,
        found=PATTERNED,
    ),
    "adapter_config.json": by_settings(
        settings(4, 16), lambda _, r: 16 / r, "adapter_config.json", "base_model.model.", stem="adapter_model"
    ),
    "adapter_config.json beside a lone file": by_settings(
        settings(4, 2), lambda _, r: 2 / r, "adapter_config.json", "base_model.model."
    ),
    "adapter_config.json, rsLoRA and patterns": by_settings(
        settings(2, 3, rank_pattern=RANKS, alpha_pattern=ALPHAS, use_rslora=True),
        lambda name, r: OTHERS.get(name, 3) / math.sqrt(r),
        "adapter_config.json",
        "base_model.model.",
        found=PATTERNED,
        stem="adapter_model",
    ),
    "settings of another LoRA": Layout(
        spelt(D, dotted(""), *PEFT, alpha=""),
        dense(D, alpha=False),
        ("says rank 9", "was not used"),
        config=settings(9, 90),
    ),
    "alpha in tensors and in metadata": diffusers(
        dotted("transformer."), metadata={META: json.dumps({"transformer.r": 4, "transformer.lora_alpha": 99})}
    ),
    "a scalar": Layout(
        {
            **spelt(SOME, under("lora_unet_"), *KOHYA),
            **{under("lora_unet_")(name) + ".scalar": torch.tensor(0.5) for name in SOME},
        },
        unstacked({name: 0.5 * change for name, change in dense(SOME).items()}),
    ),
    # LyCORIS
    "LoHa": loha(under("lora_unet_"), NATIVE),
    "LoHa without alpha": loha(under("lora_unet_"), NATIVE, None),
    "LoHa of high rank": loha(under("lora_unet_"), NATIVE, rank=8),
    "LoHa of 1x1 kernels": loha(under("lora_unet_"), NATIVE, kernel=True),
    "LoHa, diffusers' names": loha(under("lycoris_"), OWN, names=("transformer_blocks.1.attn.to_q", "norm_out.linear")),
    "LoHa of PEFT": loha(
        dotted("base_model.model."),
        OWN,
        names=("transformer_blocks.1.attn.to_q",),
        stem="adapter_model",
        config={"peft_type": "LOHA", "r": 3, "alpha": 3.0, "rank_pattern": {}, "alpha_pattern": {}},
    ),
    "LoKr, w1 whole": lokr(under("lora_unet_"), NATIVE, (True, False)),
    "LoKr, w2 whole": lokr(under("lora_unet_"), NATIVE, (False, True)),
    "LoKr, both whole": lokr(under("lora_unet_"), NATIVE, (True, True)),
    "LoKr, none whole": lokr(under("lora_unet_"), NATIVE, (False, False)),
    "LoKr without alpha": lokr(under("lora_unet_"), NATIVE, (True, False), None),
    "LoKr in bf16": lokr(under("lora_unet_"), NATIVE, (True, False), dtype=torch.bfloat16),
    "LoKr of 1x1 kernels": lokr(under("lora_unet_"), NATIVE, (True, False), kernel=True),
    "LoKr, SimpleTuner": lokr(
        under("lycoris_"), OWN, (True, False), names=("transformer_blocks.1.attn.to_q", "norm_out.linear")
    ),
    "LoKr, native dots": lokr(dotted("diffusion_model."), NATIVE, (True, True)),
    "LoKr of PEFT": lokr(
        dotted("base_model.model."),
        OWN,
        (True, True),
        names=("transformer_blocks.1.attn.to_q",),
        always=True,
        stem="adapter_model",
        config={"peft_type": "LOKR", "r": 2, "alpha": 6.0, "rank_pattern": {}, "alpha_pattern": {}},
    ),
    # whole differences, biases, norms
    "whole differences": difference(under("lora_unet_")),
    "whole differences, native dots": difference(dotted("diffusion_model.")),
    "w_norm of a linear layer": difference(under("lycoris_unet_".removesuffix("unet_")), ".w_norm"),
    "the host's TrainLoraNode": with_more(
        Layout(spelt(SOME, dotted("diffusion_model."), *KOHYA), unstacked(dense(SOME))),
        FUSED_BIAS,
        "its changes of 4 biases were left out",
    ),
    "biases of zero": with_more(
        Layout(spelt(SOME, dotted("diffusion_model."), *KOHYA), unstacked(dense(SOME))),
        {name: value * 0 for name, value in FUSED_BIAS.items()},
    ),
    "biases of PEFT": with_more(
        diffusers(dotted("transformer.")),
        {f"transformer.{name}.lora_B.bias": torch.ones(OWN[name][1]) for name in OWN},
        f"its changes of {len(OWN)} biases were left out",
    ),
    "biases beside, of layers without a LoRA": with_more(
        native(under("lora_unet_"), KOHYA),
        {"lora_unet_double_blocks_1_img_mod_lin.diff_b": torch.ones(6 * HIDDEN)},
        "its changes of 1 biases were left out",
    ),
    "norms": with_more(
        diffusers(under("lycoris_"), KOHYA),
        {
            "lycoris_transformer_blocks_0_attn_norm_q.w_norm": torch.ones(HIDDEN),
            "lycoris_transformer_blocks_0_attn_norm_q.b_norm": torch.ones(HIDDEN),
            "lycoris_single_transformer_blocks_0_attn_norm_k.diff": torch.ones(HIDDEN),
            "lycoris_norm_out_norm.b_norm": torch.ones(HIDDEN),
            "lycoris_transformer_blocks_1_norm1_norm.b_norm": torch.ones(HIDDEN),
        },
        "its changes of 4 norms were left out",
    ),
}
