"""The memory estimate against what PyTorch keeps and what processes really take, and running out of memory for real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.engine.test_small_memory import stored_bytes
from training.concepts import TEMPLATES, Concept
from training.errors import JobError
from training.jobs import Job, JobRepository, Scheduler
from training.lora.adapter import add_adapter
from training.memory import GB, cheaper, estimate_memory, shortage
from training.memory.estimate import SAVED_DOUBLE, adapter_parameters, model_size, saved_units, transformer_weights
from training.models.checkpointing import checkpoint_blocks
from training.models.loading import load_transformer
from training.models.source import demo_source
from training.models.streaming import stream_blocks
from training.models.text import TextEmbeds
from training.models.velocity import velocity
from training.request import ErasureRequest
from training.settings import TARGETS, ErasureConfig, target_blocks

ROOT = Path(__file__).parents[2]
STARVED_WORKER = Path(__file__).with_name("starved_worker.py")
CONCEPT = Concept("car", irrelevant=("house", "tree", "apple"), preserve=("a photo of a house", "a photo of a tree"))


def request(loras: Path, precision: str = "fp32", **settings: int) -> ErasureRequest:
    short = {"steps": 5, "rank": 4, "erase_prompts": 2, "sampling_steps": 2, "sample_every": 0, "checkpoint_every": 1}
    config = ErasureConfig(**{**short, **settings})
    return ErasureRequest(demo_source(precision), CONCEPT, config, "erase-car", str(loras), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_the_backward_pass(dtype):
    double, single, heads, side, text, batch = 3, 2, 2, 8, 32, 2
    model = (
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=128,
            num_attention_heads=heads,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            guidance_embeds=True,
        )
        .to(dtype)
        .requires_grad_(False)
    )
    config = ErasureConfig(method="esd", batch_erase=batch, rank=4).for_kind("entity")
    blocks = target_blocks(config.targets, (), double, single)
    parameters = add_adapter(model, TARGETS[config.targets], config.rank, 4.0, 0, blocks)
    geometry = {**model.config, "num_attention_heads": heads}
    assert sum(p.numel() for p in parameters) == adapter_parameters(config, geometry)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    embeds = TextEmbeds(torch.randn(batch, text, 64), torch.randn(batch, 32))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        velocity(model, torch.randn(batch, side * side, 64), 0.7, embeds, 3.5, (side, side))
    unit = (side * side + text) * heads * 128 * dtype.itemsize
    measured = sum(storage.nbytes() for storage in found.values()) / unit
    assert 0.75 < measured / saved_units(config, geometry) < 1.1


@pytest.mark.parametrize("targets", list(TARGETS))
def test_adapter_parameters_are_counted_exactly(targets):
    model = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    config = ErasureConfig(targets=targets, rank=3)
    parameters = add_adapter(model, TARGETS[targets], 3, 3.0, 0, target_blocks(targets, (), 2, 3))
    assert sum(p.numel() for p in parameters) == adapter_parameters(config, dict(model.config))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_estimate_fits_what_a_training_takes(demo_folder, tmp_path):
    """Two trainings that differ in their batches: the difference is free of what Python and its libraries take."""
    peaks, estimates = [], []
    for batch in (2, 24):
        wanted = request(tmp_path / str(batch), steps=1, batch_erase=batch, batch_preserve=batch, checkpoint_every=100)
        code = (
            "import json, sys, torch; from pathlib import Path; from training import trainer;"
            "from training.request import ErasureRequest; torch.set_num_threads(1);"
            "request = ErasureRequest.from_dict(json.loads(sys.argv[1]));"
            "trainer.run(request, Path(sys.argv[2]), lambda event: None);"
            "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
        )
        command = [sys.executable, "-c", code, json.dumps(wanted.to_dict()), str(tmp_path / f"job-{batch}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
        estimates.append(estimate_memory(wanted).need)
    took, expected = peaks[1] - peaks[0], estimates[1] - estimates[0]
    assert 0.6 < took / expected < 1.4, (peaks, estimates)
    assert 0.7 < peaks[1] / estimates[1] < 1.3, (peaks, estimates)


def test_more_of_anything_needs_more(demo_folder, tmp_path):
    plain = estimate_memory(request(tmp_path))
    for settings in ({"batch_preserve": 64}, {"resolution": 256}, {"rank": 256}):
        assert estimate_memory(request(tmp_path, **settings)).phases["train"] > plain.phases["train"]
    pictures = estimate_memory(request(tmp_path, sample_every=1, sample_count=16)).phases["samples"]
    assert pictures > estimate_memory(request(tmp_path, sample_every=1, sample_count=1)).phases["samples"]
    assert estimate_memory(request(tmp_path, "bf16")).phases["encode"] < plain.phases["encode"]


def test_cheaper_settings_come_in_order_and_end(demo_folder, tmp_path):
    wanted, told, needs = request(tmp_path, batch_erase=4, batch_preserve=8), [], []
    while True:
        needs.append(estimate_memory(wanted).phases["train"])
        found = cheaper(wanted)
        if found is None:
            break
        wanted, what = found
        told.append(what)
    assert told[:4] == [
        "gradient checkpointing",
        "smaller batches (erase 4 → 2, preserve 8 → 4)",
        "smaller batches (erase 2 → 1, preserve 4 → 2)",
        "smaller batches (preserve 2 → 1)",
    ]
    assert told[4] == "a lower resolution (128 → 96 pixels)"
    assert told[-1] == "bf16 weights"
    assert needs == sorted(needs, reverse=True)
    assert cheaper(wanted, "samples") is None
    style = replace(wanted, concept=Concept("watercolor", kind="abstraction", template=TEMPLATES["abstraction"]))
    by_kind = replace(style, config=ErasureConfig(gradient_checkpointing="on"))
    assert cheaper(by_kind)[1] == "smaller batches (erase 4 → 2, preserve 4 → 2)"
    rendering = request(tmp_path, sample_every=2, sample_count=2)
    assert cheaper(rendering, "samples")[1] == "one sample image instead of 2 at a time"


def test_on_an_accelerator_the_weights_give_way_before_the_resolution(demo_folder, tmp_path):
    wanted, told = replace(request(tmp_path, "auto", batch_erase=1, batch_preserve=1), device="cuda"), []
    for _ in range(4):
        before = estimate_memory(wanted).phases["train"]
        wanted, what = cheaper(wanted)
        assert estimate_memory(wanted).phases["train"] < before
        wanted.config.validate()
        told.append(what)
    assert told == ["gradient checkpointing", "fp8 weights", "streamed blocks", "a lower resolution (128 → 96 pixels)"]


@pytest.mark.parametrize(
    ("precision", "ring"), [("bf16", 0), ("fp8", 0), ("int8", 0), ("nf4", 0), ("bf16", 2), ("fp8", 3), ("nf4", 2)]
)
def test_the_transformers_bytes_are_counted(demo_folder, precision: str, ring: int):
    """Against the tensors of a transformer that was really loaded."""
    source = demo_source(precision)
    model = load_transformer(source, "cpu")
    counted = transformer_weights(
        model_size(source), ErasureConfig(stream_blocks=ring), precision, 2, shared=False
    ).resident
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    taken = stored_bytes(model)
    if ring:
        slots = stream_blocks(model, torch.device("cpu"), ring).slots
        taken += sum(slot.nbytes for slot in slots) - sum(stored_bytes(block) for block in blocks)
    assert counted == pytest.approx(taken, rel=0.03)


def test_what_is_kept_of_checkpointed_blocks():
    double, single, heads, side, text, batch = 3, 2, 2, 8, 32, 2
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
    ).requires_grad_(False)
    config = ErasureConfig(method="esd", batch_erase=batch, batch_preserve=1, gradient_checkpointing="on")
    config = config.for_kind("entity")
    add_adapter(model, TARGETS[config.targets], 4, 4.0, 0, target_blocks(config.targets, (1, 2), double, single))
    config = replace(config, blocks=(1, 2))
    checkpoint_blocks(model)
    inputs: list[weakref.ref[torch.Tensor]] = []

    def remember(_module: object, args: tuple) -> None:
        inputs.extend(weakref.ref(tensor) for tensor in args[:2])

    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.register_forward_pre_hook(remember)
    embeds = TextEmbeds(torch.randn(batch, text, 64), torch.randn(batch, 32))
    out = velocity(model, torch.randn(batch, side * side, 64), 0.7, embeds, 3.5, (side, side))
    alive = [tensor for tensor in (ref() for ref in inputs) if tensor is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    measured = sum(storages.values()) / ((side * side + text) * heads * 128 * 4)
    geometry = {**model.config, "num_attention_heads": heads}
    assert out.requires_grad and 0.75 < measured / (saved_units(config, geometry) - SAVED_DOUBLE * batch) < 1.1
    assert saved_units(config, geometry) < saved_units(replace(config, gradient_checkpointing="off"), geometry) / 2


def test_a_shortage_says_how_much_is_missing_and_what_would_help(demo_folder, tmp_path):
    wanted = request(tmp_path, batch_erase=256, batch_preserve=256)
    need = estimate_memory(wanted).need
    assert shortage(wanted, need) == ""
    sentence = shortage(wanted, need - GB)
    assert sentence.startswith("Waiting: 1.0 GB of memory are missing (the training needs about")
    assert sentence.endswith("or train with gradient_checkpointing on.")
    assert "no setting makes it fit" in shortage(wanted, 1000)


def trained(store: JobRepository, job: Job, **options: object) -> Job:
    """The job when its worker has ended."""
    scheduler = Scheduler(store, **options)
    scheduler.start()
    try:
        while store.get(job.id).state.state in ("queued", "starting", "running"):
            time.sleep(0.05)
    finally:
        scheduler.close()
    return store.get(job.id)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the address space makes memory run out")
def test_running_out_of_memory_keeps_the_checkpoint_and_retries_with_less(idle_store, tmp_path):
    job = idle_store.submit(request(tmp_path / "loras", batch_erase=8, batch_preserve=32))
    failed = trained(idle_store, job, command=lambda folder: [sys.executable, str(STARVED_WORKER), str(folder)])
    log = failed.folder.log_file.read_text()
    assert failed.state.state == "failed", log
    assert "allocate memory" in log  # the allocator's own words
    less = "gradient checkpointing"
    assert failed.state.message == (
        f"Out of memory at step 2 (the checkpoint of step 2 is kept): retry with {less}, or close other programs and "
        "resume."
    )
    assert failed.to_dict()["cheaper"] == less
    again = idle_store.retry(job.id, cheaper=True)
    assert idle_store.retry(job.id, cheaper=True).id == again.id
    assert again.parent == job.id
    assert again.request["config"] == {**job.request["config"], "gradient_checkpointing": "on"}
    with pytest.raises(JobError, match="Another job already writes the LoRA"):
        idle_store.retry(job.id)
    done = trained(idle_store, again)
    assert done.state.state == "completed", done.folder.log_file.read_text()
    assert [e["step"] for e in done.folder.events() if e["type"] == "step"] == [3, 4, 5]  # it went on
    assert "bank" not in {e.get("phase") for e in done.folder.events()}  # with the bank that was there
    assert done.lora.is_file()
    assert idle_store.get(job.id).state.state == "failed"  # as it was


def test_the_peak_phase_is_what_is_made_cheaper(demo_folder, tmp_path):
    wanted = request(tmp_path, batch_erase=1, batch_preserve=1, sample_every=1, sample_count=16)
    assert estimate_memory(wanted).peak == "samples"
    assert shortage(wanted, estimate_memory(wanted).need - 1).endswith("train with sample_count 1.")
    assert replace(wanted, config=replace(wanted.config, sample_count=1)) == cheaper(wanted, "samples")[0]
