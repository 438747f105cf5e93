"""`train`: speed and memory of a training at full size on random weights, every combination, beside the authors'."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from scripts.environment import CACHE, say

from ..full_size import COMPILED
from ..page import conclude
from ..random_flux import MODELS, random_weights
from ..rows import Rows, key_of, machine
from ..workplace import behaviour
from .cost import count_flops
from .variants import RSC

MODES: dict[str, dict[str, Any]] = {
    "plain": {"gradient_checkpointing": "off"},
    "checkpointed": {"gradient_checkpointing": "on"},
    "streamed": {"stream_blocks": 2},
    COMPILED: {"gradient_checkpointing": "off", "compile": True},
}
# Of the published Flux, which the estimate wants to know though nothing of it is loaded here: numbers in CLIP-L, in
# T5-XXL and its largest matrix, its heads, its inner width, numbers in the autoencoder, its channels at full size.
BESIDE = (123_060_480, 4_762_310_656, 32_128 * 4096, 64, 10_240, 83_819_683, 128)
STEPS = 4  # Euler steps of the bank that is filled for a timing; what a whole one takes follows from its passes
AUTHORS_STEPS = 28


@dataclasses.dataclass(frozen=True)
class Combination:
    """One row: precision, side in pixels, and one of MODES."""

    precision: str
    resolution: int
    mode: str

    def __str__(self) -> str:
        return f"{self.precision} {self.mode} {self.resolution}²"


class Bench:
    """The command at work: one model's shape, one device."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from training.memory import ModelSize, block_sizes
        from training.models.device import pick_device
        from training.models.variants import FLUX_DEV, FLUX_EMOJI

        if args.threads:
            torch.set_num_threads(args.threads)
        self.args, self.device, self.geometry = args, pick_device(args.device), MODELS[args.model]
        self.cuda = self.device.type == "cuda"
        self.rows = Rows(args.out / f"{args.name or 'train'}.json", CACHE / "bench" / "locks")
        with torch.device("meta"):
            shapes = {name: tuple(p.shape) for name, p in self._empty().named_parameters()}
        self.variant = FLUX_DEV if self.geometry["num_attention_heads"] == 24 else FLUX_EMOJI
        self.size = ModelSize(self.variant, self.geometry, *block_sizes(shapes), *BESIDE)
        self.behaviour, self.where = behaviour(), machine()

    def _empty(self):
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel(**self.geometry)

    # --- what is measured -------------------------------------------------------------------------------------------

    def peak_flops(self) -> float:
        """FLOPs per second of a large product in bf16, the best of a few: what the shares are of."""
        import torch

        side, repeats = (8192, 10) if self.cuda else (1024, 2)
        best = 0.0
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            best = max(best, 2 * side**3 * repeats / self.seconds(lambda: [a @ b for _ in range(repeats)]))
        return best

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, until the device has done it."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _start_peak(self) -> None:
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> int | None:
        """Bytes of the device that this process held at most since _start_peak(), with what CUDA itself takes; None on
        a CPU, where a process cannot tell its own peak of one part."""
        import torch

        if not self.cuda:
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        beside = total - free - torch.cuda.memory_reserved(self.device)  # its context; nobody else may be there
        return torch.cuda.max_memory_reserved(self.device) + beside

    # --- the model --------------------------------------------------------------------------------------------------

    def transformer(self, precision: str, ring: int):
        """A transformer with random weights, ready as `load_transformer` makes one.

        Made and quantised on the device, where both are quick, and then brought there from the computer's memory, as
        from files: so the device's memory is as in a training.
        """
        import torch

        from training.models.loading import prepare_transformer, quantise
        from training.models.source import QUANTISED

        with torch.device("meta"):
            model = torch.nn.Module.to(self._empty(), torch.bfloat16)  # diffusers' own warns of loading
        model = random_weights(model, self.device)
        if precision in QUANTISED:
            quantise(model, precision, self.device)
        model = model.to("cpu")
        self._start_peak()
        return prepare_transformer(model, self.device, torch.bfloat16, ring=ring)

    def config(self, combination: Combination):
        """The pack's defaults at batch 1, like the authors', with a small bank; see STEPS."""
        from training.settings import ErasureConfig

        return ErasureConfig(
            batch_erase=1,
            batch_preserve=1,
            erase_prompts=2,
            preserve_prompts=2,
            sampling_steps=STEPS,
            sample_every=0,
            resolution=combination.resolution,
            **MODES[combination.mode],
        ).for_kind("entity")

    def request(self, combination: Combination):
        """What the estimate is asked about."""
        from training.models.source import FluxSource
        from training.request import ErasureRequest

        source = FluxSource("diffusers", precision=combination.precision)
        config = self.config(combination)
        return ErasureRequest(source, _concept(), config, "lora", str(self.args.out), str(self.device))

    def method(self, factory: Callable, config: Any) -> tuple[Any, Any]:
        """(a method whose prompts are planned, their random embeddings)."""
        import torch
        from transformers import AutoTokenizer

        from training.methods import Prompts
        from training.models.source import demo_model_folder
        from training.models.text import TextEmbeds

        method, prompts, length = factory(_concept(), config), Prompts(), self.variant.sequence_length
        tokenizer = AutoTokenizer.from_pretrained(demo_model_folder() / "tokenizer_2", local_files_only=True)
        method.plan(prompts, tokenizer, length)
        generator, count = torch.Generator().manual_seed(1), len(prompts.texts)
        t5 = torch.randn(count, length, self.geometry["joint_attention_dim"], generator=generator)
        pooled = torch.randn(count, self.geometry["pooled_projection_dim"], generator=generator)
        return method, TextEmbeds(t5, pooled).to(self.device)

    # --- rows -------------------------------------------------------------------------------------------------------

    def measure(self, combination: Combination, transformer: Any) -> dict[str, Any]:
        """A row: times, FLOPs, memory beside the estimate. The transformer has no adapter, before and after."""
        import torch

        from training.bank import used_steps
        from training.flow import put_adapter
        from training.lora.adapter import remove_adapter
        from training.memory import estimate_memory
        from training.methods import make_method
        from training.models.compiling import restore_blocks
        from training.models.sampling import sigmas
        from training.settings import ErasureConfig
        from training.updates import make_optimizers, update, update_level

        request = self.request(combination)
        config, phases = request.config, estimate_memory(request, self.size).phases
        method, embeds = self.method(make_method, config)
        flow, parameters = put_adapter(transformer, request.source, self.variant, config, self.device)
        try:
            passes = [0]
            self._start_peak()
            bank: dict[str, Any] = {}
            if config.compile:
                method.collect(flow, embeds, lambda done, total: None)  # which compiles
            progress = lambda done, total: passes.__setitem__(0, passes[0] + 1)  # noqa: E731
            bank_seconds = self.seconds(lambda: bank.update(method.collect(flow, embeds, progress)))
            peaks = {"bank": self._peak()}
            method.use(bank, embeds)
            points = sum(len(bank[f"{kind}.row"]) * n for kind, n in (("erase", 2), ("preserve", 1)))
            optimizers = make_optimizers(method, parameters, config)
            generator = torch.Generator("cpu").manual_seed(0)
            level = lambda: update_level(  # noqa: E731
                method, "erase", flow, optimizers["erase"], generator, parameters, 0
            )
            pair = lambda: update(method, flow, optimizers, generator, parameters, 0)  # noqa: E731
            first = self.seconds(pair)  # what is slow the first time
            self._start_peak()
            pairs = [self.seconds(pair) for _ in range(self.args.repeats)]
            steps = [self.seconds(level) for _ in range(self.args.repeats)]
            peaks["train"] = self._peak()  # before FLOPs are counted, which may need another attention kernel
            with torch.no_grad():
                latents = bank["erase.x"][:1].to(self.device).float()
                forward = count_flops(lambda: flow.teacher(latents, 0.9, embeds[[0]]), self.device)
            counted, whole = (count_flops(work, self.device) for work in (level, pair))
        finally:
            remove_adapter(transformer)
            restore_blocks(transformer)
            if not config.stream_blocks:
                transformer.disable_gradient_checkpointing()
        replayed = forward if config.checkpoints_blocks(combination.precision) else 0
        defaults, side = ErasureConfig(), flow.grid[0]
        levels = sigmas(self.variant, self.variant.default_steps, side * side)
        trajectories = 2 * defaults.erase_prompts + defaults.preserve_prompts
        return {
            "pair_seconds": [round(value, 5) for value in pairs],
            "step_seconds": [round(value, 5) for value in steps],
            "first_pair_seconds": round(first, 2),
            "pair_flops": whole,
            "step_flops": counted,
            "replayed_flops": replayed,  # of step_flops: what checkpointing computes twice
            "bank_seconds_per_pass": round(bank_seconds / points, 5),
            "bank_passes": trajectories * used_steps(levels, defaults.t_min),  # of a bank by the defaults
            "peak_bytes": peaks,
            "estimated_bytes": {phase: phases[phase] for phase in peaks},
        }

    def measure_authors(self, resolution: int, transformer: Any) -> dict[str, Any]:
        """The authors' schedule on plain bf16 weights: one pair after a short warm-up, since it takes that long."""
        import torch

        from training.flow import put_adapter
        from training.lora.adapter import remove_adapter
        from training.methods.published import PublishedSchedule
        from training.updates import make_optimizers, update

        combination = Combination("bf16", resolution, "plain")
        source = self.request(combination).source
        config = dataclasses.replace(self.config(combination), sampling_steps=AUTHORS_STEPS, **RSC)
        method, embeds = self.method(PublishedSchedule, config)
        method.use({}, embeds)
        flow, parameters = put_adapter(transformer, source, self.variant, config, self.device)
        try:
            noise = torch.randn(1, flow.grid[0] ** 2, 4 * flow.channels)
            flow.teacher(noise, 0.9, embeds[[0]])
            optimizers = make_optimizers(method, parameters, config)
            generator, found = torch.Generator("cpu").manual_seed(0), {}
            self._start_peak()

            def pair() -> None:
                update(method, flow, optimizers, generator, parameters, 0)

            found["pair_seconds"] = [round(self.seconds(pair), 5)]
            found["peak_bytes"] = {"train": self._peak()}
            passes = count_flops(lambda: flow.teacher(noise, 0.9, embeds[[0]]), self.device)
            return {**found, "forward_flops": passes}
        finally:
            remove_adapter(transformer)

    def slot(self, what: str, **more: Any) -> dict[str, Any]:
        """A row's place in the table: one for each model and device."""
        return {"what": what, "model": self.args.model, "device": self.where["gpu"] or self.device.type, **more}

    def done(self, slot: dict[str, Any]) -> bool:
        """Whether there is a row for this slot, by this code where --fresh asks for it."""
        return any(
            row["key"] == key_of(slot) and (not self.args.fresh or row.get("behaviour") == self.behaviour)
            for row in self.rows.all()
        )

    def keep(self, slot: dict[str, Any], row: dict[str, Any]) -> None:
        """Keeps a row with what it was made by."""
        self.rows.put(key_of(slot), slot, {"behaviour": self.behaviour, "peak_flops": self.peak, **row})


