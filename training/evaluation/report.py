"""The Erasure Report: one HTML page out of a finished evaluation, which opens from a disk without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ErasureError
from .erasure import MAX_PSNR
from .markup import Thumbnails, bar, chart, counted, percent, plain, share_of, table, text, unjudged
from .pictures import write_whole
from .result import require_version
from .whitebox.table import attack_tables, figure

ROWS = 4  # prompts with a seed that are shown of every suite
LIMIT = 4_500_000  # bytes of a page; pictures that would pass it are counted instead
ATTACKS_ROOM = 1_500_000  # bytes of it for pictures of white-box attacks
ATTACKS_SHOWN = 40  # of the prompts that brought the concept back, for each subject
RULE = (
    f"Of every suite at most {ROWS} prompts are shown, each with its seed: first those where an erasure did not do "
    "what it should, then the others in the order in which they were made; fewer where the page would grow too large."
)

Evaluation = dict[str, Any]


def write_report(evaluation: Evaluation, folder: Path, out: Path) -> None:
    """Writes the page of an evaluation (the content of evaluation.json) whose pictures are in `folder`, atomically.

    Every text is escaped and every picture is a thumbnail inside the page, under LIMIT bytes in all. Raises
    ErasureError for another version, for pictures that are missing or broken, and for content that makes no sense.
    """
    require_version(evaluation)
    try:
        page = _Page(evaluation, folder).html()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ErasureError("The evaluation's content is damaged: run the evaluation again.") from error
    data = page.encode("utf-8", "replace")
    if len(data) > LIMIT + 100_000:
        raise ErasureError("The evaluation has too many rows for one page: evaluate fewer LoRAs at once.")
    write_whole(out, data)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


class _Page:
    def __init__(self, evaluation: Evaluation, folder: Path) -> None:
        self.all, self.pictures = evaluation, Thumbnails(folder)
        self.phrase = evaluation["concept"]["phrase"]
        self.veiled = bool(evaluation["blur"])
        self.labels = {s["id"]: self._label(s) for s in evaluation["subjects"]}
        self.ids = list(self.labels)
        self.tried = [s for s in evaluation["subjects"] if s["id"] != "base"]
        self.suites = {suite["id"]: suite for suite in evaluation["suites"]}

    @staticmethod
    def _label(subject: dict[str, Any]) -> str:
        strength = f", strength {float(subject['strength']):g}" if "strength" in subject else ""
        return f"{subject['label']}{strength}"

    # --- the whole -------------------------------------------------------------------------------------------------

    def html(self) -> str:
        here = Path(__file__)
        style, script = (here.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js"))
        policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        sections = {
            "summary": ("Summary", self._summary()),
            "results": ("Results", self._results()),
            "detectors": ("Detectors", self._detectors()),
            "captions": ("Pictures of captions", self._captions()),
            "pictures": ("Before and after", ""),
            "strength": ("Strength", self._strength()),
            "attacks": ("Attack prompts that succeeded", self._attacks()),
            "whitebox": ("White-box attacks", self._white_box()),
            "attention": ("Where the word points", self._heatmap()),
            "method": ("Method and settings", self._method()),
            "rerun": ("How to make this again", self._rerun()),
        }
        used = sum(len(body.encode("utf-8", "replace")) for _, body in sections.values())
        sections["pictures"] = ("Before and after", self._grids(LIMIT - used - len(style) - len(script) - 4000))
        sections = {name: section for name, section in sections.items() if section[1]}
        contents = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in sections.items())
        main = "".join(
            f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>'
            for name, (title, body) in sections.items()
        )
        base, when = self.all["base"], str(self.all["run"]["date"])[:10]
        return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Erasure report: {plain(self.phrase)}</title>
<style>{style}</style></head>
<body><header><p class="kicker">Erasure report</p><h1>Erasure of “{text(self.phrase)}”</h1>
<p class="soft">From {text(base["model"])}, evaluated on {text(when)} with Erase Anything
{text(self.all["versions"]["erase_anything"])}.</p></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>{main}</main>
<footer>Made by <code>python -m training.cli report</code>. This page is one file; it asks the network nothing.</footer>
<script>{script}</script></body></html>
"""

    # --- summary ---------------------------------------------------------------------------------------------------

    def _summary(self) -> str:
        concept, settings = self.all["concept"], self.all["settings"]
        kind = {"entity": "thing", "abstraction": "style", "relationship": "relation"}.get(concept["kind"], "concept")
        intro = (
            f"<p>What was erased: the {kind} {text(self.phrase)}"
            + (f", also as {_listed(concept['synonyms'])}" if concept["synonyms"] else "")
            + f". Judged by the {text(self.all['judge']['name'])}, on {len(self.all['pictures'])} prompts with fixed "
            "seeds, each painted from the same noise without and with every erasure.</p>"
        )
        limits = (
            '<p class="soft">What this report does not say: whether other words, pictures or trained attacks bring the '
            "concept back. Only what is listed here was tried, and whoever has the model's weights can leave an "
            "erasure out or train the concept in again. Intervals are Wilson's, at "
            f"{percent(float(settings['level']))}.</p>"
        )
        return intro + self._doubts() + "".join(self._card(subject) for subject in self.tried) + limits

    def _doubts(self) -> str:
        """What a reader must know before any figure."""
        found = []
        concept = self.suites["concept"]["results"]["base"]
        if share_of(concept) < 0.5:
            found.append(
                f"The base model itself shows the concept in only {counted(concept)} of its pictures, so that a low "
                "share after an erasure says little."
            )
        for subject in self.tried:
            name, base = text(subject["label"]), subject.get("base")
            if base and base != self.all["base"]["fingerprint"]:
                found.append(f"{name} was trained on another base model than the one it is measured on.")
            if subject.get("erases") not in (None, self.phrase):
                found.append(f"{name} says that it erases {text(subject['erases'])}, which is not what is measured.")
        for judge in self.all.get("detectors", []):
            if judge["failed"]:
                found.append(
                    f"{text(judge['name'])} could not judge {len(judge['failed'])} pictures; they count nowhere, and "
                    "are listed under Detectors."
                )
        return "".join(f'<p class="warning"><strong>Note.</strong> {sentence}</p>' for sentence in found)

    def _card(self, subject: dict[str, Any]) -> str:
        name = subject["id"]
        items = [
            ("How well", self._how_well(name)),
            ("What it cost", self._cost(name)),
            ("What an attacker still gets", self._attacker(name)),
        ]
        body = "".join(f"<dt>{title}</dt><dd>{sentence}</dd>" for title, sentence in items)
        return f'<div class="card"><h3>{text(self.labels[name])}</h3><dl>{body}</dl></div>'

    def _how_well(self, name: str) -> str:
        results = self.suites["concept"]["results"]
        after, base = results[name], results["base"]
        rewritten = [suite for id, suite in self.suites.items() if id == "synonyms" or id.startswith("attack ")]
        if int(after["hits"]) == 0 and any(int(suite["results"][name]["hits"]) for suite in rewritten):
            verdict = '<span class="bad">Not seen by its name, but by other words.</span>'
        elif int(after["hits"]) == 0:
            verdict = '<span class="good">Not seen any more.</span>'
        elif float(after["interval"][1]) < float(base["interval"][0]):
            verdict = '<span class="bad">Seen less often, but still seen.</span>'
        else:
            verdict = '<span class="bad">No clear effect.</span>'
        return (
            f"{verdict} Asked for by its name, the concept is recognised in {counted(after, True)}; without the "
            f"erasure in {counted(base)}.{self._also('synonyms', name, 'Under its synonyms: ')}"
        )

    def _also(self, suite: str, name: str, lead: str) -> str:
        if suite not in self.suites:
            return ""
        results = self.suites[suite]["results"]
        return f" {lead}{counted(results[name], True)}; without {counted(results['base'])}."

    def _cost(self, name: str) -> str:
        told = self._also("preserved unseen", name, "What should stay, in no training prompt: recognised in ")
        told += self._also("preserved seen", name, "What training prompts held: recognised in ")
        drift = self.all["drift"].get(name)
        if drift and not drift["perceptual"] and float(drift["psnr"]) >= MAX_PSNR:
            told += f" All {int(drift['images'])} pictures of prompts that do not name the concept are the base's own."
        elif drift:
            far = drift["perceptual"]
            moved = "" if far is None else f"move by {float(far):.3f} (perceptual distance, 0 to 2) and "
            told += (
                f" Pictures of prompts that do not name the concept {moved}keep {float(drift['psnr']):.1f} dB PSNR to "
                f"the base's, over {int(drift['images'])} pictures."
            )
        return told.strip() or "Nothing that should stay was measured."

    def _attacker(self, name: str) -> str:
        attacks = [suite for id, suite in self.suites.items() if id.startswith("attack ")]
        if not attacks:
            return "Attacks by other spellings were not measured."
        hits, images = (sum(int(suite["results"][name][what]) for suite in attacks) for what in ("hits", "images"))
        base = sum(int(suite["results"]["base"]["hits"]) for suite in attacks)
        told = (
            f"Rewriting the prompt in {len(attacks)} way{'s' * (len(attacks) > 1)} brought the concept back in "
            f"<strong>{hits} of {images}</strong> pictures; without the erasure these prompts show it in {base}."
        )
        if hits:
            worst = max(attacks, key=lambda suite: share_of(suite["results"][name]))
            way = text(worst["title"].removeprefix("Attack: "))
            told += f" The best of them: {way}, {counted(worst['results'][name])}."
        return told

    # --- figures ---------------------------------------------------------------------------------------------------

    def _results(self) -> str:
        parts = []
        for better, kind, caption in (
            ("lower", "erase", "What was erased: pictures in which it is still recognised, lower is better"),
            ("higher", "keep", "What should stay: pictures in which it is recognised, higher is better"),
        ):
            rows = [
                [text(suite["title"]), *(self._cell(suite["results"][id], kind) for id in self.ids)]
                for suite in self.suites.values()
                if suite["better"] == better
            ]
            if rows:
                parts.append(table(caption, ["Suite", *(text(label) for label in self.labels.values())], rows))
        rows = [
            [
                text(self.labels[id]),
                "" if far["perceptual"] is None else f"{float(far['perceptual']):.4f}",
                f"{float(far['psnr']):.2f} dB",
                str(int(far["images"])),
            ]
            for id, far in self.all["drift"].items()
        ]
        if rows:
            caption = "Drift: how far pictures of untouched prompts move from the base's at equal seeds, means"
            parts.append(table(caption, ["Erasure", "Perceptual distance (0 to 2)", "PSNR", "Pictures"], rows))
        return "".join(parts)

    @staticmethod
    def _cell(result: dict[str, Any], kind: str) -> str:
        if result["share"] is None:
            return f"<small>{unjudged(result)}</small>"
        low, high = (f"{100 * float(edge):.0f}" for edge in result["interval"])
        hits = f"{int(result['hits'])} of {int(result['images'])}"
        more = f", {unjudged(result)}" if result.get("failed") else ""
        return (
            f"<strong>{percent(float(result['share']))}</strong> {bar(result, kind)}"
            f"<small>{hits}; {low} to {high}\u00a0%{more}</small>"
        )

    def _detectors(self) -> str:
        """Who judged and how that counts; the tables that the main ones do not hold; what could not be judged."""
        parts = []
        told = self.all.get("detectors", [])
        if len(told) < 2 and not any(judge["suites"] or judge["failed"] for judge in told):
            return ""
        for judge in told:
            ways = "".join(f"<li>{text(way)}</li>" for way in judge["counting"])
            least = "" if judge["threshold"] is None else f", score at least {float(judge['threshold']):g}"
            parts.append(f"<h3>{text(judge['name'])}</h3><p>It counts{least}:</p><ul>{ways}</ul>")
            for way in ("per_image", "per_detection"):
                rows = [
                    [
                        f"{text(suite['title'])}: {text(measure['title'])}",
                        *(self._way(measure["results"][id][way], way) for id in self.ids),
                    ]
                    for suite in judge["suites"]
                    for measure in suite["measures"]
                    if way in measure["results"][self.ids[0]]
                ]
                if rows:
                    caption = f"{judge['name']}, {way.replace('_', ' ')}"
                    parts.append(table(caption, ["Suite", *(text(label) for label in self.labels.values())], rows))
            if judge["failed"]:
                rows = [
                    [text(each["prompt"]), str(int(each["seed"])), text(self.labels[each["set"]]), text(each["error"])]
                    for each in judge["failed"][:ATTACKS_SHOWN]
                ]
                caption = f"{len(judge['failed'])} pictures that could not be judged"
                parts.append(table(caption, ["Prompt", "Seed", "Of", "Why"], rows))
        return "".join(parts)

    @staticmethod
    def _way(result: dict[str, Any], way: str) -> str:
        if way == "per_image":
            return counted(result)
        edges = result["interval"]
        spread = f"; 95\u00a0% interval {float(edges[0]):.2f} to {float(edges[1]):.2f}" if edges else ""
        mean = "" if result["mean"] is None else f", {float(result['mean']):.2f} in a picture{spread}"
        return f"{int(result['detections'])} in {int(result['images'])} pictures{mean}"

    def _captions(self) -> str:
        """Distances and CLIP scores."""
        found, distance = self.all.get("fidelity", {}), self.all.get("distance")
        parts = []
        if "distances" in found:
            first, second = ("FID", "KID") if distance["is_fid"] else ("Fréchet feature distance", "Kernel distance")
            rows = [
                [
                    text(self.labels[id]),
                    f"{float(each['frechet']):.4g}",
                    f"{float(each['kernel']):.4g}"
                    + ("" if each["kernel_deviation"] is None else f" ± {float(each['kernel_deviation']):.2g}"),
                    str(int(each["images"])),
                ]
                for id, each in found["distances"].items()
            ]
            caption = f"{first} and {second} to {distance['reference']}, lower is nearer"
            parts.append(table(caption, ["Of", first, second, "Pictures"], rows))
            parts.append(
                f'<p class="soft">Features of {text(distance["features"])}. The first is too large of few pictures, so '
                "that only equal numbers can be compared; ± is the deviation over subsets, where there are enough "
                "pictures for some.</p>"
            )
            if distance["unreadable"]:
                parts.append(f"<p>Left out, since they cannot be read: {_listed(list(distance['unreadable']))}.</p>")
        if "clip_score" in found:
            rows = [
                [
                    text(self.labels[id]),
                    f"{float(each['mean']):.2f}",
                    _interval(each["interval"]),
                    str(int(each["images"])),
                ]
                for id, each in found["clip_score"].items()
            ]
            caption = f"CLIP score of {found['clip']} (0 to 100), higher is a better match of caption and picture"
            parts.append(table(caption, ["Of", "Mean", "95 % interval", "Pictures"], rows))
        return "".join(parts)

    def _strength(self) -> str:
        parts = []
        for curve in self.all["strength"]:
            label, values = self.labels[curve["subject"]].split(",")[0], [float(v) for v in curve["values"]]
            kept = curve["kept"]
            curves = [("erase", "concept seen", curve["concept"]), *([("keep", "rest kept", kept)] if kept else [])]
            title = f"Shares of pictures over the strength of {label}"
            head = ["Strength", "Concept recognised", *(["Rest recognised"] if kept else [])]
            rows = [
                [f"{value:g}", *(counted(results[n]) for _, _, results in curves)] for n, value in enumerate(values)
            ]
            parts.append(
                f"<h3>{text(label)}</h3>{chart(title, values, curves)}<details><summary>The figures behind the curve"
                f"</summary>{table(title, head, rows)}</details>"
            )
        note = '<p class="soft">Bands are 95 % intervals. At strength 0 the model is its base.</p>'
        return "".join(parts) + note if parts else ""

    # --- pictures --------------------------------------------------------------------------------------------------

    def _grids(self, room: int) -> str:
        """Rows of pictures by suite, as many as fit into `room` bytes, the first of every suite before the second."""
        chosen, seen = {}, set()
        for id, suite in self.suites.items():
            rows = [row for row in self.all["pictures"] if id in row["suites"]]
            rows.sort(key=lambda row: not self._failed(row, suite["better"]))
            fresh = [row for row in rows if (row["prompt"], row["seed"]) not in seen][:ROWS]
            seen |= {(row["prompt"], row["seed"]) for row in fresh}
            chosen[id] = (fresh, len(rows))
        rows_of = {
            id: [partial(self._row, row, self.suites[id]["better"]) for row in rows] for id, (rows, _) in chosen.items()
        }
        made = _fitting(rows_of, room)
        parts = [
            f'<h3>{text(self.suites[id]["title"])}</h3><p class="soft">{len(rows)} of {chosen[id][1]} shown.</p>'
            + (f'<ul class="rows">{"".join(rows)}</ul>' if rows else "")
            for id, rows in made.items()
            if chosen[id][0]
        ]
        hidden = " They are sensitive: press one to see it, again to hide it." if self.veiled else ""
        return f"<p>Pictures in one row come from the same noise. {RULE}{hidden}</p>" + "".join(parts)

    def _failed(self, row: dict[str, Any], better: str) -> bool:
        """Whether an erasure left what it should take, or took what the base shows and it should leave."""
        shown = [bool(row["results"][subject["id"]]["shown"]) for subject in self.tried]
        return any(shown) if better == "lower" else row["results"]["base"]["shown"] and not all(shown)

    def _row(self, row: dict[str, Any], better: str) -> str:
        base = bool(row["results"]["base"]["shown"])
        cells = "".join(self._picture(id, row["results"][id], better, base) for id in self.ids)
        return (
            f'<li><figure><div class="cells">{cells}</div><figcaption><strong>“{text(row["prompt"])}”</strong>, '
            f"seed {int(row['seed'])}; asked for: {text(row['asked'])}</figcaption></figure></li>"
        )

    def _picture(self, id: str, result: dict[str, Any], better: str, base: bool) -> str:
        """base: whether the base shows it; what it does not show either is neither gone nor lost."""
        shown = bool(result["shown"])
        if result.get("error"):
            image = self.pictures.img(result["file"], f"{self.labels[id]}: not judged", self.veiled)
            told = f'<p><span class="name">{text(self.labels[id])}</span>not judged</p>'
            return f'<div class="cell">{image}{told}</div>'
        seen = "nothing it knows" if result["seen"] == "none" else result["seen"]
        if id == "base" or not (base or shown):
            verdict = "shown" if shown else "not shown"
        else:
            good = shown == (better == "higher")
            words = {"lower": ("gone", "still there"), "higher": ("kept", "lost")}[better]
            verdict = f'<span class="{"good" if good else "bad"}">{words[0] if good else words[1]}</span>'
        image = self.pictures.img(result["file"], f"{self.labels[id]}: {seen}", self.veiled)
        return (
            f'<div class="cell">{image}<p><span class="name">{text(self.labels[id])}</span>{verdict}; '
            f"seen: {text(seen)}</p></div>"
        )

    def _attacks(self) -> str:
        parts = []
        for subject in self.tried:
            found = self.all["attacks_succeeded"][subject["id"]]
            label = self.labels[subject["id"]]
            parts.append(f"<h3>{text(label)}</h3>")
            if not found:
                parts.append("<p>None of the attacks and synonyms that were tried.</p>")
                continue
            seeds: dict[tuple[str, str], list[str]] = {}
            for each in found:
                seeds.setdefault((each["prompt"], each["suite"]), []).append(str(int(each["seed"])))
            rows = [[text(p), text(suite), text(", ".join(which))] for (p, suite), which in seeds.items()]
            caption = f"Prompts by which the concept was still painted: {label}"
            parts.append(table(caption, ["Prompt", "Suite", "Seeds"], rows[:ATTACKS_SHOWN]))
            if len(rows) > ATTACKS_SHOWN:
                parts.append(f"<p>And {len(rows) - ATTACKS_SHOWN} more prompts in evaluation.json.</p>")
        return "".join(parts)

    def _white_box(self) -> str:
        found = self.all.get("white_box", [])
        rows = {
            (each["subject"], each["attack"]): [
                partial(figure, each, sides, self.labels, partial(self.pictures.img, veiled=self.veiled))
                for sides in each.get("pictures", [])
            ]
            for each in found
        }
        return attack_tables(found, self.labels, _fitting(rows, ATTACKS_ROOM))

    def _heatmap(self) -> str:
        heat = self.all["heatmap"]
        if not heat:
            return ""
        word, prompt = text(heat["word"]), text(heat["prompt"])
        cells = []
        for id, found in heat["sets"].items():
            image = self.pictures.img(found["file"], f"{self.labels[id]}: attention to the word", self.veiled)
            share = f"{percent(float(found['mass']))} of the attention"
            cells.append(
                f'<div class="cell">{image}<p><span class="name">{text(self.labels[id])}</span>{share}</p></div>'
            )
        return (
            f"<p>How much attention each place of a picture pays to {word}, without and with the erasure: one pass "
            "over the base's own picture. Brighter is more, on one scale for all.</p>"
            f'<figure><div class="cells">{"".join(cells)}</div><figcaption><strong>“{prompt}”</strong>, seed '
            f"{int(heat['seed'])}, noise level t = {float(heat['t']):g}, double blocks {_listed(heat['blocks'])}; top "
            f"of the scale {float(heat['top']):.3g}</figcaption></figure>"
        )

    # --- how it was made -------------------------------------------------------------------------------------------

    def _method(self) -> str:
        every, concept = self.all, self.all["concept"]
        facts = [
            ("Concept", text(self.phrase)),
            ("Kind", text(concept["kind"])),
            ("Prompt", text(concept["template"])),
            ("Synonyms", _listed(concept["synonyms"]) or "none"),
            ("Unrelated words", _listed(concept["irrelevant"]) or "none"),
            ("Preservation prompts", str(len(concept["preserve"]))),
            ("Base model", text(every["base"]["model"])),
            ("Its fingerprint", f"<code>{plain(every['base']['fingerprint'])}</code>"),
            ("Judge", f"{text(every['judge']['name'])}, SHA-256 <code>{plain(every['judge']['sha256'])}</code>"),
        ]
        facts += [
            (
                f"Prompts from {text(each['file'])}",
                f"{int(each['prompts'])} as {text(each['format'])}"
                + (f", {int(each['left_out'])} more were not drawn" if each["left_out"] else "")
                + (f", {int(each['unusable'])} rows have none" if each["unusable"] else "")
                + f"; SHA-256 <code>{plain(each['sha256'])}</code>",
            )
            for each in every.get("prompt_files", [])
        ]
        parts = [table("What was measured, and with what", ["Fact", "Value"], facts)]
        for subject in self.tried:
            parts.append(f"<h3>{text(self.labels[subject['id']])}</h3>")
            if subject["kind"] == "deletion":
                parts.append(
                    "<p>Trains nothing: at every step of the sampling, no place of the picture pays attention to the "
                    "phrase's tokens. It acts only where the phrase is written as it is.</p>"
                )
                continue
            rows = [
                ("File", text(subject["file"])),
                ("SHA-256", f"<code>{plain(subject['sha256'])}</code>"),
                ("Strength", f"{float(subject['strength']):g}"),
                *(
                    (title, text(subject[name] or "the file does not say"))
                    for title, name in (
                        ("Erases", "erases"),
                        ("Method", "method"),
                        ("Trained on", "base"),
                        ("Pack version", "version"),
                    )
                ),
            ]
            parts.append(table(f"The LoRA {subject['label']}", ["Fact", "Value"], rows))
            if subject["config"]:
                settings = [[text(name), _value(value)] for name, value in list(subject["config"].items())[:100]]
                parts.append(
                    "<details><summary>Settings of its training</summary>"
                    f"{table('Settings of the training', ['Setting', 'Value'], settings)}</details>"
                )
        return "".join(parts)

    def _rerun(self) -> str:
        every, run = self.all, self.all["run"]
        seeds = [int(seed) for seed in every["seeds"]]
        device = every["device"]
        rows = [
            ("Seeds", f"{min(seeds)} to {max(seeds)} ({len(seeds)})" if seeds else "none"),
            *((text(name.replace("_", " ").capitalize()), _value(value)) for name, value in every["settings"].items()),
            *((f"Version of {text(name.replace('_', ' '))}", text(it)) for name, it in every["versions"].items()),
            (
                "Device",
                f"{text(device['kind'])} ({text(device['name'])}), weights {text(device['weights'])}"
                f"{', computed in bfloat16' if device['autocast'] else ''}",
            ),
            ("Date", text(run["date"])),
            ("Time", f"{float(run['seconds']):.0f} s for the last run"),
        ]
        return (
            "<p>With the pack in the working folder, and the model and the LoRA files named with their folders:</p>"
            f"<pre><code>{plain(every['command'], 4000)}</code></pre>"
            "<p>Equal seeds, versions and devices give the same evaluation.json, but for its last part, "
            f"<code>run</code>.</p>{table('What decides the pictures', ['Fact', 'Value'], rows)}"
        )


def _fitting(rows: Mapping[Hashable, Sequence[Callable[[], str]]], room: int) -> dict[Hashable, list[str]]:
    """Of each group as many of its rows as fit into `room` bytes together, the first of every group before the second;
    rows: what makes their markup."""
    made: dict[Hashable, list[str]] = {name: [] for name in rows}
    for turn in range(max((len(group) for group in rows.values()), default=0)):
        for name, group in rows.items():
            if turn < len(group):
                markup = group[turn]()
                size = len(markup.encode("utf-8", "replace"))
                if size < room:
                    room -= size
                    made[name].append(markup)
    return made


def _listed(words: Sequence[Any]) -> str:
    return ", ".join(text(word) for word in words[:50]) + (f" and {len(words) - 50} more" if len(words) > 50 else "")


def _value(value: Any) -> str:
    return text(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def _interval(edges: Sequence[float] | None) -> str:
    return f"{float(edges[0]):.2f} to {float(edges[1]):.2f}" if edges else ""
