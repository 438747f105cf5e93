"""`attention`: how well joint attention finds objects, whether erasing shows in it, and what recording it costs.

Composed emoji scenes with known masks go through the engine's Inspect Image: encoded, noised to t, one pass. The table
over blocks × timesteps is what the inspector's default blocks rest on. The emoji are read from the demo builder's
cache, which its first run fills with npm.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.environment import ROOT

from ..page import conclude
from ..rows import key_of
from ..workplace import Workplace, seeds_of

TIMES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
BATCH = 25
# kind of scene -> objects in it, and whether a prompt names one of them alone: the demo model was never taught captions
# of more than two
SCENES = {"two objects": (2, False), "four objects": (4, False), "four objects, one named": (4, True)}
RIDGE = 1e-3  # of a readout, whose maps have a spread of 1
ERASED_SCENES = 24  # two objects, one of them the erased noun
FLUX_SHAPE = {"heads": 24, "width": 128, "image": 4096, "text": 512}  # Flux.1 at 1024 × 1024


def attention(args: argparse.Namespace) -> None:
    """How well joint attention finds objects, whether erasing shows in it, and what recording costs."""
    from training.inspection import default_blocks, default_time
    from training.inspection.recording import OUTPUT

    place = Workplace(args, "attention")
    double = place.source.transformer_config()["num_layers"]
    best = {"best": default_blocks(double), "best_output": default_blocks(double, OUTPUT)}
    erasing = {"blocks": list(range(double)), "t": default_time(double)}
    for kind in SCENES:
        slot = {"what": "scenes", "kind": kind}
        keep(place, slot, lambda kind=kind: localise(place, kind), scenes=args.scenes, **best)
    for phrase in args.concepts.split(",") if args.concepts else ():
        for seed in seeds_of(args.seeds):
            slot = {"what": "erased", "concept": phrase, "seed": seed}
            keep(place, slot, lambda phrase=phrase, seed=seed: erased(place, phrase, seed), **erasing)
    keep(place, {"what": "cost"}, lambda: cost_of_recording(args), tokens=args.tokens, repeats=args.repeats)
    conclude(place.rows, "attention")


def keep(place: Workplace, slot: dict[str, Any], measure: Any, **settings: Any) -> None:
    """Measures one row unless it is there; one that says nothing is another process's work."""
    key = key_of({**slot, **settings, "model": place.model, "device": place.args.device})
    if place.done(key) or not (found := measure()):
        return
    place.keep(key, slot, {**settings, **found})
    print(f"· {', '.join(str(value) for value in slot.values())}", flush=True)


@dataclass
class Case:
    """A picture uint8 [S, S, 3] with a prompt, and the objects that its words are tested on.

    masks: bool [S, S] of every object in the picture; nouns: their indices in the demo model's vocabulary; tested:
    positions in both lists.
    """

    picture: Any
    masks: list[Any]
    nouns: list[int]
    prompt: str
    tested: list[int]


def compose(sprites: Any, rng: random.Random, objects: int, alone: bool, noun: int | None = None) -> list[Case]:
    """One scene of two or four different nouns; `alone`: a case for each noun, whose prompt names it and no other.

    noun: an index that shall be among them.
    """
    import numpy as np
    from PIL import Image

    from demo_model.scenes import CELL, IMAGE_SIZE, LAYOUTS
    from demo_model.vocabulary import BACKGROUNDS, NOUNS, STYLES, with_article

    layout = "four" if objects == 4 else rng.choice(("next to", "above"))
    nouns = rng.sample(range(len(NOUNS)), objects)
    if noun is not None and noun not in nouns:
        nouns[rng.randrange(objects)] = noun
    style = rng.randrange(len(STYLES))
    colour = rng.choice(list(BACKGROUNDS))
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUNDS[colour])
    masks = []
    for noun, corner in zip(nouns, LAYOUTS[layout], strict=True):
        place = (corner[0] + 2, corner[1] + 2)
        sprite = Image.fromarray(sprites[noun, style]).resize((CELL - 4, CELL - 4), Image.Resampling.BOX)
        canvas.paste(sprite, place, sprite)
        alpha = Image.new("L", canvas.size)
        alpha.paste(sprite.getchannel("A"), place)
        masks.append(np.asarray(alpha) > 127)
    picture, names = np.asarray(canvas), [with_article(NOUNS[noun].name) for noun in nouns]
    end = f"on a {colour} background"
    if alone:
        return [Case(picture, masks, nouns, f"a photo of {name} {end}", [n]) for n, name in enumerate(names)]
    said = f" {layout} ".join(names) if objects == 2 else f"{', '.join(names[:-1])} and {names[-1]}"
    return [Case(picture, masks, nouns, f"{said} {end}", list(range(objects)))]


