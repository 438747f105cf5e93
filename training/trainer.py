"""The loop: encode, fill the bank, train level by level, checkpoint, sample, write the LoRA; resumes by itself.

Knows methods only by their protocol. Everything random comes from one seeded generator that checkpoints hold, so that a
run that was killed and resumed ends bit-identical to one that was not (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import __version__
from .bank import FILE, digest, read_tensors, write_tensors
from .checkpoint import (
    Checkpoint,
    bank_request_digest,
    latest_checkpoint,
    load_optimizer_state,
    optimizer_state,
    request_digest,
    require_same,
    write_checkpoint,
)
from .concepts import Concept, vocabulary_of
from .config import TARGETS, ErasureConfig, ErasureRequest, target_blocks
from .errors import CheckpointError, ConfigError, ErasureError
from .files import replacing
from .fitting import settle
from .flow import Flow, Progress
from .lora.adapter import adapter_weights, add_adapter, set_adapter_weights
from .lora.format import make_metadata, write_lora
from .methods import Method, MethodFactory, Prompts, make_method
from .models.checkpointing import checkpoint_blocks
from .models.compiling import compile_blocks
from .models.device import pick_device, release_unused, use_autocast
from .models.loading import load_text_encoders, load_tokenizer, load_transformer, load_vae
from .models.sampling import decode, initial_noise, sample, sigmas, to_pil
from .models.source import FluxSource
from .models.text import TextEmbeds
from .models.variants import FluxVariant, training_side, variant_of
from .parallel import ALONE, Group, placed

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

Report = Callable[[dict[str, Any]], None]
CLIP_NORM = 1.0  # gradient norm of a level's update; a guard, rarely reached
PROBE_EVERY = 10  # steps between two looks at what is left of the concept, where early stopping is on
LESS = 0.98  # of the least so far: from there on it counts as having become less


class Stopped(Exception):
    """The training was asked to stop; its last checkpoint holds all steps done."""


class TrainingDiverged(ErasureError):
    """A loss is no longer a number."""


def run(
    request: ErasureRequest,
    folder: Path,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
    factory: MethodFactory | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Trains what `request` asks for and returns {"lora", "name", "steps", "seconds", "losses", "concept"}.

    `folder` gets bank.safetensors, checkpoints/ and samples/; the LoRA goes to output_folder/name.safetensors, whole or
    not at all. What the request leaves open of precision and memory is decided here: see `fitting`. Where `folder` has
    checkpoints of the same request, training goes on from the newest. `report` gets the events phase, step, sample,
    checkpoint, notice and completed; `should_stop` is asked before every step. `factory` makes another method than the
    one that the settings name; its folder must be no other method's. group: the processes that train together, see
    `parallel`; all call this, the leader alone reports and writes, and its should_stop is everyone's.
    Raises Stopped after saving a checkpoint, and ErasureError's subclasses.
    """
    request.validate()
    device = (request := placed(request, group)).device
    settled, decision = group.agreed(settle(request, Path(folder)) if group.leads else None)
    request = replace(settled, device=device)  # each process has its own
    report = report if group.leads else lambda event: None
    if decision:
        report({"type": "notice", "message": decision})
    return _Training(request, Path(folder), report, should_stop, factory or make_method, group).run()


def adapted_flow(
    source: FluxSource, config: ErasureConfig, device: torch.device
) -> tuple[Flow, list[torch.nn.Parameter]]:
    """The source's transformer with a fresh adapter, and the adapter's parameters. config: see `for_kind`."""
    return put_adapter(
        load_transformer(source, device, ring=config.stream_blocks), source, variant_of(source), config, device
    )


def put_adapter(
    transformer: FluxTransformer2DModel,
    source: FluxSource,
    variant: FluxVariant,
    config: ErasureConfig,
    device: torch.device,
) -> tuple[Flow, list[torch.nn.Parameter]]:
    """`adapted_flow` of a transformer that is loaded already, as `source` and `config` say."""
    if config.checkpoints_blocks(source.precision) and not config.stream_blocks:  # streamed blocks are checkpointed
        checkpoint_blocks(transformer)
    side = training_side(config.resolution, variant)
    flow = Flow(
        transformer,
        sigmas(variant, config.sampling_steps or variant.default_steps, side * side),
        (side, side),
        variant.default_guidance if config.guidance < 0 else config.guidance,
        use_autocast(source, device),
    )
    blocks = target_blocks(config.targets, config.blocks, flow.double_blocks, flow.single_blocks)
    targets = TARGETS[config.targets]
    parameters = add_adapter(transformer, targets, config.rank, config.alpha, config.seed, blocks)
    if config.compile:
        compile_blocks(transformer)
    return flow, parameters


