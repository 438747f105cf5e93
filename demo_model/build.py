"""python -m demo_model.build: rebuilds flux-emoji from public packages, in stages that can be resumed."""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from training.models.device import pick_device

from . import autoencoder, flux, judge, replicas, text
from .scenes import random_scene
from .sprites import load_sprites

PARTS = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
STAGES = ("sprites", "text encoders", "autoencoder", "latents", "flux", "guidance", "decoder", "classifier", "export")


class Build:
    """The stages in order; each leaves its result in `work` and is skipped when that is there."""

    def __init__(self, work: Path, output: Path, device: torch.device, seconds_per_stage: dict[str, int]) -> None:
        self.work, self.output, self.device, self.steps = work, output, device, seconds_per_stage
        work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        started = time.monotonic()
        for number, name in enumerate(STAGES, 1):
            minutes = (time.monotonic() - started) / 60
            print(f"[{number}/{len(STAGES)}] {name} (after {minutes:.1f} min)", flush=True)
            getattr(self, name.replace(" ", "_"))()

    def _done(self, name: str) -> bool:
        return (self.work / name).exists()

    def _steps(self, stage: str) -> dict[str, int]:
        return {"steps": self.steps[stage]} if stage in self.steps else {}

    def _vae(self, folder: str = "vae") -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.work / folder).to(self.device).eval()

    def _transformer(self, folder: str) -> FluxTransformer2DModel:
        return FluxTransformer2DModel.from_pretrained(self.work / folder).to(self.device).eval().requires_grad_(False)

    def sprites(self) -> None:
        self.images = load_sprites(self.work)

    def text_encoders(self) -> None:
        if not self._done("text_encoder_2"):
            text.train_text_encoders(self.work, self.device, **self._steps("text encoders"))

    def autoencoder(self) -> None:
        if not self._done("vae"):
            autoencoder.train_autoencoder(
                self.images, self.work, self.device, **self._steps("autoencoder")
            ).save_pretrained(self.work / "vae")

    def latents(self) -> None:
        if not self._done("latents.pt"):
            flux.make_data(self.images, self._vae(), self.work, self.device)

    def _replicated(self, stage: str, function: Callable[..., None]) -> None:
        count = replicas.workers_for(self.device)
        replicas.run(functools.partial(function, **self._steps(stage)), count, self.work, self.device)

    def flux(self) -> None:
        if not self._done("transformer_base"):
            self._replicated("flux", flux.train_flux)

    def guidance(self) -> None:
        if not self._done("transformer"):
            self._replicated("guidance", flux.distill_guidance)

    def decoder(self) -> None:
        if not self._done("vae_polished"):
            model = autoencoder.polish_decoder(
                self._vae(), self.images, self.work, self.device, **self._steps("decoder")
            )
            model.save_pretrained(self.work / "vae_polished")

    def classifier(self) -> None:
        if not self._done("classifier/model.safetensors"):
            judge.train_classifier(
                self.images, self._vae("vae_polished"), self.work, self.device, **self._steps("classifier")
            )

    def export(self) -> None:
        """Everything in bf16, in diffusers layout, into the output folder."""
        self.output.mkdir(parents=True, exist_ok=True)
        for part, (_library, _) in PARTS.items():
            if part in ("scheduler", "transformer", "vae"):
                continue
            shutil.copytree(self.work / part, self.output / part, dirs_exist_ok=True)
            weights = self.output / part / "model.safetensors"
            if weights.exists():
                _to_bf16(weights)
                _amend(self.output / part / "config.json", dtype="bfloat16")
        for part, model in {"transformer": self._transformer("transformer"), "vae": self._vae("vae_polished")}.items():
            model.to(torch.bfloat16).save_pretrained(self.output / part)
            _amend(self.output / part / "config.json", _name_or_path=None)  # a folder of this machine
        FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False).save_pretrained(
            self.output / "scheduler"
        )
        shutil.copytree(self.work / "classifier", self.output / "classifier", dirs_exist_ok=True)
        from diffusers import __version__

        index = {
            "_class_name": "FluxPipeline",
            "_diffusers_version": __version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            **PARTS,
        }
        (self.output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        rng = random.Random(99)
        pictures = np.stack([random_scene(rng).render(self.images) for _ in range(200)])
        psnr = autoencoder.psnr(self._vae("vae_polished"), pictures, self.device)
        size = sum(path.stat().st_size for path in self.output.rglob("*") if path.is_file())
        print(f"autoencoder PSNR {psnr:.2f} dB; model folder {size / 1e6:.1f} MB")


def _to_bf16(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _amend(path: Path, **changes: str | None) -> None:
    """Changes entries of a configuration file; None takes one out."""
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {name: value for name, value in config.items() if name not in changes or value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument(
        "--work", type=Path, default=root / ".cache" / "flux-emoji", help="folder of the stages' results"
    )
    parser.add_argument("--output", type=Path, default=root / "example_models" / "flux-emoji")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument(
        "--steps", action="append", default=[], metavar="STAGE=N", help="another number of training steps for a stage"
    )
    arguments = parser.parse_args()
    steps = {name: int(count) for name, _, count in (item.partition("=") for item in arguments.steps)}
    unknown = set(steps) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    Build(arguments.work, arguments.output, pick_device(arguments.device), steps).run()


if __name__ == "__main__":
    main()