class Averages:
    """Means of measures under names."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, measures: dict[str, float]) -> None:
        self.rows.setdefault(name, []).append(measures)

    def table(self) -> dict[str, dict[str, float]]:
        """name -> measure -> mean, 4 digits."""
        return {
            name: {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}
            for name, rows in self.rows.items()
        }


@dataclass
class Eye:
    """The demo model with what Inspect Image needs of it."""

    place: Workplace

    def __post_init__(self) -> None:
        from demo_model.sprites import load_sprites

        self.parts = self.place.parts()
        self.sprites = load_sprites(ROOT / ".cache" / "flux-emoji")
        self.grid = self.parts.variant.grid
        self.double = len(self.parts.transformer.transformer_blocks)
        self.blocks = list(range(self.double + len(self.parts.transformer.single_transformer_blocks)))

    def latents(self, cases: list[Case]) -> Any:
        """[n, N, 64]: the pictures as the model's VAE encodes them."""
        import numpy as np
        import torch

        from training.models.sampling import encode

        pictures = torch.from_numpy(np.stack([case.picture for case in cases])).permute(0, 3, 1, 2).float()
        return encode(self.parts.vae, pictures / 255)

    def noised(self, cases: list[Case], seeds: list[int], t: float) -> Any:
        """The pictures' x_t."""
        from training.inspection.capture import noised
        from training.models.sampling import initial_noise

        latents = self.latents(cases)
        return noised(latents, initial_noise(seeds, self.grid).to(latents), t)

    def record(self, x_t: Any, t: float, embeds: Any, blocks: list[int]) -> Any:
        """One pass, recorded."""
        from training.inspection.capture import record_pass

        guidance = self.parts.variant.default_guidance
        return record_pass(self.parts.transformer, x_t, t, embeds, guidance, self.grid, blocks)

    def words(self, prompt: str) -> Any:
        """The prompt's words with their tokens."""
        from training.inspection import read_prompt

        return read_prompt(self.parts.text.tokenizer_2, prompt, self.parts.variant.sequence_length)


