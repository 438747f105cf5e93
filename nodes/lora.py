"""Apply Erasure LoRA: the strength slider. Compare: before and after at equal seeds, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..training.errors import ConfigError, LoraError
from ..training.flux.sampling import initial_noise, sigmas, unpack
from ..training.flux.source import FluxSource
from .compat import io, list_files, resolve_file, ui
from .native import NativeFlux, apply_lora, load_native
from .types import CATEGORY, NONE, FluxSourceType, StackType

MAX_STRENGTH = 1.5
_MARGIN = 6  # pixels between images and around labels


def _lora_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "lora", options=[NONE, *list_files("loras")], default=NONE, tooltip="A LoRA in models/loras."
        ),
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.05, display_mode=io.NumberDisplay.slider,
            tooltip="0 changes nothing, 1 erases as trained. Lower it if other things suffer, raise it if it shows.",
        ),
    ]  # fmt: skip


def _lora_name_input() -> io.Input:
    return io.String.Input(
        "lora_name", optional=True, force_input=True,
        tooltip="The name that Wait for Erasure LoRA gives; used instead of the list when connected.",
    )  # fmt: skip


def lora_path(lora: str | None, lora_name: str | None, strength: float) -> str:
    """The file behind a node's LoRA inputs; LoraError or ConfigError if they cannot be used."""
    _check_strength(strength)
    name = lora_name or lora
    if not name or name == NONE:
        raise LoraError("There is no LoRA to apply: train one, or put one into models/loras and refresh the list.")
    return resolve_file("loras", name if name.endswith(".safetensors") else f"{name}.safetensors", LoraError)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(f"The strength {strength} is outside 0 to {MAX_STRENGTH}: choose one between.")


class ApplyErasureLora(io.ComfyNode):
    """Puts an erasure LoRA on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_ApplyLora",
            display_name="Apply Erasure LoRA",
            category=CATEGORY,
            description="Applies an erasure LoRA or a stack of them, and says so if one was made for another model.",
            inputs=[
                io.Model.Input("model"),
                *_lora_inputs(),
                _lora_name_input(),
                StackType.Input("stack", optional=True, tooltip="Used instead of the list: all its LoRAs at once."),
            ],
            outputs=[io.Model.Output("erased", display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: object, lora: str | None = None, strength: float = 1.0, lora_name: str | None = None,
        stack: Sequence[tuple[str, float]] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if stack is None:
            return io.NodeOutput(apply_lora(model, lora_path(lora, lora_name, strength), strength))
        _check_strength(strength)
        for path, weight in stack:
            model = apply_lora(model, path, weight * strength)
        return io.NodeOutput(model)


class Compare(io.ComfyNode):
    """Renders prompts with and without a LoRA from the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_Compare",
            display_name="Compare Before / After",
            category=CATEGORY,
            description="Renders each prompt before and after erasing, at the same seeds, in one labelled picture.",
            is_output_node=True,
            inputs=[
                FluxSourceType.Input("flux", tooltip="From Load Flux."),
                *_lora_inputs(),
                io.String.Input(
                    "prompts", multiline=True, default="a photo of a car\na photo of a cat",
                    tooltip="One prompt a line: the erased concept, and others that should stay as they are.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**48, tooltip="The first seed."),
                io.Int.Input("seeds", default=3, min=1, max=16, tooltip="Images per prompt; more show the spread."),
                io.Int.Input(
                    "steps", default=0, min=0, max=200, tooltip="Sampling steps; 0 takes the model's usual number."
                ),
                _lora_name_input(),
            ],
            outputs=[io.Image.Output("image", display_name="IMAGE")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, flux: FluxSource, prompts: str, seed: int, seeds: int, lora: str | None = None, strength: float = 1.0,
        steps: int = 0, lora_name: str | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise ConfigError("There is no prompt to compare: write at least one line.")
        path = lora_path(lora, lora_name, strength)
        native = load_native(flux)
        erased = apply_lora(native.model, path, strength)
        steps = steps or native.variant.default_steps
        progress = comfy.utils.ProgressBar(2 * len(lines) * steps)
        numbers = [seed + i for i in range(seeds)]
        rows = [
            tuple(render(native, model, line, numbers, steps, progress) for model in (native.model, erased))
            for line in lines
        ]
        picture = comparison_grid(lines, numbers, rows, f"after: {Path(path).stem}, strength {strength:g}")
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


def render(
    native: NativeFlux, model: object, prompt: str, seeds: list[int], steps: int, progress: comfy.utils.ProgressBar
) -> torch.Tensor:
    """Images [n, H, W, 3] in 0..1 of one prompt at these seeds: the engine's noise and sigmas in the host's sampler."""
    variant = native.variant
    grid = variant.grid
    noise = unpack(initial_noise(seeds, grid), grid)
    tokens = native.clip.tokenize(prompt)
    conditioning = native.clip.encode_from_tokens_scheduled(tokens, add_dict={"guidance": variant.default_guidance})
    samples = comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas(variant, steps, grid[0] * grid[1]),
        conditioning, conditioning, torch.zeros_like(noise), disable_pbar=True, seed=seeds[0],
        callback=lambda *_: progress.update(1),
    )  # fmt: skip
    return native.vae.decode(samples)


def comparison_grid(
    prompts: list[str], seeds: list[int], rows: list[tuple[torch.Tensor, torch.Tensor]], after: str
) -> torch.Tensor:
    """One picture [1, H, W, 3] in 0..1: a row per prompt, its images before on the left and after on the right.

    rows: (before, after), each [n, h, w, 3] with n = len(seeds), in the order of prompts.
    """
    height, width = rows[0][0].shape[1:3]
    size = max(11, height // 11)
    font = ImageFont.load_default(size)
    line = size + 2 * _MARGIN
    half = len(seeds) * (width + _MARGIN)
    canvas = Image.new("RGB", (2 * half + 3 * _MARGIN, 2 * line + len(rows) * (height + line) + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for side, label in enumerate(("before", after)):
        left = _MARGIN + side * (half + _MARGIN)
        draw.text((left, _MARGIN), _shortened(draw, label, font, half - _MARGIN), "black", font)
        for column, seed in enumerate(seeds):
            text = _shortened(draw, f"seed {seed}", font, width)
            draw.text((left + column * (width + _MARGIN), line + _MARGIN), text, "gray", font)
        for row, images in enumerate(pair[side] for pair in rows):
            top = 2 * line + row * (height + line)
            if side == 0:
                draw.text((left, top + _MARGIN), _shortened(draw, prompts[row], font, 2 * half), "black", font)
            for column, image in enumerate(images):
                pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
                canvas.paste(Image.fromarray(pixels), (left + column * (width + _MARGIN), top + line))
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)[None]


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis to fit `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


NODES = [ApplyErasureLora, Compare]
