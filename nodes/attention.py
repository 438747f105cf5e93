"""Nodes of the inspector: Record Joint Attention, Token Heatmaps, Compare Attention, Inspect and Delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import node_helpers
import numpy as np
import torch

from ..training.concepts import forms_of
from ..training.errors import ConfigError
from ..training.inspection import (
    COLOUR_MAPS,
    Figure,
    PromptWords,
    Recording,
    Word,
    choose_blocks,
    default_time,
    figure_of,
)
from ..training.inspection.heatmaps import (
    SCALES,
    draw_comparison,
    draw_figure,
    enlarged,
    overlays,
    save_figure,
)
from ..training.inspection.recording import NOTHING_RECORDED, OUTPUT
from .compat import io, output_path, temp_file, ui
from .concept_maps import ConceptRecorder, encode_clip_concepts
from .joint_attention import Deleter, Recorder, flux_blocks, read_clip_prompt
from .types import CATEGORY, RecordingType

_HEADS = ("mean", "each")
_WORDS, _CONCEPTS = "words", "concepts"


def _blocks_input(default: str = "best") -> io.Input:
    return io.String.Input(
        "blocks",
        default=default,
        tooltip="best: those that find objects best. Or double, single, all, or a list: 0, 3-5, s2 (s: single blocks).",
    )


def _range_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "t_start", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Only from this t on; 1 is pure noise."
        ),
        io.Float.Input(
            "t_end",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Only down to this t. Raise it to leave out the last steps, where maps get noisy.",
        ),
    ]


def _recording_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "heads",
            options=list(_HEADS),
            default=_HEADS[0],
            tooltip="each keeps every head apart, for the viewer's slider; it takes as many times the memory.",
        ),
        io.Int.Input(
            "tokens",
            default=128,
            min=1,
            max=4096,
            tooltip="Text tokens from the first one that are recorded; more for prompts of more than about 90 words.",
        ),
    ]


def _drawing_inputs() -> list[io.Input]:
    return [
        io.Combo.Input("colour_map", options=list(COLOUR_MAPS), default=COLOUR_MAPS[0]),
        io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip="Of the map over the picture."),
    ]


def _words_input() -> io.Input:
    return io.String.Input(
        "words", default="", tooltip="Words or phrases to draw, separated by commas. Empty: every word of the prompt."
    )


def _prompt_input() -> io.Input:
    return io.String.Input("prompt", multiline=True, tooltip="The prompt that was sampled, letter by letter.")


def _index_input() -> io.Input:
    return io.Int.Input("image_index", default=0, min=0, max=4095, tooltip="Which image of a batch.")


def _export_input() -> io.Input:
    return io.String.Input(
        "save_as", default="", tooltip="Saves a PNG, an NPZ and a JSON under this name in the output folder."
    )


def _recording(model: object, blocks: str, heads: str, tokens: int, start: float, end: float) -> tuple:
    """The patched MODEL and the recording that it will fill."""
    if heads not in _HEADS:
        raise ConfigError("heads is either mean or each.")
    double, single = flux_blocks(model)
    recording = Recording(blocks=choose_blocks(blocks, double, single), double=double)
    return Recorder(recording, tokens, heads == "each", start, end).put_on(model), recording


class RecordJointAttention(io.ComfyNode):
    """A MODEL that records what its image tokens read in the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_RecordAttention",
            display_name="Record Joint Attention",
            category=CATEGORY,
            description="Records which words each part of the picture looks at, with any sampler, LoRA or ControlNet.",
            inputs=[
                io.Model.Input("model", tooltip="A Flux.1; put LoRAs on it first."),
                _blocks_input(),
                *_range_inputs(),
                *_recording_inputs(),
                io.Combo.Input(
                    "mode",
                    options=[_WORDS, _CONCEPTS],
                    default=_WORDS,
                    tooltip="words: attention to the prompt's tokens. concepts: which of the concepts below each part "
                    "of the picture is most like; they need not be in the prompt.",
                ),
                io.String.Input("concepts", default="", tooltip="Only for concepts: cat, car, background."),
                io.Clip.Input("clip", optional=True, tooltip="Only for concepts."),
            ],
            outputs=[
                io.Model.Output("recorded", display_name="MODEL"),
                RecordingType.Output("recording", display_name="recording"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        blocks: str,
        t_start: float,
        t_end: float,
        heads: str,
        tokens: int,
        mode: str = _WORDS,
        concepts: str = "",
        clip: object = None,
    ) -> io.NodeOutput:
        if mode != _CONCEPTS:
            return io.NodeOutput(*_recording(model, blocks, heads, tokens, t_start, t_end))
        if clip is None:
            raise ConfigError("Concepts must be encoded: connect the CLIP.")
        labels = tuple(label.strip() for label in concepts.split(",") if label.strip())
        double, single = flux_blocks(model)
        recording = Recording(OUTPUT, choose_blocks(blocks, double, single, OUTPUT), double, labels=labels)
        vectors = encode_clip_concepts(clip, labels)
        return io.NodeOutput(ConceptRecorder(recording, vectors, t_start, t_end).put_on(model), recording)


class InspectImage(io.ComfyNode):
    """Records one pass over an existing picture that is noised to t."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_InspectImage",
            display_name="Inspect Image",
            category=CATEGORY,
            description="Records what a prompt's words mark in an existing picture, in one pass without sampling.",
            inputs=[
                io.Model.Input("model", tooltip="A Flux.1."),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.Image.Input("image"),
                io.String.Input("prompt", multiline=True, tooltip="Words to look for in the picture."),
                io.Float.Input(
                    "t",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise is put on the picture first: 1 is nothing but noise. 0: as much as suits "
                    "the model best.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**48, tooltip="Of the noise."),
                io.Float.Input("guidance", default=3.5, min=0.0, max=100.0, step=0.1, tooltip="As in sampling."),
                _blocks_input(),
                *_recording_inputs(),
            ],
            outputs=[RecordingType.Output("recording", display_name="recording")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: torch.Tensor,
        prompt: str,
        t: float,
        seed: int,
        guidance: float,
        blocks: str,
        heads: str,
        tokens: int,
    ) -> io.NodeOutput:
        recorded, recording = _recording(model, blocks, heads, tokens, 1.0, 0.0)
        t = t or default_time(recording.double)
        latents = comfy.sample.fix_empty_latent_channels(recorded, vae.encode(image[..., :3]))
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        conditioning = node_helpers.conditioning_set_values(conditioning, {"guidance": guidance})
        # One Euler step from t: the host's own noising, then the one pass that is recorded.
        comfy.sample.sample_custom(
            recorded,
            comfy.sample.prepare_noise(latents, seed),
            1.0,
            comfy.samplers.sampler_object("euler"),
            torch.tensor([t, 0.0]),
            conditioning,
            conditioning,
            latents,
            disable_pbar=True,
            seed=seed,
        )
        return io.NodeOutput(recording)


class TokenHeatmaps(io.ComfyNode):
    """Draws a recording over its picture, word by word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_TokenHeatmaps",
            display_name="Token Heatmaps",
            category=CATEGORY,
            description="Draws which words paint which pixels, and shows it in the node: point at a word or a pixel.",
            is_output_node=True,
            inputs=[
                RecordingType.Input("recording", tooltip="From Record Joint Attention or Inspect Image."),
                io.Image.Input("image", tooltip="The picture that the recorded sampler made."),
                io.Clip.Input("clip"),
                _prompt_input(),
                _words_input(),
                _index_input(),
                *_drawing_inputs(),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default=SCALES[0],
                    tooltip="shared: one colour scale, so that words compare. each: every word to its own maximum.",
                ),
                _export_input(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                io.Image.Output("overlays", display_name="overlays", tooltip="One picture per word."),
                io.Image.Output("sheet", display_name="sheet", tooltip="All of them in one picture."),
                io.Mask.Output("masks", display_name="masks", tooltip="The maps alone, one per word, 0 to 1."),
            ],
        )

    @classmethod
    def validate_inputs(cls, colour_map: str = "") -> bool:
        """Nothing is refused before the node runs: see ChoosesLora."""
        return True

    @classmethod
    def execute(
        cls,
        recording: Recording,
        image: torch.Tensor,
        clip: object,
        prompt: str,
        words: str,
        image_index: int,
        colour_map: str,
        opacity: float,
        scale: str,
        save_as: str,
    ) -> io.NodeOutput:
        _check_sampled(cls.hidden, "recording")
        figure = _figure(
            recording, image, clip, prompt, words, image_index, colour_map=colour_map, opacity=opacity, scale=scale
        )
        height, width = figure.image.shape[:2]
        if save_as.strip():
            save_figure(figure, output_path(save_as.strip(), width, height, ConfigError))
        tops = np.array([figure.ceiling(n) for n in range(figure.drawn)], np.float32)[:, None, None]
        masks = torch.from_numpy((enlarged(figure.maps[: figure.drawn], height, width) / tops).clip(0, 1))
        data = temp_file("heatmaps", ".json", json.dumps(figure.to_dict()))
        return io.NodeOutput(
            _image(overlays(figure)), _image(np.asarray(draw_figure(figure))[None]), masks, ui={"heatmaps": [data]}
        )


