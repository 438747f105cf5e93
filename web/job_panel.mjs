// One job as a small panel: state, bar, step, time left, losses, last samples, and buttons that do what they say.
import { act, sampleUrl } from "./job_api.mjs";
import { element } from "./dom.mjs";
import { jobs } from "./job_store.mjs";
import { text } from "./texts.mjs";

const LOSSES = ["esd", "anchor", "gem", "attn", "lora", "rsc"];

// Which buttons make sense in which state.
const ACTIONS = {
  queued: ["pause", "cancel"],
  starting: ["pause", "cancel"],
  running: ["pause", "cancel"],
  paused: ["resume", "cancel"],
  interrupted: ["resume", "cancel"],
  failed: ["resume"],
  cancelled: ["resume"],
};

export class JobPanel {
  #job = null;

  constructor() {
    this.badge = element("span", { className: "ea-state" });
    this.steps = element("span", { className: "ea-steps" });
    this.left = element("span", { className: "ea-left" });
    this.fill = element("div", { className: "ea-fill" });
    this.bar = element("div", { className: "ea-bar", role: "progressbar", "aria-valuemin": 0 }, this.fill);
    this.losses = element("dl", { className: "ea-losses" });
    this.samples = element("div", { className: "ea-samples" });
    this.sentence = element("p", { className: "ea-sentence", "aria-live": "polite" });
    this.buttons = element("div", { className: "ea-buttons" });
    this.element = element(
      "div",
      { className: "ea-panel" },
      element("div", { className: "ea-head" }, this.badge, this.steps, this.left),
      this.bar,
      this.losses,
      this.samples,
      this.sentence,
      this.buttons,
    );
    this.showNone();
  }

  /** Before the node has ever run. */
  showNone() {
    this.#job = null;
    this.element.dataset.state = "none";
    this.sentence.textContent = text("noJob");
    for (const part of [this.badge, this.steps, this.left]) part.textContent = "";
    for (const part of [this.losses, this.samples, this.buttons]) part.replaceChildren();
  }

  show(job) {
    const before = this.#job;
    this.#job = job;
    const { state, stopping, step = 0, total = 0 } = job;
    this.element.dataset.state = state;
    this.element.dataset.job = job.id;
    this.badge.textContent = text(stopping ? `stopping.${stopping}` : `state.${state}`);
    this.steps.textContent = total ? text("steps", { step, total }) : "";
    this.left.textContent = state === "running" ? timeLeft((total - step) * job.seconds_per_step) : "";
    this.fill.style.width = total ? `${(100 * step) / total}%` : "0";
    this.bar.setAttribute("aria-valuemax", total);
    this.bar.setAttribute("aria-valuenow", step);
    this.bar.setAttribute("aria-label", text("progress", { name: job.name ?? "" }));
    this.#showLosses(job.losses ?? {});
    if (job.samples !== before?.samples) this.#showSamples(job.samples ?? []);
    this.sentence.textContent = sentence(job);
    if (state !== before?.state || stopping !== before?.stopping) this.#showButtons(ACTIONS[state] ?? [], stopping);
  }

  #showLosses(losses) {
    const known = LOSSES.filter((name) => Number.isFinite(losses[name]));
    this.losses.replaceChildren(
      ...known.map((name) =>
        element(
          "div",
          { title: text(`loss.${name}.hint`) },
          element("dt", {}, text(`loss.${name}`)),
          element("dd", {}, losses[name].toPrecision(3)),
        ),
      ),
    );
  }

  /** The same prompts and seeds at the first sampled step and, below each, at the latest. */
  #showSamples(told) {
    const samples = [...new Map(told.map((sample) => [sample.file, sample])).values()]; // a resumed job renders some again
    const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => a - b);
    const first = samples.filter(({ step }) => step === steps[0]);
    const latest = steps.length > 1 ? samples.filter(({ step }) => step === steps.at(-1)) : [];
    this.samples.style.setProperty("--columns", Math.max(first.length, 4));
    this.samples.replaceChildren(
      ...[...first, ...latest].map(({ file, prompt, step, seed }) => {
        const caption = text("sample", { prompt, step, seed });
        const url = sampleUrl(this.#job.id, file);
        return element(
          "a",
          { href: url, target: "_blank", title: caption },
          element("img", { src: url, alt: caption, draggable: false }),
        );
      }),
    );
  }

  /** A button of what is already being done stays, out of reach, so that the panel does not jump. */
  #showButtons(actions, stopping) {
    this.buttons.replaceChildren(
      ...actions.map((action) =>
        element(
          "button",
          {
            type: "button",
            className: `ea-${action}`,
            title: text(`action.${action}.hint`),
            disabled: stopping === action || (stopping && action === "pause"),
            onclick: () => this.#do(action),
          },
          text(`action.${action}`),
        ),
      ),
    );
  }

  async #do(action) {
    const { id } = this.#job;
    for (const button of this.buttons.children) button.disabled = true;
    try {
      jobs.put(await act(id, action));
    } catch (error) {
      await jobs.refresh(id);
      this.sentence.textContent = error.message;
    }
    this.#showButtons(ACTIONS[this.#job.state] ?? [], this.#job.stopping);
  }
}

/** What is going on, in one sentence: the error, or where the LoRA is, or the phase before the first step. */
function sentence({ state, error, message, name, lora, step }) {
  if (error) return error;
  if (state === "completed") return text("done", { lora: lora ?? name });
  if (state === "running" && step) return "";
  return message ?? "";
}

function timeLeft(seconds) {
  if (!Number.isFinite(seconds) || seconds <= 0) return "";
  const minutes = Math.floor(seconds / 60);
  return minutes ? text("minutesLeft", { minutes, seconds: Math.round(seconds % 60) }) : text("secondsLeft", { seconds: Math.ceil(seconds) });
}