def localise(place: Workplace, kind: str) -> dict[str, Any]:
    """All measures over the scenes of one kind: default blocks and timestep, every block × timestep, output space, the
    area baseline, the ceiling of a perfect map at the resolution of the image tokens, and at each timestep the model's
    own ceiling: the best weighting of all that was recorded (see `Readout`)."""
    import numpy as np
    import torch

    from demo_model.vocabulary import NOUNS
    from training.inspection import default_blocks, default_time
    from training.inspection.capture import encode_concepts, record_concepts
    from training.inspection.heatmaps import enlarged
    from training.inspection.localisation import area_baseline, localisation
    from training.inspection.recording import OUTPUT

    eye, (objects, alone) = Eye(place), SCENES[kind]
    rng, measures = random.Random(0), Averages()
    cases = [case for _ in range(place.args.scenes) for case in compose(eye.sprites, rng, objects, alone)]
    best, best_outputs = list(default_blocks(eye.double)), list(default_blocks(eye.double, OUTPUT))
    with torch.no_grad():
        vectors = encode_concepts(eye.parts.text, [*(noun.name for noun in NOUNS), "background"])
    readouts = {f"{space}weighted, t {t}": Readout(eye.grid) for t in TIMES for space in ("", "output space, ")}
    for first in range(0, len(cases), BATCH):
        chunk = cases[first : first + BATCH]
        embeds = eye.parts.text.encode([case.prompt for case in chunk])
        for t in TIMES:
            x_t = eye.noised(chunk, [first + n for n in range(len(chunk))], t)
            recording = eye.record(x_t, t, embeds, eye.blocks)
            chosen = {f"block {name}, t {t}": [index] for index, name in enumerate(recording.names())}
            chosen[f"best, t {t}"] = [recording.blocks.index(block) for block in best]
            outputs = {f"output space, block {block}, t {t}": [block] for block in range(eye.double)}
            outputs[f"output space, best, t {t}"] = best_outputs
            for n, case in enumerate(chunk):
                size, words = case.picture.shape[:2], eye.words(case.prompt)
                labels = [*case.nouns, len(NOUNS)]
                concepts = record_concepts(
                    eye.parts.transformer,
                    x_t[n : n + 1],
                    t,
                    embeds[n],
                    eye.parts.variant.default_guidance,
                    eye.grid,
                    range(eye.double),
                    [str(label) for label in labels],
                    vectors[:, labels],
                )
                for index in case.tested:
                    mask = case.masks[index]
                    others = np.logical_or.reduce([m for m in case.masks if m is not mask])
                    cells = mask.reshape(eye.grid[0], size[0] // eye.grid[0], eye.grid[1], -1).mean((1, 3))
                    tokens = list(words.phrase(NOUNS[case.nouns[index]].name).tokens)
                    heats = {name: recording.mean(n, blocks=which)[tokens].sum(0) for name, which in chosen.items()}
                    heats |= {name: concepts.mean(0, blocks=which)[index] for name, which in outputs.items()}
                    every = recording.image(n)[0, :, :, tokens].float().sum(2).flatten(0, 1)
                    readouts[f"weighted, t {t}"].add(every, cells, mask, others)
                    every = concepts.image(0)[0, :, 0, index].float()
                    readouts[f"output space, weighted, t {t}"].add(every, cells, mask, others)
                    for name, heat in heats.items():
                        measures.add(name, localisation(enlarged(heat[None].numpy(), *size)[0], mask, others))
                    if t == TIMES[0]:
                        measures.add("area", area_baseline(mask, others))
                        perfect = enlarged(cells[None].astype(np.float32), *size)[0]
                        measures.add("ceiling", localisation(perfect, mask, others))
    for name, readout in readouts.items():
        measures.rows[name] = readout.measured()
    return {"t": default_time(eye.double), "objects": len(measures.rows["area"]), "table": measures.table()}


@dataclass
class Readout:
    """What a model's maps hold at best: the weights of all blocks and heads that a ridge regression finds on the first
    half of the objects, measured on the second half."""

    grid: tuple[int, int]
    maps: list[Any] = field(default_factory=list)  # of each object, [maps, tokens]
    cells: list[Any] = field(default_factory=list)  # share of the object in each token
    masks: list[tuple[Any, Any]] = field(default_factory=list)

    def add(self, maps: Any, cells: Any, mask: Any, others: Any) -> None:
        """One object: its word's maps of every block and head [M, N], its share of each token, and the masks."""
        self.maps.append(maps.numpy())
        self.cells.append(cells.ravel())
        self.masks.append((mask, others))

    def measured(self) -> list[dict[str, float]]:
        """The measures of each object of the second half."""
        import numpy as np

        from training.inspection.heatmaps import enlarged
        from training.inspection.localisation import localisation

        half = len(self.maps) // 2
        seen, target = np.concatenate(self.maps[:half], 1), np.concatenate(self.cells[:half])
        mean, spread = seen.mean(1, keepdims=True), seen.std(1, keepdims=True) + 1e-9
        scaled = (seen - mean) / spread
        gram = scaled @ scaled.T / scaled.shape[1] + RIDGE * np.eye(len(scaled))
        weights = np.linalg.solve(gram, scaled @ (target - target.mean()) / scaled.shape[1])
        found = []
        for maps, (mask, others) in zip(self.maps[half:], self.masks[half:], strict=True):
            heat = weights @ ((maps - mean) / spread)
            heat = (heat - heat.min()).reshape(1, *self.grid).astype(np.float32)
            found.append(localisation(enlarged(heat, *mask.shape)[0], mask, others))
        return found


def erased(place: Workplace, phrase: str, seed: int) -> dict[str, Any]:
    """Trains a LoRA and measures what it does to attention, see `faded`."""
    lora = place.lora(phrase, seed)
    return {**faded(place, phrase, seed, lora), "training_seconds": place.seconds_of(lora)} if lora else {}


def faded(place: Workplace, phrase: str, seed: int, lora: Path) -> dict[str, Any]:
    """Scenes with the noun and another one, without and with the LoRA at the same noise: how much less of the noun's
    attention lies on its own object, and how the other words' maps correlate with the base's.

    In the double blocks, where a LoRA of the defaults is: the maps of the single ones change only by what comes in.
    """
    import numpy as np
    import torch

    from demo_model.vocabulary import NOUNS
    from training.inspection import default_time
    from training.inspection.heatmaps import enlarged
    from training.lora.adapter import load_adapter
    from training.lora.format import read_lora

    eye, rng = Eye(place), random.Random(seed)
    noun = next(index for index, known in enumerate(NOUNS) if known.name == phrase)
    cases = [compose(eye.sprites, rng, 2, False, noun)[0] for _ in range(ERASED_SCENES)]
    embeds = eye.parts.text.encode([case.prompt for case in cases])
    t = default_time(eye.double)
    x_t = eye.noised(cases, list(range(len(cases))), t)
    double = list(range(eye.double))
    base = eye.record(x_t, t, embeds, double)
    load_adapter(eye.parts.transformer, read_lora(lora)[0])
    after = eye.record(x_t, t, embeds, double)
    ratios, correlations = [], []
    for n, case in enumerate(cases):
        size, words = case.picture.shape[:2], eye.words(case.prompt)
        maps = [recording.mean(n) for recording in (base, after)]
        for word in words.words:
            heats = [each[list(word.tokens)].sum(0) for each in maps]
            if word.text == phrase:
                mask = case.masks[case.nouns.index(noun)]
                mass = [float(enlarged(heat[None].numpy(), *size)[0][mask].sum()) for heat in heats]
                ratios.append(mass[0] / max(mass[1], 1e-12))
            else:
                correlations.append(float(torch.corrcoef(torch.stack([heat.flatten() for heat in heats]))[0, 1]))
    return {
        "scenes": len(cases),
        "falls": {"median": round(float(np.median(ratios)), 2), "worst": round(min(ratios), 2)},
        "left": round(float(np.mean([1 / ratio for ratio in ratios])), 4),
        "others": {"mean": round(float(np.mean(correlations)), 4), "worst": round(min(correlations), 4)},
    }


def cost_of_recording(args: argparse.Namespace) -> dict[str, Any]:
    """Time of one attention at Flux's real shape without and with recording it, the largest memory, and the bytes of a
    recording of 28 steps."""
    import resource

    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from training.inspection import Recording
    from training.models.attention import attend, text_columns
    from training.models.device import pick_device

    device = pick_device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads, width, text = FLUX_SHAPE["heads"], FLUX_SHAPE["width"], FLUX_SHAPE["text"]
    whole = text + FLUX_SHAPE["image"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, whole, width, generator=generator).to(device, dtype) for _ in range(3))

    def recorded() -> None:
        _, normaliser = attend(q, k, v)
        text_columns(q[:, :, text:], k, normaliser[:, :, text:], args.tokens, mean_heads=True)

    def separately() -> None:
        scaled_dot_product_attention(q, k, v)
        query = q[:, :, text:]
        text_columns(query, k, attend(query, k, k)[1], args.tokens, mean_heads=True)

    def peak() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def timed(function: Any) -> float:
        function()
        best = float("inf")
        for _ in range(args.repeats):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    with torch.inference_mode():
        plain = timed(lambda: scaled_dot_product_attention(q, k, v))
        before = peak()
        fused = timed(recorded)
        after = peak()
        apart = timed(separately)
        recording = Recording(blocks=tuple(range(5)), double=19)
        recording.begin((64, 64), text, whole)
        for step in range(28):
            recording.add(1 - step / 28, [torch.full((1, 1, args.tokens, 4096), 1 / whole)] * 5)
    return {
        "shape": FLUX_SHAPE,
        "dtype": str(dtype),
        "tokens": args.tokens,
        "attention_seconds": plain,
        "recorded_seconds": fused,
        "recorded_beside_another_kernel_seconds": apart,
        "added_share_5_of_57_blocks": (fused - plain) * 5 / (57 * plain),
        "added_share_5_of_57_blocks_beside_another_kernel": (apart - plain) * 5 / (57 * plain),
        "peak_mib_added_by_recording": after - before,
        "one_head_matrix_mib": whole * whole * 4 / 2**20,
        "recording_28_steps_mb": recording.nbytes / 1e6,
    }