class CompareAttention(io.ComfyNode):
    """Two recordings of one prompt, side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_CompareAttention",
            display_name="Compare Attention",
            category=CATEGORY,
            description="Two recordings at the same seed, before and after erasing, with the change of every word.",
            is_output_node=True,
            inputs=[
                RecordingType.Input("before", tooltip="Recorded on the base model."),
                io.Image.Input("image_before"),
                RecordingType.Input("after", tooltip="Recorded with the LoRA, at the same seed and settings."),
                io.Image.Input("image_after"),
                io.Clip.Input("clip"),
                _prompt_input(),
                _words_input(),
                _index_input(),
                *_drawing_inputs(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                io.Image.Output("sheet", display_name="sheet"),
                io.String.Output("table", display_name="table", tooltip="Attention to each word before and after."),
            ],
        )

    @classmethod
    def execute(
        cls,
        before: Recording,
        image_before: torch.Tensor,
        after: Recording,
        image_after: torch.Tensor,
        clip: object,
        prompt: str,
        words: str,
        image_index: int,
        colour_map: str,
        opacity: float,
    ) -> io.NodeOutput:
        _check_sampled(cls.hidden, "before", "after")
        first, second = (
            _figure(recording, image, clip, prompt, words, image_index, colour_map=colour_map, opacity=opacity)
            for recording, image in ((before, image_before), (after, image_after))
        )
        if before.grid != after.grid or before.blocks != after.blocks:
            raise ConfigError("The two recordings differ in size or blocks: record both with the same settings.")
        sheet = _image(np.asarray(draw_comparison(first, second))[None])
        table = mass_table(first, second)
        return io.NodeOutput(sheet, table, ui={**_previews(sheet, cls), "text": [table]})


class DeleteAttention(io.ComfyNode):
    """The training-free eraser, as a baseline."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_DeleteAttention",
            display_name="Delete Attention",
            category=CATEGORY,
            description="Hides a phrase from the picture without training. A synonym or a misspelling defeats it.",
            inputs=[
                io.Model.Input("model", tooltip="A Flux.1."),
                io.Clip.Input("clip"),
                _prompt_input(),
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip="What to hide, wherever it is in the prompt; without it nothing changes.",
                ),
                _blocks_input("double"),
                *_range_inputs(),
            ],
            outputs=[io.Model.Output("deleted", display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: object, clip: object, prompt: str, phrase: str, blocks: str, t_start: float, t_end: float
    ) -> io.NodeOutput:
        double, single = flux_blocks(model)
        chosen = choose_blocks(blocks, double, single)
        if not phrase.strip():
            raise ConfigError("There is no phrase to hide: write the word that the picture should lose.")
        words = read_clip_prompt(clip, prompt)
        tokens = sorted({place for form in forms_of(phrase.strip()) for place in words.positions(form)})
        if not tokens:  # nothing to hide in this prompt
            return io.NodeOutput(model)
        return io.NodeOutput(Deleter(chosen, double, tokens, words.length, t_start, t_end).put_on(model))


def _check_sampled(hidden: Any, *names: str) -> None:
    """ConfigError if a recording comes from a Record node whose MODEL nothing in the graph takes.

    The host keeps that node's outputs, so the recording may still hold what an earlier graph sampled.
    """
    graph = getattr(hidden, "prompt", None)
    if not graph:  # called by other code than the host
        return
    taken = [value for node in graph.values() for value in node["inputs"].values()]
    for name in names:
        link = graph.get(str(hidden.unique_id), {"inputs": {}})["inputs"].get(name)
        source = graph.get(str(link[0])) if isinstance(link, list) else None
        recorded = source is not None and source["class_type"] == "EraseAnything_RecordAttention"
        if recorded and [link[0], 0] not in taken:
            raise ConfigError(NOTHING_RECORDED)


def _figure(
    recording: Recording, image: torch.Tensor, clip: Any, prompt: str, words: str, index: int, **drawing: Any
) -> Figure:
    if index >= len(image):
        raise ConfigError(f"The batch has {len(image)} images: choose one from 0 to {len(image) - 1}.")
    if recording.kind == OUTPUT:
        return figure_of(recording, None, (), image[index][..., :3], index, **drawing)
    read = read_clip_prompt(clip, prompt)
    return figure_of(recording, read, chosen_words(read, words), image[index][..., :3], index, **drawing)


def chosen_words(prompt: PromptWords, words: str) -> Sequence[Word]:
    """The phrases of a comma-separated list, each with all its occurrences; all words of the prompt for an empty
    list."""
    phrases = [phrase.strip() for phrase in words.split(",") if phrase.strip()]
    return [prompt.phrase(phrase) for phrase in phrases] or prompt.words


def mass_table(before: Figure, after: Figure) -> str:
    """The share of the image's attention that each word gets, before and after, as lines of text."""
    rows = zip(before.words, before.mass(), after.mass(), strict=True)
    lines = [f"{word.text:20s} {a:9.3%} {b:9.3%}  ×{b / a if a else float('nan'):.2f}" for word, a, b in rows]
    return "\n".join([f"{'word':20s} {'before':>9s} {'after':>9s}", *lines])


def _image(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, H, W, 3] as the host's IMAGE."""
    return torch.from_numpy(pictures.astype(np.float32) / 255)


def _previews(image: torch.Tensor, cls: type[io.ComfyNode]) -> dict:
    return ui.PreviewImage(image, cls=cls).as_dict()


NODES = [RecordJointAttention, TokenHeatmaps, CompareAttention, InspectImage, DeleteAttention]
