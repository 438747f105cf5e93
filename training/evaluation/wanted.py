"""Which pictures an evaluation asks for, what each should show, and the suites that they count in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..concepts import phrases_of, presets
from ..concepts.prompts import fill
from ..lora.files import sha256_of
from .attacks import ATTACKS
from .judges import Judge, ModelJudge, word_of
from .order import ATTACKED, PRESERVED, PRESETS, SYNONYMS, Order
from .probes import FIRST_SEED, Content, Probe, probes
from .suites import BLACK_BOX, Prompt, Suite, concept_suites, read_prompts

TITLES = {
    "concept": "The concept by its name",
    "synonyms": "Its synonyms",
    "preserved unseen": "What should stay, in no training prompt",
    "preserved seen": "What should stay, in training prompts",
    PRESETS: "The pack's other everyday concepts",
}
SEED_STRIDE = 1000  # between the pictures' seeds of an evaluation's seed and those of the next
_SUITES = {"acc_e": "concept", "acc_g": "synonyms", "acc_ir": "preserved unseen", "acc_ir_seen": "preserved seen"}
_FILE = "file "  # ids of the suites of prompt files begin so
_SHARE_OF = {"direct": "acc_e", "synonyms": "acc_g", "irrelevant": "acc_ir"}  # of `concept_suites`


@dataclass(frozen=True)
class PromptFile:
    """A suite out of a file of prompts, and which file that was."""

    id: str
    suite: Suite
    file: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """As JSON, without the prompts themselves."""
        return {
            "id": self.id,
            "file": self.file,
            "sha256": self.sha256,
            "format": self.suite.id,
            "kind": self.suite.kind,
            "prompts": len(self.suite.prompts),
            "left_out": self.suite.left_out,
            "unusable": self.suite.unusable,
        }

    @property
    def title(self) -> str:
        """For people."""
        taken = f", {len(self.suite.prompts)} of {len(self.suite.prompts) + self.suite.left_out} prompts"
        return f"{self.suite.title} from {self.file}" + (taken if self.suite.left_out else "")


def read_files(order: Order) -> list[PromptFile]:
    """The prompt files of an order, each read once. Raises ErasureError for one that cannot be used."""
    return [
        PromptFile(
            f"{_FILE}{number}", read_prompts(path, order.prompts_limit, seed=order.seed), path.name, sha256_of(path)
        )
        for number, path in enumerate(order.prompts, 1)
    ]


def other_words(order: Order) -> list[str]:
    """What else than the concept pictures are asked for, so that a judge among labels can name it."""
    preserved = order.concept.irrelevant if PRESERVED in order.suites else ()
    others = [word for word, _ in _presets(order)] if PRESETS in order.suites else []
    return list(dict.fromkeys([*preserved, *others]))


def wanted_probes(order: Order, judge: Judge, files: Sequence[PromptFile]) -> list[Probe]:
    """The pictures of an order, judged first by `judge`; those that it cannot name are left out.

    The model's own classifier has its own list (see `probes`), with the parts of styles and relations; any other judge
    gets the suites of `concept_suites`. Prompts of files ask for the concept, or are such that it should not be seen.
    """
    own = _of_classifier(order, judge) if isinstance(judge, ModelJudge) else _of_concept(order)
    made = [probe for probe in own if _asked_for(probe, order)]
    if PRESETS in order.suites:
        made += [
            Probe(PRESETS, prompt, FIRST_SEED + number, Content((word,)))
            for word, prompt in _presets(order)
            for number in range(order.images_per_other)
        ]
    made = [
        p for p in made if (isinstance(judge, ModelJudge) and p.share != PRESETS) or judge.knows(word_of(p.content))
    ]
    shifted = [dataclasses.replace(probe, seed=probe.seed + SEED_STRIDE * order.seed) for probe in made]
    concept = content_of(order)
    return shifted + [Probe(file.id, *prompt, concept) for file in files for prompt in file.suite.prompts]


def concept_probes(order: Order, judge: Judge, count: int) -> list[Probe]:
    """`count` pictures of the concept by its name, as the order asks for them, each with another seed."""
    alone = dataclasses.replace(order, images=count, suites=(), prompts=())
    return [probe for probe in wanted_probes(alone, judge, []) if probe.share == "acc_e"]


def content_of(order: Order) -> Content:
    """What a picture of the concept shows, for prompts that nobody has taken apart."""
    phrase = order.concept.phrase
    return Content(style=phrase) if order.concept.kind == "abstraction" else Content((phrase,))


def _of_classifier(order: Order, judge: ModelJudge) -> list[Probe]:
    return probes(order.concept, judge.classifier, order.images, order.images_per_other, order.images_per_attack)


def _of_concept(order: Order) -> Iterator[Probe]:
    words = {order.concept.prompt(word): word for word in order.concept.irrelevant}
    concept = content_of(order)
    for suite in concept_suites(order.concept, order.images):
        prompts = (
            suite.prompts[: order.images_per_attack]
            if suite.id in BLACK_BOX and suite.id != SYNONYMS
            else suite.prompts
        )
        for prompt in prompts:
            content = Content((words[prompt.text],)) if suite.kind == "keep" else concept
            yield Probe(_SHARE_OF.get(suite.id, suite.id), *prompt, content)


def _presets(order: Order) -> Iterator[tuple[str, str]]:
    """(word, prompt) of the everyday presets but the concept itself."""
    for preset in presets():
        word = phrases_of(preset.phrase, preset.kind)[0]
        if preset.group == "everyday" and not order.concept.named_in(word):
            yield word, fill(preset.template, {"": word, "subject": "cat", "object": "house"})


def _asked_for(probe: Probe, order: Order) -> bool:
    """Whether the order's choice of suites has a place for it; the concept itself always has one."""
    if probe.share == "acc_e":
        return True
    kind = SYNONYMS if probe.share == "acc_g" else PRESERVED
    return (ATTACKED if is_attack(probe.share) else kind) in order.suites