def make_optimizers(
    method: Method, parameters: list[torch.nn.Parameter], config: ErasureConfig
) -> dict[str, torch.optim.Optimizer]:
    """AdamW over the adapter for each of the method's levels, by the level's name.

    On CUDA as one fused kernel: a LoRA is many small tensors, and starting kernels one by one for each takes longer
    than what they do.
    """
    options = {"fused": True} if parameters[0].is_cuda else {"foreach": False}
    return {
        level.name: torch.optim.AdamW(parameters, lr=level.learning_rate, weight_decay=config.weight_decay, **options)
        for level in method.levels()
    }


def update(
    method: Method,
    flow: Flow,
    optimizers: dict[str, torch.optim.Optimizer],
    generator: torch.Generator,
    parameters: list[torch.nn.Parameter],
    step: int,
) -> dict[str, float]:
    """Step `step` (from 0): one update of the adapter per level. → the loss terms, unweighted, by name.

    Raises TrainingDiverged, and ConfigError where a loss does not depend on the adapter.
    """
    losses: dict[str, float] = {}
    for level in method.levels():
        losses |= update_level(method, level.name, flow, optimizers[level.name], generator, parameters, step)
    return losses


def update_level(
    method: Method,
    level: str,
    flow: Flow,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    parameters: list[torch.nn.Parameter],
    step: int,
) -> dict[str, float]:
    """One level's part of `update`."""
    terms = method.losses(level, flow, generator)
    optimizer.zero_grad(set_to_none=True)
    total = sum(term.weight * term.value for term in terms)
    if not total.requires_grad:
        raise ConfigError(f"No {level} loss depends on the LoRA: choose other targets, blocks or loss weights.")
    total.backward()
    # read now: before the backward pass was queued, an accelerator would have had nothing to do meanwhile
    losses = flow.group.average(parameters, {term.name: float(term.value.detach()) for term in terms})
    for name, value in losses.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f'The loss term "{name}" is no longer a number after step {step}: lower the learning rates; the last '
                "good checkpoint was kept."
            )
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=parameters[0].is_cuda)
    optimizer.step()
    return losses


