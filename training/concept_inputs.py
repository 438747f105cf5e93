"""Collects the concept inputs of LoRAs, which merging without dilution needs (see `lora/inputs.py`).

    python -m training.concept_inputs --source FOLDER LORA [LORA …]

writes `<name>.inputs.safetensors` beside each LoRA that says which concept it erases. The last line is JSON: `written`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .concepts import Concept, vocabulary_of
from .concepts.prompts import erase_prompts
from .concepts.spans import span_mask, token_spans
from .errors import ErasureError, LoraError
from .flow import Flow, Progress
from .lora.adapter import load_adapter
from .lora.format import KEY_BASE, KEY_CONCEPT, LoraWeights, read_lora
from .lora.inputs import COLUMNS, ConceptInputs, input_site, inputs_path, low_rank_factor, write_inputs
from .models.batches import batches, trajectories_at_once
from .models.device import pick_device, use_autocast
from .models.loading import load_text_encoders, load_transformer
from .models.sampling import initial_noise, sigmas, trajectory
from .models.source import PRECISIONS, FluxSource
from .models.text import TextEmbeds, TextEncoders
from .models.variants import variant_of

STEPS = 8  # Euler steps of a trajectory: a coarse grid is enough, because inputs change slowly with time
PROMPTS = {"concept": 16, "keep": 32}
SEED = 424_242  # of the noise; a number that people seldom use for images
WIDEST = 4096  # no second moments of wider layers: those of attention fit, those of the MLPs would take gigabytes
SPAN_SHARE = 0.5  # this share of a prompt's weight is on the concept's tokens, the rest is spread over all tokens


@torch.no_grad()
def second_moments(
    flow: Flow,
    modules: Sequence[str],
    embeds: TextEmbeds,
    tokens: Tensor,
    seeds: Sequence[int],
    *,
    student: bool,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The second moments E[x xᵀ] of the inputs x of layers along sampling trajectories.

    Args:
        modules: Names of the layers; those with more than WIDEST inputs are left out.
        embeds: One prompt for each trajectory, B in all.
        tokens: [B, L] weights of the text tokens in layers of the text stream, each row with the sum 1; in other layers
            all tokens have the same weight.
        seeds: Of the noise, one for each prompt.
        student: Sample with the adapter on, otherwise with the base.
        progress: Called with (done, total) passes.

    Returns:
        By place (see `input_site`): [inputs, inputs] fp32 on the CPU.
    """
    run = flow.student if student else flow.teacher
    moments: dict[str, Tensor] = {}
    weights = tokens.to(flow.device)

    def record(place: str, x: Tensor) -> None:
        x = x.float()
        own = weights if x.shape[1] == weights.shape[1] and ".add_" in place else x.new_ones(x.shape[:2]) / x.shape[1]
        moment = (x * own[..., None]).flatten(0, 1).T @ x.flatten(0, 1)
        moments[place] = moments[place] + moment if place in moments else moment

    hooks = []
    places: set[str] = set()
    for module in modules:
        layer, place = flow.transformer.get_submodule(module), input_site(module)
        if place not in places and layer.in_features <= WIDEST:
            places.add(place)
            hooks.append(layer.register_forward_pre_hook(lambda _, args, place=place: record(place, args[0])))
    try:
        parts = list(batches(len(embeds), trajectories_at_once(flow.transformer.config.num_attention_heads)))
        steps, done = len(flow.levels) - 1, 0
        for part in parts:
            weights = tokens[part].to(flow.device)

            def predict(latents: Tensor, t: float, part: slice = part) -> Tensor:
                nonlocal done
                v = run(latents, t, embeds[part])
                done += 1
                if progress is not None:
                    progress(done, steps * len(parts))
                return v

            noise = initial_noise(list(seeds[part]), flow.grid, flow.channels).to(flow.device)
            trajectory(predict, noise, flow.levels)
    finally:
        for hook in hooks:
            hook.remove()
    return {place: (moment / (steps * len(embeds))).cpu() for place, moment in moments.items()}