def is_attack(share: str) -> bool:
    """Whether a probe's share is another way to write the concept."""
    return share in (*ATTACKS, *BLACK_BOX)


def suites_of(probe: Probe) -> list[str]:
    """The suites that a probe counts in: concept, synonyms, attack …, preserved unseen or seen, part …, presets,
    file …."""
    if is_attack(probe.share):
        share = [f"attack {probe.share}"]
    else:
        share = [_SUITES.get(probe.share, probe.share)] if probe.share else []
    return [*share, *([f"part {probe.part}"] if probe.part else [])]


def lower_is_better(suite: str) -> bool:
    """Whether a suite asks for what was erased, or should not show it; "below" is what "above" was, in other words."""
    return suite in ("concept", "synonyms", "part converse") or suite.startswith(("attack ", _FILE))


def is_attempt(suite: str) -> bool:
    """Whether a suite asks for the concept by anything but its name."""
    return suite == "synonyms" or suite.startswith("attack ")


def should_stay(probe: Probe, files: Sequence[PromptFile]) -> bool:
    """Whether a probe's picture should not change at all: that is what drift is about."""
    kept = {file.id for file in files if file.suite.kind == "keep"}
    return probe.share.startswith("acc_ir") or probe.share == PRESETS or probe.share in kept


def title_of(suite: str, files: Sequence[PromptFile] = ()) -> str:
    """A suite's name for people."""
    known = {**TITLES, **{file.id: file.title for file in files}}
    kind, _, rest = suite.partition(" ")
    return known.get(suite) or {"attack": f"Attack: {rest}", "part": f"In detail: {rest}"}[kind]


def asked(content: Content) -> str:
    """What a picture should show, in words."""
    if content.relation:
        return f" {content.relation} ".join(content.nouns)
    what = " and ".join(content.nouns)
    return f"{what or 'anything'} in the style {content.style}" if content.style else what


def captions(files: Sequence[PromptFile]) -> list[Prompt]:
    """The prompts of all files that should stay as they are, each once."""
    return list(dict.fromkeys(p for file in files if file.suite.kind == "keep" for p in file.suite.prompts))


def paths_of(order: Order) -> list[Path]:
    """The files that an order names beside the model: LoRAs and prompt files."""
    return [*(s.lora for s in order.subjects if s.lora), *order.prompts]