def _concept():
    """A concept with words of its own: nothing is looked up."""
    from training.concepts import Concept

    return Concept(
        "car", synonyms=("automobile",), irrelevant=("dog", "apple", "bus"), preserve=("a photo of a dog", "a red bus")
    )


def combinations(args: argparse.Namespace) -> Iterator[Combination]:
    """All that is asked for; those that share a transformer one after another."""
    modes = args.modes.split(",")
    for precision in args.precision.split(","):
        for streamed in (False, True):
            for resolution in (int(side) for side in args.resolution.split(",")):
                for mode in modes:
                    if (mode == "streamed") == streamed and (mode != COMPILED or precision == "bf16"):
                        yield Combination(precision, resolution, mode)


def train(args: argparse.Namespace) -> None:
    """Seconds, share of peak, memory beside the estimate: every precision, resolution and way, beside the authors'."""
    import torch

    from training.models.source import PACKAGES

    bench, deadline = Bench(args), time.monotonic() + 60 * args.minutes
    bench.peak = bench.peak_flops()
    say(f"{bench.where['gpu'] or bench.device}: {bench.peak / 1e12:.2f} TFLOP/s in bf16")
    left: list[str] = []
    held: tuple[str, bool] | None = None
    transformer = None

    def ready(precision: str, ring: int):
        nonlocal held, transformer
        if held != (precision, bool(ring)):
            transformer = None
            held = None
            gc.collect()
            transformer, held = bench.transformer(precision, ring), (precision, bool(ring))
        return transformer

    def attempt(slot: dict[str, Any], name: str, work: Callable[[], dict[str, Any]]) -> None:
        if bench.done(slot):
            return
        if time.monotonic() > deadline:
            left.append(name)
            return
        began = time.monotonic()
        try:
            row = work()
        except torch.OutOfMemoryError:
            row = {"out_of_memory": True}
        bench.keep(slot, row)
        shown = "out of memory" if "out_of_memory" in row else f"{statistics.median(row['pair_seconds']):.3f} s a pair"
        say(f"{name}: {shown} ({time.monotonic() - began:.0f} s to measure)")

    asked = list(combinations(args))
    for number, one in enumerate(asked):
        if (package := PACKAGES.get(one.precision)) and not importlib.util.find_spec(package):
            left.append(f"{one} (needs the package {package})")
            continue
        ring = MODES[one.mode].get("stream_blocks", 0)
        attempt(
            bench.slot("combination", **dataclasses.asdict(one)),
            str(one),
            lambda one=one, ring=ring: bench.measure(one, ready(one.precision, ring)),
        )
        following = asked[number + 1] if number + 1 < len(asked) else None
        if one.precision == "bf16" and not ring and (following is None or following.mode == "streamed"):
            for side in (int(side) for side in args.resolution.split(",")):
                attempt(
                    bench.slot("authors", resolution=side),
                    f"the authors' schedule {side}²",
                    lambda side=side: bench.measure_authors(side, ready("bf16", 0)),
                )
    for name in left:
        say(f"{name}: not measured" + ("" if "needs" in name else ", the time is over: run the same command again"))
    conclude(bench.rows, "train")
