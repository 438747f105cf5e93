"""Apply Erasure LoRA: the strength slider. Compare and Strength Sweep: what it does at equal seeds, side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..training.concepts import THRESHOLD
from ..training.errors import ConfigError, LoraError
from ..training.models.sampling import initial_noise, sigmas, unpack
from ..training.models.source import FluxSource
from .compat import ChoosesLora, io, list_files, resolve_lora, show_text, ui
from .conditional import ConditionalLora, make_gate, sigma_range
from .native import NativeFlux, PlacedLora, apply_lora, load_native, place_lora, warning_of
from .types import CATEGORY, NONE, FluxSourceType, StackType

MAX_STRENGTH = 1.5
MAX_COLUMNS = 21
_MARGIN = 6  # pixels between images and around labels


def _lora_inputs() -> list[io.Input]:
    return [
        io.Combo.Input("lora", options=[NONE, *list_files("loras")], default=NONE, tooltip="A LoRA in models/loras."),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.05,
            display_mode=io.NumberDisplay.slider,
            tooltip="0 changes nothing, 1 erases as trained. Lower it if other things suffer, raise it if it shows.",
        ),
    ]


def lora_name_input() -> io.Input:
    return io.String.Input(
        "lora_name",
        optional=True,
        force_input=True,
        tooltip="The name that Wait for Erasure LoRA gives; used instead of the list when connected.",
    )


def lora_path(lora: str | None, lora_name: str | None, strength: float) -> str:
    """The file behind a node's LoRA inputs; LoraError or ConfigError if they cannot be used."""
    _check_strength(strength)
    name = lora_name or lora
    if not name or name == NONE:
        raise LoraError("There is no LoRA to apply: train one, or put one into models/loras and refresh the list.")
    return resolve_lora(name)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(f"The strength {strength} is outside 0 to {MAX_STRENGTH}: choose one between.")


class ApplyErasureLora(ChoosesLora):
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
                lora_name_input(),
                StackType.Input("stack", optional=True, tooltip="Used instead of the list: all its LoRAs at once."),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Part of the sampling at which it begins to act. Raise it to keep the composition.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Part of the sampling at which it stops to act. Lower it to keep fine details.",
                ),
                io.Boolean.Input(
                    "only_when_asked",
                    default=False,
                    optional=True,
                    tooltip="Act on prompts about the concept only, and leave all others exactly as they are. Take it "
                    "with many LoRAs. Needs CLIP.",
                ),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Similarity of prompt and concept from which a prompt counts as about it. Lower it where "
                    "the concept gets through, raise it where other prompts change. The node shows the last one.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for only_when_asked."),
            ],
            outputs=[io.Model.Output("erased", display_name="MODEL")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        lora: str | None = None,
        strength: float = 1.0,
        lora_name: str | None = None,
        stack: Sequence[tuple[str, float]] | None = None,
        start: float = 0.0,
        end: float = 1.0,
        only_when_asked: bool = False,
        threshold: float = THRESHOLD,
        clip: object = None,
    ) -> io.NodeOutput:
        if stack is None:
            stack = [(lora_path(lora, lora_name, strength), 1.0)]
        _check_strength(strength)
        sigmas = sigma_range(model, start, end)
        loras = [(place_lora(model, path), weight * strength) for path, weight in stack]
        text = _report_notes(cls.hidden.unique_id, model, [lora for lora, _ in loras])
        always = (start, end, only_when_asked) == (0.0, 1.0, False)
        for lora, amount in loras:
            if always:
                model = apply_lora(model, lora, amount)
                continue
            show = _similarity_display(cls.hidden.unique_id, Path(lora.name).stem, threshold)
            gate = make_gate(lora, clip, threshold, show) if only_when_asked else None
            if amount:
                model = ConditionalLora(lora, amount, sigmas, gate).put_on(model)
        return io.NodeOutput(model, ui={"text": [text]} if text else None)


def _report_notes(node: str | None, model: object, loras: Sequence[PlacedLora]) -> str:
    """Says on the node and in the log what was left out or read otherwise of LoRAs, and which were made for another
    base than the MODEL; returns the sentences, one a line."""
    sentences = [sentence for lora in loras for sentence in (*lora.file.notes, warning_of(model, lora)) if sentence]
    for sentence in sentences:
        logging.getLogger(__name__).warning(sentence)
    if sentences:
        show_text(node, "\n".join(sentences))
    return "\n".join(sentences)


def _similarity_display(node: str | None, name: str, threshold: float) -> Callable[[float], None]:
    """Shows on the node how near the prompt that is being sampled comes to a concept."""
    last: list[str] = []

    def show(similarity: float) -> None:
        text = f"{name}: {similarity:.2f}, {'on' if similarity >= threshold else 'off'} ({threshold:g})"
        if last != [text]:  # not at every step
            last[:] = [text]
            show_text(node, text)

    return show


def _rendered_inputs(prompts: str) -> list[io.Input]:
    return [
        io.String.Input(
            "prompts",
            multiline=True,
            default=prompts,
            tooltip="One prompt a line: the erased concept, and others that should stay as they are.",
        ),
        io.Int.Input("seed", default=0, min=0, max=2**48, tooltip="The first seed."),
        io.Int.Input("seeds", default=3, min=1, max=16, tooltip="Images per prompt; more show the spread."),
        io.Int.Input("steps", default=0, min=0, max=200, tooltip="Sampling steps; 0 takes the model's usual number."),
    ]


_PROMPTS = "a photo of a car\na photo of a cat"


