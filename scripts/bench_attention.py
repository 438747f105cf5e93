"""Measures how well joint attention finds objects, and what recording it costs: `python scripts/bench_attention.py`.

Prints JSON. Composed emoji scenes with known masks go through the engine's Inspect Image: encoded, noised to t, one
pass. The table over blocks × timesteps is what the inspector's default blocks rest on. Runs in .venv (made by
scripts/test.py); the emoji are read from the demo builder's cache, which its first run fills with npm.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, SetupError, install_requirements, run_inside_venv

TIMES = (0.1, 0.2, 0.4, 0.6, 0.8)
BATCH = 25
# kind of scene -> objects in it, and whether a prompt names one of them alone: the demo model was never taught captions
# of more than two
SCENES = {"two objects": (2, False), "four objects": (4, False), "four objects, one named": (4, True)}
FLUX_SHAPE = {"heads": 24, "width": 128, "image": 4096, "text": 512}  # Flux.1 at 1024 × 1024


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


def compose(sprites: Any, rng: random.Random, objects: int, alone: bool) -> list[Case]:
    """One scene of two or four different nouns; `alone`: a case for each noun, whose prompt names it and no other."""
    import numpy as np
    from PIL import Image

    from training.demo.scenes import CELL, IMAGE_SIZE, LAYOUTS
    from training.demo.vocabulary import BACKGROUNDS, NOUNS, STYLES, with_article

    layout = "four" if objects == 4 else rng.choice(("next to", "above"))
    nouns = rng.sample(range(len(NOUNS)), objects)
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


def localise(args: argparse.Namespace) -> dict[str, Any]:
    """All measures over the scenes of each kind: default blocks and timestep, every block × timestep, output space, the
    area baseline, and the ceiling of a perfect map at the resolution of the image tokens."""
    import numpy as np
    import torch

    from training.demo.sprites import load_sprites
    from training.demo.vocabulary import NOUNS
    from training.flux.loading import load_parts, pick_device
    from training.flux.sampling import initial_noise, pack
    from training.flux.source import demo_source
    from training.inspection import default_blocks, read_prompt
    from training.inspection.capture import encode_concepts, noised, record_concepts, record_pass
    from training.inspection.heatmaps import enlarged
    from training.inspection.localisation import area_baseline, localisation

    device = pick_device(args.device)
    parts = load_parts(demo_source("fp32"), device)
    grid, guidance = parts.variant.grid, parts.variant.default_guidance
    double, single = len(parts.transformer.transformer_blocks), len(parts.transformer.single_transformer_blocks)
    blocks = list(range(double + single))
    sprites = load_sprites(ROOT / ".cache" / "flux-emoji")
    with torch.no_grad():
        vectors = encode_concepts(parts.text, [*(noun.name for noun in NOUNS), "background"])
    results = {}
    for kind, (objects, alone) in SCENES.items():
        rng = random.Random(args.seed)
        cases = [case for _ in range(args.scenes) for case in compose(sprites, rng, objects, alone)]
        measures = Averages()
        for first in range(0, len(cases), BATCH):
            chunk = cases[first : first + BATCH]
            pictures = torch.from_numpy(np.stack([case.picture for case in chunk])).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                raw = parts.vae.encode(pictures.to(device) / 127.5 - 1).latent_dist.mode()
            config = parts.vae.config
            latents = pack((raw - config.shift_factor) * config.scaling_factor)
            noise = initial_noise([args.seed + first + n for n in range(len(chunk))], grid).to(device)
            embeds = parts.text.encode([case.prompt for case in chunk])
            for t in TIMES:
                x_t = noised(latents, noise, t)
                recording = record_pass(parts.transformer, x_t, t, embeds, guidance, grid, blocks)
                chosen = {f"block {name}, t {t}": [place] for place, name in enumerate(recording.names())}
                chosen[f"best, t {t}"] = [recording.blocks.index(block) for block in default_blocks(double)]
                outputs = {f"output space, block {block}, t {t}": [block] for block in range(double)}
                outputs[f"output space, best, t {t}"] = list(default_blocks(double))
                for n, case in enumerate(chunk):
                    size = case.picture.shape[:2]
                    words = read_prompt(parts.text.tokenizer_2, case.prompt, parts.variant.sequence_length)
                    labels = [*case.nouns, len(NOUNS)]
                    concepts = record_concepts(
                        parts.transformer, x_t[n : n + 1], t, embeds[n], guidance, grid, range(double),
                        [str(label) for label in labels], vectors[:, labels],
                    )  # fmt: skip
                    for place in case.tested:
                        mask = case.masks[place]
                        others = np.logical_or.reduce([m for m in case.masks if m is not mask])
                        tokens = list(words.phrase(NOUNS[case.nouns[place]].name).tokens)
                        heats = {name: recording.mean(n, blocks=which)[tokens].sum(0) for name, which in chosen.items()}
                        heats |= {name: concepts.mean(0, blocks=which)[place] for name, which in outputs.items()}
                        for name, heat in heats.items():
                            measures.add(name, localisation(enlarged(heat[None].numpy(), *size)[0], mask, others))
                        if t == TIMES[0]:
                            measures.add("area", area_baseline(mask, others))
                            cells = mask.reshape(grid[0], size[0] // grid[0], grid[1], -1).mean((1, 3))
                            perfect = enlarged(cells[None].astype(np.float32), *size)[0]
                            measures.add("ceiling", localisation(perfect, mask, others))
        results[kind] = measures.table()
    return results


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """Time of one attention at Flux's real shape without and with recording it, the largest memory, and the bytes of a
    recording of 28 steps."""
    import resource

    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from training.flux.attention import attend, text_columns
    from training.flux.loading import pick_device
    from training.inspection import Recording

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
        "shape": FLUX_SHAPE, "dtype": str(dtype), "tokens": args.tokens,
        "attention_seconds": plain, "recorded_seconds": fused, "recorded_beside_another_kernel_seconds": apart,
        "added_share_5_of_57_blocks": (fused - plain) * 5 / (57 * plain),
        "added_share_5_of_57_blocks_beside_another_kernel": (apart - plain) * 5 / (57 * plain),
        "peak_mib_added_by_recording": after - before, "one_head_matrix_mib": whole * whole * 4 / 2**20,
        "recording_28_steps_mb": recording.nbytes / 1e6,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenes",
        type=int,
        default=25,
        help="of each kind: two objects, four objects, and these with one named at a time",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="recorded text tokens, for the cost")
    parser.add_argument("--repeats", type=int, default=2, help="timings, of which the best counts")
    parser.add_argument("--only", choices=("localisation", "cost"), help="half of it")
    args = parser.parse_args()
    try:
        install_requirements(tests=True)
        run_inside_venv()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    result: dict[str, Any] = {"scenes": args.scenes, "seed": args.seed}
    if args.only != "cost":
        result["localisation"] = localise(args)
    if args.only != "localisation":
        result["cost"] = cost(args)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
