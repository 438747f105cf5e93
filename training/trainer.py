"""The training: prepare (encode, load, bank), then steps (losses, update, checkpoint, sample), then write the LoRA.

Knows methods only by their protocol. Everything random comes from one seeded generator that checkpoints hold, so that a
run that was killed and resumed ends bit-identical to one that was not (on the CPU, with the same number of threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .bank import FILE, BankKey, digest, read_bank, write_bank
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
from .concepts import vocabulary_of
from .errors import CheckpointError
from .events import Report, notice, phase
from .flow import Progress, adapted_flow
from .lora.adapter import adapter_weights, set_adapter_weights
from .lora.format import make_metadata, write_lora
from .methods import MethodFactory, Prompts, make_method
from .models.device import pick_device, release_unused
from .models.loading import load_text_encoders, load_tokenizer
from .parallel import ALONE, Group
from .request import ErasureRequest
from .resolve import resolve
from .samples import SampleWriter, sample_prompts
from .updates import make_optimizers, update

PROBE_EVERY = 10  # steps between two measurements of the residue, where early stopping is on
MIN_IMPROVEMENT = 0.98  # the residue must fall below this share of its best so far to count as an improvement


class Stopped(Exception):
    """The training was asked to stop; its last checkpoint holds all steps done."""


def run(
    request: ErasureRequest,
    folder: Path,
    report: Report,
    should_stop: Callable[[], bool] = lambda: False,
    factory: MethodFactory | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Trains what `request` asks for; where `folder` has checkpoints of the same request, from the newest one on.

    Args:
        request: what it leaves open is decided here, see `resolve`.
        folder: gets bank.safetensors, checkpoints/ and samples/. The LoRA goes to output_folder/name.safetensors, whole
            or not at all.
        report: gets the events phase, step, sample, checkpoint, notice and completed.
        should_stop: asked before every step.
        factory: makes another method than the one that the settings name; its folder must be no other method's.
        group: the processes that train together, see `parallel`. All call this; the leader alone reports and writes,
            and its should_stop is everyone's.

    Returns:
        {"lora", "name", "steps", "seconds", "losses", "concept"}.

    Raises:
        Stopped: after saving a checkpoint.
        ErasureError: its subclasses.
    """
    folder, report = Path(folder), report if group.leads else lambda event: None
    resolved = resolve(request, folder, group)
    request, config, variant = resolved.request, resolved.config, resolved.variant
    if resolved.decision:
        report(notice(resolved.decision))

    # prepare: what an earlier run has left
    started, source = time.monotonic(), request.source
    device, base, course = pick_device(request.device), source.fingerprint(), request_digest(request)
    checkpoint = latest_checkpoint(folder / "checkpoints", lambda sentence: report(notice(sentence)))
    if checkpoint is not None:
        require_same(checkpoint, base, course)
        started -= float(checkpoint.facts["seconds"])
        if device.type == "cpu":  # sums are split over threads: another number of them rounds differently
            torch.set_num_threads(int(checkpoint.facts["threads"]))

    # prepare: prompts, the transformer with its adapter, the bank
    with group.leader_first():  # who comes later finds the bank
        report(phase("encode", "encoding prompts"))
        tokenizer = load_tokenizer(source)
        concept = request.concept.fitted(vocabulary_of(tokenizer), config.seed)
        method, prompts = (factory or make_method)(concept, config), Prompts()
        sample_rows = [prompts.row(text) for text in sample_prompts(concept)]
        method.plan(prompts, tokenizer, variant.sequence_length)
        key = BankKey(base, bank_request_digest(request), prompts.texts)
        expected = None if checkpoint is None else checkpoint.facts["bank"]
        stored = read_bank(folder / FILE, key, expected, lambda sentence: report(notice(sentence)))
        if stored is None:
            encoders = load_text_encoders(source, device, stream=config.streams_encoder(source.precision))
            bank, embeds = None, encoders.encode(prompts.texts).to("cpu")
            del encoders
        else:
            bank, embeds = stored
        release_unused(device)
        flow, parameters = adapted_flow(source, config, device)
        flow.group = group
        if bank is None:
            report(phase("bank", f"sampling {len(prompts.texts)} prompts from the base model"))
            bank = method.collect(flow, embeds.to(device), _bank_progress(report, should_stop, group))
            write_bank(folder / FILE, key, concept, bank, embeds)
    bank_digest = digest(bank)
    if expected is not None and expected != bank_digest:
        raise CheckpointError("The bank is not the one this training began with: start again in a new folder.")

    # prepare: where the steps start
    refreshed: dict[str, Tensor] = {} if checkpoint is None else checkpoint.bank
    method.use({**bank, **refreshed}, embeds.to(device))
    optimizers = make_optimizers(method, parameters, config)
    generator = torch.Generator("cpu").manual_seed(config.seed)
    step, losses, stopping = 0, {}, EarlyStopping(config.early_stopping)
    if checkpoint is not None:
        step, losses = checkpoint.step, dict(checkpoint.facts["losses"])
        stopping.best, stopping.best_step = checkpoint.facts["least"]
        set_adapter_weights(flow.transformer, checkpoint.lora)
        for name, optimizer in optimizers.items():
            load_optimizer_state(optimizer, checkpoint.optimizers[name])
        generator.set_state(checkpoint.generator)
        report(phase("train", f"going on after step {step}"))
    sample_count = config.sample_count if config.sample_every and group.leads else 0
    sample_texts = [prompts.texts[row] for row in sample_rows]
    samples = SampleWriter(folder, source, flow, sample_texts, embeds[sample_rows], sample_count, report)

    def save() -> None:
        if not group.leads:
            return
        facts = {
            "base": base,
            "request": course,
            "bank": bank_digest,
            "losses": losses,
            "least": [stopping.best, stopping.best_step],
            "seconds": round(time.monotonic() - started, 1),
            "threads": torch.get_num_threads(),
        }
        states = {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()}
        state = Checkpoint(step, adapter_weights(flow.transformer), states, generator.get_state(), facts, refreshed)
        write_checkpoint(folder / "checkpoints", state, config.keep_checkpoints)
        report({"type": "checkpoint", "step": step})

    # steps
    if step == 0:
        samples.write(0)
    report(phase("train", f"training {config.steps} steps"))
    pace = 0.0  # seconds per step, averaged over the latest ones
    while step < config.steps and not stopping.is_due(step):
        began = time.monotonic()
        try:
            if group.agreed(should_stop()):
                raise Stopped
            refreshed |= method.refresh(flow, step, _bank_progress(report, should_stop, group))
        except Stopped:
            save()
            raise
        losses = update(method, flow, optimizers, generator, parameters, step)
        step += 1
        took = time.monotonic() - began
        pace = took if pace == 0 else 0.9 * pace + 0.1 * took
        residue = {}
        if config.early_stopping and step % PROBE_EVERY == 0:
            residue["residue"] = round(stopping.observe(method.residue(flow), step), 4)
        event = {"type": "step", "step": step, "total": config.steps, "losses": losses, **residue}
        report({**event, "seconds_per_step": round(pace, 4)})
        if stopping.is_due(step):
            report(notice(f"Nothing more was erased since step {stopping.best_step}: the training ends here."))
        last = step == config.steps or stopping.is_due(step)
        if last or step % config.checkpoint_every == 0:
            save()
        if last or (config.sample_every and step % config.sample_every == 0):
            samples.write(step)

    # write
    report(phase("save", "writing the LoRA"))
    metadata = make_metadata(
        concept=concept.to_dict(),
        method=config.method,
        base=base,
        config=config.to_dict(),
        metrics={"steps": step, "losses": losses},
        version=__version__,
    )
    path = Path(request.output_folder) / f"{request.name}.safetensors"
    if group.leads:
        write_lora(path, adapter_weights(flow.transformer), metadata, next(flow.transformer.parameters()).dtype)
    seconds = round(time.monotonic() - started, 1)
    report({"type": "completed", "lora": str(path), "seconds": seconds})
    return {
        "lora": str(path),
        "name": request.name,
        "steps": step,
        "seconds": seconds,
        "losses": losses,
        "concept": concept.to_dict(),
    }


@dataclass
class EarlyStopping:
    """Ends a training whose residue (what is left of the concept) has not improved for `patience` steps; 0: never.

    Attributes:
        best, best_step: the residue when it last improved, and the step of that; 1 as long as it never has.
    """

    patience: int
    best: float = 1.0
    best_step: int = 0

    def observe(self, residue: float, step: int) -> float:
        """Takes the residue after `step` steps and returns it."""
        if residue < MIN_IMPROVEMENT * self.best:
            self.best, self.best_step = residue, step
        return residue

    def is_due(self, step: int) -> bool:
        """Whether the training ends after `step` steps; True only where the residue is measured."""
        return step % PROBE_EVERY == 0 and 0 < self.patience <= step - self.best_step


def _bank_progress(report: Report, should_stop: Callable[[], bool], group: Group) -> Progress:
    """Reports now and then how far the bank is; raises Stopped when asked to stop."""
    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        if group.size == 1 and should_stop():  # among several, between steps only
            raise Stopped
        if done == total or time.monotonic() - reported > 2:
            reported = time.monotonic()
            report(phase("bank", f"bank {done} / {total}"))

    return progress