class Compare(ChoosesLora):
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
                *_rendered_inputs(_PROMPTS),
                lora_name_input(),
            ],
            outputs=[io.Image.Output("image", display_name="IMAGE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        flux: FluxSource,
        prompts: str,
        seed: int,
        seeds: int,
        lora: str | None = None,
        strength: float = 1.0,
        steps: int = 0,
        lora_name: str | None = None,
    ) -> io.NodeOutput:
        path = lora_path(lora, lora_name, strength)
        after = f"after: {Path(path).stem}, strength {strength:g}"
        return _rendered(cls, flux, path, {"before": 0.0, after: strength}, prompts, seed, seeds, steps)


class StrengthSweep(ChoosesLora):
    """Renders prompts at several strengths of a LoRA from the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        loras, _ = _lora_inputs()
        return io.Schema(
            node_id="EraseAnything_StrengthSweep",
            display_name="Strength Sweep",
            category=CATEGORY,
            description="Renders each prompt at several strengths of an erasure LoRA, at the same seeds, in one "
            "labelled picture: which strength is enough?",
            is_output_node=True,
            inputs=[
                FluxSourceType.Input("flux", tooltip="From Load Flux."),
                loras,
                io.String.Input(
                    "strengths",
                    default="0, 0.25, 0.5, 0.75, 1",
                    tooltip=f"With commas, each from 0 to {MAX_STRENGTH}; at most {MAX_COLUMNS}.",
                ),
                *_rendered_inputs(_PROMPTS),
                lora_name_input(),
            ],
            outputs=[io.Image.Output("image", display_name="IMAGE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        flux: FluxSource,
        strengths: str,
        prompts: str,
        seed: int,
        seeds: int,
        lora: str | None = None,
        steps: int = 0,
        lora_name: str | None = None,
    ) -> io.NodeOutput:
        try:
            numbers = [float(part) for part in strengths.split(",") if part.strip()]
        except ValueError as error:
            raise ConfigError(
                f"The strengths {strengths!r} are no numbers: write some with commas, 0, 0.5, 1."
            ) from error
        if not 1 <= len(numbers) <= MAX_COLUMNS:
            raise ConfigError(f"There are {len(numbers)} strengths: write 1 to {MAX_COLUMNS} of them with commas.")
        for number in numbers:
            path = lora_path(lora, lora_name, number)
        columns = {f"strength {number:g}": number for number in numbers}
        return _rendered(cls, flux, path, columns, prompts, seed, seeds, steps)


def _rendered(
    cls: type[io.ComfyNode],
    flux: FluxSource,
    path: str,
    columns: dict[str, float],
    prompts: str,
    seed: int,
    seeds: int,
    steps: int,
) -> io.NodeOutput:
    """A grid of prompts at equal seeds: `columns` are labels and the LoRA's strengths."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise ConfigError("There is no prompt to render: write at least one line.")
    native = load_native(flux)
    lora = place_lora(native.model, path)
    text = _report_notes(cls.hidden.unique_id, native.model, [lora])
    models = [apply_lora(native.model, lora, strength) for strength in columns.values()]
    steps = steps or native.variant.default_steps
    progress = comfy.utils.ProgressBar(len(models) * len(lines) * steps)
    numbers = [seed + i for i in range(seeds)]
    # model by model, since the host puts a LoRA into the weights and takes it out again
    made = [[render(native, model, line, numbers, steps, progress) for line in lines] for model in models]
    picture = comparison_grid(lines, numbers, list(columns), list(zip(*made, strict=True)))
    shown = ui.PreviewImage(picture, cls=cls).as_dict()
    return io.NodeOutput(picture, ui={**shown, "text": [text]} if text else shown)


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
        model,
        noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        sigmas(variant, steps, grid[0] * grid[1]),
        conditioning,
        conditioning,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=seeds[0],
        callback=lambda *_: progress.update(1),
    )
    return native.vae.decode(samples)


def comparison_grid(
    prompts: list[str], seeds: list[int], labels: list[str], rows: list[tuple[torch.Tensor, ...]]
) -> torch.Tensor:
    """One picture [1, H, W, 3] in 0..1: a row per prompt, in it a group of images per label, side by side.

    rows: in the order of prompts, for each label [n, h, w, 3] with n = len(seeds).
    """
    height, width = rows[0][0].shape[1:3]
    size = max(11, height // 11)
    font = ImageFont.load_default(size)
    line = size + 2 * _MARGIN
    group = len(seeds) * (width + _MARGIN)
    whole = len(labels) * (group + _MARGIN)
    canvas = Image.new("RGB", (whole + _MARGIN, 2 * line + len(rows) * (height + line) + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for side, label in enumerate(labels):
        left = _MARGIN + side * (group + _MARGIN)
        draw.text((left, _MARGIN), _shortened(draw, label, font, group - _MARGIN), "black", font)
        for column, seed in enumerate(seeds):
            text = _shortened(draw, f"seed {seed}", font, width)
            draw.text((left + column * (width + _MARGIN), line + _MARGIN), text, "gray", font)
        for row, images in enumerate(groups[side] for groups in rows):
            top = 2 * line + row * (height + line)
            if side == 0:
                draw.text((left, top + _MARGIN), _shortened(draw, prompts[row], font, whole), "black", font)
            for column, image in enumerate(images):
                pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
                canvas.paste(Image.fromarray(pixels), (left + column * (width + _MARGIN), top + line))
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)[None]


def _shortened(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text, cut with an ellipsis to fit `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


NODES = [ApplyErasureLora, Compare, StrengthSweep]
