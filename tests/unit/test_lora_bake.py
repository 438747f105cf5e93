"""Baking a LoRA into checkpoint files: against dense float64, in every layout, and with nothing written on errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.loras import HIDDEN, NATIVE, dense, in_native_layout, native_lora, random_lora
from training.errors import ConfigError, ErasureError, LoraError
from training.lora import bake as baking
from training.lora.bake import KEY_BAKED, bake
from training.lora.format import open_lora, write_lora
from training.models.weights import read_header

LORA = native_lora()
STRENGTHS = [1.0, -0.5]


@pytest.fixture
def loras(tmp_path: Path) -> list[Path]:
    """Two LoRAs of all kinds of layers, one of them in kohya's dialect."""
    from tests.support.loras import kohya

    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(kohya(LORA), paths[0])
    save_file(kohya(native_lora(1, without=("final_layer.linear",))), paths[1])
    return paths


def change(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Native module → Σ strength ΔW."""
    total: dict[str, torch.Tensor] = {}
    for path, strength in zip(paths, STRENGTHS, strict=True):
        for name, value in in_native_layout(open_lora(path).weights).items():
            total[name] = total.get(name, 0) + strength * value
    return total


def checkpoint(prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{prefix}{name}.weight": torch.randn(outputs * HIDDEN, inputs * HIDDEN, generator=generator).to(dtype)
        for name, (inputs, outputs, _) in NATIVE.items()
    }
    tensors |= {f"{prefix}{name}.bias": torch.randn(HIDDEN, generator=generator).to(dtype) for name in NATIVE}
    tensors[f"{prefix}double_blocks.0.img_attn.qkv.weight"] = torch.randn(3 * HIDDEN, HIDDEN, generator=generator).to(
        dtype
    )
    tensors["first_stage_model.decoder.conv_in.weight"] = torch.randn(2, 3, 1, 1, generator=generator)
    return tensors


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("dtype", "exact"),
    [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 2**-8), (torch.float8_e4m3fn, 2**-4)],
)
def test_native_file(
    prefix: str, dtype: torch.dtype, exact: float, loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baking, "ROWS", 40 * HIDDEN)  # weights are changed in several pieces
    monkeypatch.setattr(baking, "BLOCK", 1000)
    before = checkpoint(prefix, dtype)
    save_file(before, tmp_path / "flux.safetensors", metadata={"kept": "yes"})
    seen: list[tuple[int, int]] = []
    result = bake(
        tmp_path / "flux.safetensors",
        loras,
        tmp_path / "baked.safetensors",
        strengths=STRENGTHS,
        progress=lambda done, total: seen.append((done, total)),
    )
    after, wanted = load_file(tmp_path / "baked.safetensors"), change(loras)
    assert after.keys() == before.keys() and result["changed"] == len(NATIVE)
    for name, tensor in before.items():
        module = name.removeprefix(prefix).removesuffix(".weight")
        assert after[name].dtype == tensor.dtype
        if module not in wanted:
            assert torch.equal(after[name].float(), tensor.float()), name
            continue
        expected = tensor.double() + wanted[module]
        assert float((after[name].double() - expected).norm() / expected.norm()) < exact, name
    with safe_open(tmp_path / "baked.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["kept"] == "yes"
    assert [(each["file"], each["strength"]) for each in json.loads(metadata[KEY_BAKED])] == [
        ("a.safetensors", 1.0),
        ("b.safetensors", -0.5),
    ]
    assert seen[-1][0] <= seen[-1][1] and result["bytes"] == (tmp_path / "flux.safetensors").stat().st_size


def test_sharded_folder_in_diffusers_layout(tmp_path: Path) -> None:
    lora = random_lora(0, alpha=2.0, single=("attn.to_q",))
    write_lora(tmp_path / "lora.safetensors", lora, {})
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    names = [f"{name}.weight" for name in lora]
    shards = {"one.safetensors": names[:3], "two.safetensors": [*names[3:], "x_embedder.weight"]}
    generator = torch.Generator().manual_seed(0)
    before = {name: torch.randn(HIDDEN, HIDDEN, generator=generator) for part in shards.values() for name in part}
    for file, part in shards.items():
        save_file({name: before[name] for name in part}, folder / file, metadata={"format": "pt"})
    save_file({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.fp16.safetensors")
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model" / "vae").mkdir()
    (tmp_path / "model" / "vae" / "model.safetensors").write_bytes(b"as it is")
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be written into
    result = bake(tmp_path / "model", [tmp_path / "lora.safetensors"], out)
    after = {k: v for file in shards for k, v in load_file(out / "transformer" / file).items()}
    assert result["changed"] == len(lora) and after.keys() == before.keys()
    for name, tensor in before.items():
        expected = tensor.double() + dense(lora).get(name.removesuffix(".weight"), 0)
        assert float((after[name].double() - expected).norm() / expected.norm()) < 1e-6
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/one.safetensors",
        "transformer/two.safetensors",
        "vae/model.safetensors",
    ]
    assert (out / "vae" / "model.safetensors").read_bytes() == b"as it is"
    # the transformer's folder alone
    bake(folder, [tmp_path / "lora.safetensors"], tmp_path / "alone")
    assert (tmp_path / "alone" / "one.safetensors").read_bytes() == (
        out / "transformer" / "one.safetensors"
    ).read_bytes()
    with pytest.raises(LoraError, match="exists already"):
        bake(folder, [tmp_path / "lora.safetensors"], out)
    with pytest.raises(LoraError, match="inside"):
        bake(tmp_path / "model", [tmp_path / "lora.safetensors"], tmp_path / "model" / "baked")


def test_refusals_leave_nothing_behind(loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux, out = tmp_path / "flux.safetensors", tmp_path / "baked.safetensors"
    tensors = checkpoint("", torch.float32)
    save_file(tensors, flux)

    def refused(message: str, **kwargs) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(ErasureError, match=message) as error:
            bake(**{"source": flux, "loras": loras, "out": out, **kwargs})
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    refused("is the checkpoint itself", out=flux, overwrite=True)
    refused("exists already", out=loras[0])
    refused("must end in", out=tmp_path / "baked.ckpt")
    refused("give one strength for each", strengths=[1.0])
    refused("give one strength for each", loras=[])
    refused("no finite number", strengths=[1.0, float("nan")])
    refused("is missing", source=tmp_path / "gone.safetensors")
    write_lora(tmp_path / "deep.safetensors", random_lora(0, blocks=5), {})
    refused(
        "was made for another Flux: flux.safetensors has no transformer_blocks.0.attn.add_k_proj",
        loras=[tmp_path / "deep.safetensors"],
    )
    write_lora(
        tmp_path / "wide.safetensors",
        {"transformer_blocks.0.attn.to_out.0": (torch.ones(1, 64), torch.ones(64, 1), 1.0)},
        {},
    )
    refused("was made for another Flux", loras=[tmp_path / "wide.safetensors"])
    save_file(tensors | {"scaled_fp8": torch.zeros(1)}, tmp_path / "scaled.safetensors")
    refused("is scaled fp8", source=tmp_path / "scaled.safetensors")
    tensors["double_blocks.1.img_attn.qkv.weight"] = torch.zeros(3 * HIDDEN, HIDDEN, dtype=torch.uint8)
    save_file(tensors, tmp_path / "quantised.safetensors")
    refused("is quantised", source=tmp_path / "quantised.safetensors")

    def full(_path) -> tuple:
        return type("Usage", (), {"free": 10})()

    with monkeypatch.context() as patch:
        patch.setattr(baking.shutil, "disk_usage", full)
        refused("free some space")
    with monkeypatch.context() as patch:
        patch.setattr(baking.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "x")))
        refused("the disk is full")
    with pytest.raises(ConfigError):
        bake(flux, loras, tmp_path / "con.safetensors")
    assert read_header(flux)
