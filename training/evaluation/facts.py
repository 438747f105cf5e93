"""Everything about an evaluation that is known before its first picture and decides all of them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from .. import __version__
from ..errors import ConfigError
from ..lora.files import concept_of, mapping_of, sha256_of
from ..lora.format import KEY_BASE, KEY_CONFIG, KEY_METHOD, KEY_VERSION
from ..models.device import pick_device
from .cases import FIRST_SEED
from .fidelity import make_features, read_reference
from .judges import make_judge
from .prompt_files import captions
from .result import FORMAT, VERSION
from .spec import BASE, DELETION, EvaluationSpec, cases_of, command_of, ids_of, model_of, other_words, read_files

if TYPE_CHECKING:
    from ..models.loading import FluxParts


class Tools:
    """What an evaluation measures with, all of it looked for before the first picture is made: prompt files, judges,
    cases, features that compare pictures of captions.

    Raises:
        ErasureError: Where one of them is missing or cannot be used.
    """

    def __init__(self, spec: EvaluationSpec, device: str) -> None:
        model = Path(spec.source.folder) if spec.source.folder else None
        where = str(pick_device(device))
        self.files = read_files(spec)
        first, *more = spec.detectors
        self.judges = [make_judge(first, spec.concept, model, other_words(spec), spec.labels, where)]
        self.cases = cases_of(spec, self.judges[0], self.files)
        words = list(dict.fromkeys(case.expected.word for case in self.cases))
        self.judges += [make_judge(choice, spec.concept, model, words, spec.labels, where) for choice in more]
        self.features = make_features(spec.distance, model, where) if spec.distance else None
        if self.features and not captions(self.files):
            raise ConfigError("A distance compares pictures of captions: give a file with a column caption.")
        self.reference = read_reference(spec.reference, self.features) if spec.reference and self.features else None
        # of a perceptual distance, and of CLIP scores: whatever is loaded anyway
        self.perception = next((judge.features for judge in self.judges if judge.features), None)
        clips = (*(judge.clip for judge in self.judges), self.features.clip if self.features else None)
        self.clip = next(filter(None, clips), None)


def facts_of(
    spec: EvaluationSpec, parts: FluxParts, metadata: dict[Path, dict[str, str]], tools: Tools
) -> dict[str, Any]:
    """Everything that is known before the first picture and decides all of them; no path but file names."""
    device = next(parts.transformer.parameters())
    fingerprint, variant = spec.source.fingerprint(), parts.variant
    subjects: list[dict[str, Any]] = [{"id": BASE, "kind": BASE, "label": "Base model"}]
    for name, subject in zip(ids_of(spec)[1:], spec.subjects, strict=True):
        if subject.lora is None:
            subjects.append({"id": name, "kind": DELETION, "label": "Attention deletion"})
            continue
        data = metadata[subject.lora]
        subjects.append(
            {
                "id": name,
                "kind": "lora",
                "label": subject.lora.stem,
                "strength": subject.strength,
                "file": subject.lora.name,
                "sha256": sha256_of(subject.lora),
                "erases": concept_of(data),
                "method": data.get(KEY_METHOD),
                "config": mapping_of(data.get(KEY_CONFIG)),
                "base": data.get(KEY_BASE),
                "version": data.get(KEY_VERSION),
            }
        )
    features, reference = tools.features, tools.reference
    return {
        "format": FORMAT,
        "version": VERSION,
        "concept": spec.concept.to_dict(),
        "blur": spec.blur,
        "base": {"model": model_of(spec.source), "fingerprint": fingerprint},
        "judge": tools.judges[0].facts(),
        "detectors": [judge.facts() for judge in tools.judges],
        "prompt_files": [file.facts() for file in tools.files],
        "subjects": subjects,
        "distance": features
        and {
            "features": features.name,
            "sha256": features.sha256,
            "is_fid": features.is_fid,
            "reference": reference.name if reference else "the base model's own pictures",
            "unreadable": reference.unreadable if reference else {},
        },
        "settings": {
            "images": spec.images,
            "images_per_other": spec.images_per_other,
            "images_per_attack": spec.images_per_attack,
            "strengths": list(spec.strengths),
            "heatmap": spec.heatmap,
            "batch_size": spec.batch_size,
            "resolution": variant.resolution,
            "steps": variant.default_steps,
            "guidance": variant.default_guidance,
            "first_seed": FIRST_SEED,
            "seed": spec.seed,
            "level": 0.95,
            "suites": list(spec.suites),
            "prompts_limit": spec.prompts_limit,
            "labels": list(spec.labels),
            **({"white_box": spec.white_box.to_dict()} if spec.white_box else {}),
        },
        "versions": {"erase_anything": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "device": {
            "kind": device.device.type,
            "name": torch.cuda.get_device_name() if device.device.type == "cuda" else platform.machine(),
            "weights": str(device.dtype).removeprefix("torch."),
            "autocast": parts.autocast,
        },
        "command": command_of(spec),
    }