def collect_inputs(
    flow: Flow, text: TextEncoders, concept: Concept, modules: Sequence[str], progress: Progress | None = None
) -> ConceptInputs:
    """Collects the concept inputs of layers.

    Prompts with the concept are sampled with the adapter on, since these inputs are what the LoRA's layers read when it
    erases. The concept's preservation prompts are sampled with the base.

    Args:
        flow: With the LoRA as its adapter; without one the base is used for both. It samples on `flow.levels`.
        modules: Names of the layers.
        progress: Called with (done, total) passes.
    """
    vocabulary = vocabulary_of(text.tokenizer_2)
    concept = concept.fitted(vocabulary)
    erased = erase_prompts(
        concept.names(),
        concept.template,
        concept.kind,
        concept.irrelevant,
        PROMPTS["concept"],
        0,
        vocabulary,
        capitals=not vocabulary.closed,
    )
    length = text.sequence_length
    rows = []
    for prompt in erased:
        span = span_mask(token_spans(text.tokenizer_2, prompt.text, prompt.phrase, length), length).float()
        rows.append((1 - SPAN_SHARE) / length + SPAN_SHARE * span / span.sum() if span.any() else span + 1 / length)
    preserved = ["", *concept.preserve][: PROMPTS["keep"]]
    prompts = {"concept": [prompt.text for prompt in erased], "keep": preserved}
    tokens = {"concept": torch.stack(rows), "keep": torch.full((len(preserved), length), 1 / length)}
    factors: dict[str, dict[str, Tensor]] = {}
    for kind, texts in prompts.items():
        seeds = [SEED + i for i in range(len(texts))]
        moments = second_moments(
            flow,
            modules,
            text.encode(texts).to(flow.device),
            tokens[kind],
            seeds,
            student=kind == "concept",
            progress=progress,
        )
        factors[kind] = {place: low_rank_factor(moment, COLUMNS[kind]) for place, moment in moments.items()}
    return ConceptInputs(factors["concept"], factors["keep"], {KEY_CONCEPT: json.dumps(concept.to_dict())})


def inputs_of_lora(
    source: FluxSource,
    text: TextEncoders,
    weights: LoraWeights,
    metadata: Mapping[str, str],
    device: str = "auto",
    progress: Progress | None = None,
) -> ConceptInputs:
    """Collects the concept inputs of a trained LoRA on its base model.

    Raises:
        LoraError: Where the LoRA does not name its concept, or was trained on another base.
    """
    if KEY_CONCEPT not in metadata:
        raise LoraError("The LoRA does not say which concept it erases: choose one that this pack has trained.")
    base = source.fingerprint()
    if metadata.get(KEY_BASE, base) != base:
        raise LoraError("The LoRA was trained on another model: choose that one.")
    concept, variant, place = (
        Concept.from_dict(json.loads(metadata[KEY_CONCEPT])),
        variant_of(source),
        pick_device(device),
    )
    transformer = load_transformer(source, place)
    load_adapter(transformer, weights)
    side = max(1, min(512, variant.resolution) // 16)
    flow = Flow(
        transformer,
        sigmas(variant, STEPS, side * side),
        (side, side),
        variant.default_guidance,
        use_autocast(source, place),
    )
    found = collect_inputs(flow, text, concept, list(weights), progress)
    found.metadata[KEY_BASE] = base
    return found


def write_missing(
    source: FluxSource,
    loras: Sequence[str | Path],
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the concept inputs of the LoRAs that have none beside them.

    Args:
        source: The model that they were trained on.
        overwrite: Write those of all LoRAs.
        progress: Called with (done, total) LoRAs.

    Returns:
        The files that were written.

    Raises:
        LoraError: For a LoRA that does not name its concept, or was trained on another model; the files of the LoRAs
            before it are written.
    """
    missing = [Path(path) for path in loras if overwrite or not inputs_path(path).is_file()]
    if not missing:
        return []
    text = load_text_encoders(source, pick_device(device))
    written = []
    for number, path in enumerate(missing, 1):
        write_inputs(inputs_path(path), inputs_of_lora(source, text, *read_lora(path), device))
        written.append(inputs_path(path))
        if progress is not None:
            progress(number, len(missing))
    return written


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status (1: one sentence on stderr says why not)."""
    parser = argparse.ArgumentParser(prog="python -m training.concept_inputs", description=__doc__.partition("\n")[0])
    parser.add_argument("loras", nargs="+", type=Path, help="LoRA files that this pack has trained")
    parser.add_argument("--source", required=True, help="Flux folder in diffusers layout that they were trained on")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    try:
        source = FluxSource("diffusers", folder=str(Path(args.source).resolve()), precision=args.precision)
        source.validate()
        written = write_missing(source, args.loras, args.device, overwrite=True)
    except ErasureError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"written": [str(path) for path in written]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