class _Training:
    def __init__(
        self,
        request: ErasureRequest,
        folder: Path,
        report: Report,
        should_stop: Callable[[], bool],
        factory: MethodFactory,
        group: Group,
    ) -> None:
        self.factory, self.group = factory, group
        self.request, self.folder = request, folder
        self.config = request.config.for_kind(request.concept.kind)
        self.report, self.should_stop = report, should_stop
        self.device = pick_device(request.device)
        self.base = request.source.fingerprint()
        self.digest, self.bank_request = request_digest(request), bank_request_digest(request)
        self.started = time.monotonic()
        self.step = 0
        self.losses: dict[str, float] = {}  # of the last step
        self.least = (1.0, 0)  # what was left of the concept when it last became less, and at which step
        self.seconds_before = 0.0  # spent in earlier runs of this folder

    def run(self) -> dict[str, Any]:
        checkpoint = latest_checkpoint(self.folder / "checkpoints", self._notice)
        if checkpoint is not None:
            require_same(checkpoint, self.base, self.digest)
            self.seconds_before = float(checkpoint.facts["seconds"])
            if self.device.type == "cpu":  # sums are split over threads: another number of them rounds differently
                torch.set_num_threads(int(checkpoint.facts["threads"]))
        self.bank_file = self.folder / FILE
        with self.group.leader_first():  # who comes later finds the bank
            concept, method, prompts, embeds, bank = self._encode(checkpoint)
            release_unused(self.device)
            flow, parameters = adapted_flow(self.request.source, self.config, self.device)
            flow.group = self.group
            if bank is None:
                bank = self._collect(method, flow, concept, prompts, embeds)
        bank_digest = digest(bank)
        if checkpoint is not None and checkpoint.facts["bank"] != bank_digest:
            raise CheckpointError("The bank is not the one this training began with: start again in a new folder.")
        self.refreshed = checkpoint.bank if checkpoint is not None else {}
        method.use({**bank, **self.refreshed}, embeds.to(self.device))
        optimizers = make_optimizers(method, parameters, self.config)
        generator = torch.Generator("cpu").manual_seed(self.config.seed)
        if checkpoint is not None:
            self.step, self.losses = checkpoint.step, dict(checkpoint.facts["losses"])
            self.least = tuple(checkpoint.facts["least"])
            set_adapter_weights(flow.transformer, checkpoint.lora)
            for name, optimizer in optimizers.items():
                load_optimizer_state(optimizer, checkpoint.optimizers[name])
            generator.set_state(checkpoint.generator)
            self._phase("train", f"going on after step {self.step}")
        self.sampler = _Sampler(self, flow, concept, prompts, embeds)

        def save() -> None:
            if not self.group.leads:
                return
            facts = {
                "base": self.base,
                "request": self.digest,
                "bank": bank_digest,
                "losses": self.losses,
                "least": self.least,
                "seconds": round(self._seconds(), 1),
                "threads": torch.get_num_threads(),
            }
            states = {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()}
            lora, random_state = adapter_weights(flow.transformer), generator.get_state()
            state = Checkpoint(self.step, lora, states, random_state, facts, self.refreshed)
            write_checkpoint(self.folder / "checkpoints", state, self.config.keep_checkpoints)
            self.report({"type": "checkpoint", "step": self.step})

        self._train(method, flow, optimizers, generator, parameters, save)
        return self._finish(concept, flow)

    # --- before the loop -------------------------------------------------------------------------------------------

    def _encode(
        self, checkpoint: Checkpoint | None
    ) -> tuple[Concept, Method, Prompts, TextEmbeds, dict[str, Tensor] | None]:
        """The concept fitted to the model's words, its method planned, and prompts encoded or read with the bank."""
        self._phase("encode", "encoding prompts")
        source = self.request.source
        tokenizer = load_tokenizer(source)
        concept = self.request.concept.fitted(vocabulary_of(tokenizer), self.config.seed)
        method, prompts = self.factory(concept, self.config), Prompts()
        for text in _sample_prompts(concept):
            prompts.row(text)
        method.plan(prompts, tokenizer, variant_of(source).sequence_length)
        stored = self._stored_bank(checkpoint, prompts)
        if stored is not None:
            return concept, method, prompts, TextEmbeds(stored.pop("embeds.t5"), stored.pop("embeds.pooled")), stored
        stream = self.config.streams_encoder(source.precision)
        embeds = load_text_encoders(source, self.device, stream=stream).encode(prompts.texts).to("cpu")
        return concept, method, prompts, embeds, None

    def _stored_bank(self, checkpoint: Checkpoint | None, prompts: Prompts) -> dict[str, Tensor] | None:
        """The bank of an earlier run of the same request on the same base with the same prompts; None where there is
        none. Raises CheckpointError where a checkpoint's prompts were others."""
        if not self.bank_file.is_file():
            return None
        try:
            tensors, metadata = read_tensors(self.bank_file)
        except CheckpointError:
            self._notice("The bank of an earlier run cannot be read: it is made again.")
            return None
        if (metadata.get("base"), metadata.get("request")) != (self.base, self.bank_request):
            return None
        if metadata.get("prompts") != json.dumps(prompts.texts):
            if checkpoint is None:
                return None
            raise CheckpointError(
                "This training began with other prompts than this version of the pack makes (or WordNet's data make "
                "here): train in a new folder."
            )
        points = {name: tensor for name, tensor in tensors.items() if not name.startswith("embeds.")}
        if checkpoint is not None and checkpoint.facts["bank"] != digest(points):
            self._notice("The bank of an earlier run is damaged: it is made again.")
            return None
        return tensors

    def _collect(
        self, method: Method, flow: Flow, concept: Concept, prompts: Prompts, embeds: TextEmbeds
    ) -> dict[str, Tensor]:
        """Fills the bank and writes it, so that a resumed run need not."""
        self._phase("bank", f"sampling {len(prompts.texts)} prompts from the base model")
        bank = method.collect(flow, embeds.to(self.device), self._bank_progress())
        stored = {**bank, "embeds.t5": embeds.t5, "embeds.pooled": embeds.pooled}
        metadata = {
            "base": self.base,
            "request": self.bank_request,
            "concept": json.dumps(concept.to_dict()),
            "prompts": json.dumps(prompts.texts),
        }
        write_tensors(self.bank_file, stored, metadata, "training's bank")
        return bank

    def _bank_progress(self) -> Progress:
        """Reports how far the bank is, now and then; raises Stopped when asked to stop."""
        shown = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal shown
            if self.group.size == 1 and self.should_stop():  # among several, between steps only
                raise Stopped
            if done == total or time.monotonic() - shown > 2:
                shown = time.monotonic()
                self._phase("bank", f"bank {done} / {total}")

        return progress

    # --- the loop --------------------------------------------------------------------------------------------------

    def _train(
        self,
        method: Method,
        flow: Flow,
        optimizers: dict[str, torch.optim.Optimizer],
        generator: torch.Generator,
        parameters: list[torch.nn.Parameter],
        save: Callable[[], None],
    ) -> None:
        if self.step == 0:
            self.sampler.render(0)
        self._phase("train", f"training {self.config.steps} steps")
        average = 0.0
        while self.step < self.config.steps and not self._settled():
            began = time.monotonic()
            try:
                if self.group.agreed(self.should_stop()):
                    raise Stopped
                self.refreshed |= method.refresh(flow, self.step, self._bank_progress())
            except Stopped:
                save()
                raise
            losses = update(method, flow, optimizers, generator, parameters, self.step)
            self.step, self.losses = self.step + 1, losses
            took = time.monotonic() - began
            average = took if average == 0 else 0.9 * average + 0.1 * took
            told = {"step": self.step, "total": self.config.steps, "losses": losses}
            if self.config.early_stopping and self.step % PROBE_EVERY == 0:
                told["residue"] = round(self._probe(method, flow), 4)
            self.report({"type": "step", **told, "seconds_per_step": round(average, 4)})
            if self._settled():
                self._notice(f"Nothing more was erased since step {self.least[1]}: the training ends here.")
            last = self.step == self.config.steps or self._settled()
            if last or self.step % self.config.checkpoint_every == 0:
                save()
            if last or (self.config.sample_every and self.step % self.config.sample_every == 0):
                self.sampler.render(self.step)

    def _probe(self, method: Method, flow: Flow) -> float:
        """What is left of the concept."""
        residue = method.residue(flow)
        if residue < LESS * self.least[0]:
            self.least = (residue, self.step)
        return residue

    def _settled(self) -> bool:
        """Whether it has not become less for as long as the settings allow."""
        looked = self.step % PROBE_EVERY == 0
        return looked and 0 < self.config.early_stopping <= self.step - self.least[1]

    def _finish(self, concept: Concept, flow: Flow) -> dict[str, Any]:
        self._phase("save", "writing the LoRA")
        dtype = next(flow.transformer.parameters()).dtype
        metadata = make_metadata(
            concept=concept.to_dict(),
            method=self.config.method,
            base=self.base,
            config=self.config.to_dict(),
            metrics={"steps": self.step, "losses": self.losses},
            version=__version__,
        )
        path = Path(self.request.output_folder) / f"{self.request.name}.safetensors"
        if self.group.leads:
            write_lora(path, adapter_weights(flow.transformer), metadata, dtype)
        seconds = round(self._seconds(), 1)
        self.report({"type": "completed", "lora": str(path), "seconds": seconds})
        return {
            "lora": str(path),
            "name": self.request.name,
            "steps": self.step,
            "seconds": seconds,
            "losses": self.losses,
            "concept": concept.to_dict(),
        }

    def _phase(self, phase: str, message: str) -> None:
        self.report({"type": "phase", "phase": phase, "message": message})

    def _notice(self, message: str) -> None:
        """Something that went otherwise than it should have, and what is done about it."""
        self.report({"type": "notice", "message": message})

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _sample_prompts(concept: Concept) -> list[str]:
    """What the samples show: the concept, its first synonym, an irrelevant word of the nearest kind."""
    words = [concept.phrase, *concept.synonyms[:1], *concept.irrelevant[-1:]]
    return [concept.prompt(word) for word in words]


