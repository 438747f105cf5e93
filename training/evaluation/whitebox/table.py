"""What white-box attacks found, as a part of a report page: tables, and pictures before and under an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..markup import counted, percent, table, text

PROMPTS_SHOWN = 40  # prompts of each erasure that brought the concept back
_SHOWN = (
    "Pictures from the same noise: by the base, by the erasure before the attack, and under the attack's best prompt "
    "or training. First those that the attack brought back."
)


def attack_tables(
    found: Sequence[Mapping[str, Any]], labels: Mapping[str, str], figures: Mapping[tuple[str, str], Sequence[str]]
) -> str:
    """HTML of an evaluation's "white_box"; "" where there is none.

    labels: the subjects' names by their ids; figures: what `figure` made, by subject and attack.
    """
    if not found:
        return ""
    parts = [
        "<p>With the model's weights in hand: UnlearnDiffAtk and P4D search words to put before the prompt by the "
        "model's own gradients, Ring-A-Bell words to take its place by the text encoders alone, and re-learning trains "
        "on the base's pictures of the concept. The control is as many random words, chosen from as many tries; for "
        "re-learning the same training on something unrelated. An attack says something where it is well above its "
        "control.</p>"
    ]
    for subject, label in labels.items():
        own = [each for each in found if each["subject"] == subject]
        if not own:
            continue
        rows = [
            [text(each["title"]), *(counted(each[name]) for name in ("before", "after", "control", "base"))]
            for each in own
        ]
        head = ["Attack", "Before the attack", "After it", "Control", "Base model"]
        parts += [f"<h3>{text(label)}</h3>", table(f"Pictures that show the concept: {label}", head, rows)]
        prompts = [
            [text(each["title"]), text(it["prompt"]), text(", ".join(str(int(seed)) for seed in it["seeds"]))]
            for each in own
            for it in each["prompts"]
            if "curve" not in each
        ]
        if prompts:
            caption = f"Prompts of the attacks by which the concept was painted: {label}"
            parts.append(table(caption, ["Attack", "Prompt", "Seeds"], prompts[:PROMPTS_SHOWN]))
        parts += [_curve(each, label) for each in own if "curve" in each]
        rows = "".join(markup for each in own for markup in figures.get((subject, each["attack"]), ()))
        if rows:
            parts += [f'<p class="soft">{_SHOWN}</p><ul class="rows">{rows}</ul>']
    return "".join(parts)


def figure(
    each: Mapping[str, Any], sides: Mapping[str, Any], labels: Mapping[str, str], image: Callable[[str, str], str]
) -> str:
    """A row of pictures of an attack: one of its "pictures". image: makes the markup of a file with an alternative
    text."""
    label, title = labels[each["subject"]], each["title"]
    cells = []
    for side, name in (("base", labels["base"]), ("before", label), ("after", f"{label}, under {title}")):
        shown = bool(sides[side]["shown"])
        picture = image(sides[side]["file"], f"{name}: {'shown' if shown else 'not shown'}")
        if side == "base" or not (shown or sides["base"]["shown"]):
            verdict = "shown" if shown else "not shown"
        else:
            verdict = '<span class="bad">shown</span>' if shown else '<span class="good">gone</span>'
        cells.append(f'<div class="cell">{picture}<p><span class="name">{text(name)}</span>{verdict}</p></div>')
    plain, tried = (sides[side]["prompt"] for side in ("before", "after"))
    prompts = f"<strong>“{text(tried)}”</strong>" + (f" for “{text(plain)}”" if tried != plain else "")
    return (
        f'<li><figure><div class="cells">{"".join(cells)}</div><figcaption>{text(title)}: {prompts}, '
        f"seed {int(sides['seed'])}</figcaption></figure></li>"
    )


def _curve(each: Mapping[str, Any], label: str) -> str:
    rows = [
        [str(int(own["steps"])), percent(float(own["share"])), percent(float(control["share"]))]
        for own, control in zip(each["curve"], each["control_curve"], strict=True)
    ]
    head = ["Training steps", "Concept shown", "Control"]
    return table(f"Re-learning, step by step: {label}", head, rows)