class _Sampler:
    """Renders the same prompts and seeds again and again into folder/samples, step 0 before any training."""

    def __init__(self, training: _Training, flow: Flow, concept: Concept, prompts: Prompts, embeds: TextEmbeds) -> None:
        self.training, self.flow = training, flow
        self.texts = _sample_prompts(concept)
        self.embeds = embeds[[prompts.row(text) for text in self.texts]]
        self.folder = training.folder / "samples"

    def render(self, step: int) -> None:
        """Writes samples/step-NNNNNN-p<prompt>-s<seed>.png for every prompt and seed, and reports each."""
        training, flow, config = self.training, self.flow, self.training.config
        if not (config.sample_every and training.group.leads):
            return
        training._phase("samples", f"rendering samples at step {step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        vae = load_vae(training.request.source, training.device)
        for number, text in enumerate(self.texts):
            seeds = list(range(config.sample_count))
            noise = initial_noise(seeds, flow.grid, flow.channels)
            with flow.computing():
                embeds = self.embeds[number].expand(len(seeds))
                latents = sample(flow.transformer, embeds, noise, flow.levels, flow.guidance, flow.grid)
            for seed, image in zip(seeds, to_pil(decode(vae, latents, flow.grid)), strict=True):
                name = f"step-{step:06d}-p{number}-s{seed}.png"
                with replacing(self.folder / name) as temporary:
                    image.save(temporary, format="PNG")
                training.report(
                    {
                        "type": "sample",
                        "step": step,
                        "file": f"samples/{name}",
                        "prompt": text,
                        "seed": seed,
                    }
                )
        del vae
        release_unused(training.device)
