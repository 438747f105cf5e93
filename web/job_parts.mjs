// What node panel and card both show of a job: state, bar, numbers, and one sentence.
import { element } from "./dom.mjs";
import { isEvaluation, secondsLeft } from "./job_facts.mjs";
import { text } from "./texts.mjs";

/** The elements `badge`, `bar`, `steps`, `speed` and `left`; whoever shows them arranges them. */
export class Progress {
  constructor() {
    this.badge = element("span", { className: "ea-state" });
    this.steps = element("span", { className: "ea-steps" });
    this.speed = element("span", { className: "ea-speed" });
    this.left = element("span", { className: "ea-left" });
    this.fill = element("div", { className: "ea-fill" });
    this.bar = element("div", { className: "ea-bar", role: "progressbar", "aria-valuemin": 0 }, this.fill);
  }

  show(job) {
    const { stopping, step = 0, total = 0 } = job;
    const state = job.state === "running" && isEvaluation(job) ? "evaluating" : job.state;
    this.badge.textContent = text(stopping ? `stopping.${stopping}` : `state.${state}`);
    this.steps.textContent = total ? text("steps", { step, total }) : "";
    this.speed.textContent = job.state === "running" ? speed(job.seconds_per_step) : "";
    this.left.textContent = timeLeft(secondsLeft(job));
    this.fill.style.width = total ? `${(100 * step) / total}%` : "0";
    this.bar.setAttribute("aria-valuemax", total);
    this.bar.setAttribute("aria-valuenow", step);
    this.bar.setAttribute("aria-valuetext", [this.steps.textContent, this.left.textContent].join(" ").trim());
    this.bar.setAttribute("aria-label", text(isEvaluation(job) ? "progress.evaluation" : "progress", { name: job.name ?? "" }));
  }

  clear() {
    for (const part of [this.badge, this.steps, this.speed, this.left]) part.textContent = "";
  }
}

/** What is going on, in one sentence: the error, or where the LoRA is, or what is done besides training steps. */
export function sentence({ kind, state, error, message = "", name, lora, phase, step }) {
  if (state === "unknown") return "";
  if (error) return error;
  if (state === "completed") return isEvaluation({ kind }) ? text("evaluated", { name }) : text("done", { lora: lora ?? name });
  if (state !== "running") return message;
  const known = ["encode", "bank", "samples", "save", "paint"].includes(phase);
  if (!known) return step ? "" : message;
  const count = message.match(/(\d+) \/ (\d+)/); // of the phase, as in "bank 3 / 24"
  return count ? text("phase.count", { phase: text(`phase.${phase}`), done: count[1], all: count[2] }) : text(`phase.${phase}`);
}

function speed(seconds) {
  if (!(seconds > 0)) return "";
  if (seconds >= 1) return text("secondsPerStep", { seconds: seconds.toPrecision(2) });
  return text("stepsPerSecond", { steps: (1 / seconds).toPrecision(2) });
}

function timeLeft(seconds) {
  if (seconds === undefined) return "";
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return text("hoursLeft", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
  if (minutes) return text("minutesLeft", { minutes, seconds: Math.floor(seconds % 60) });
  return text("secondsLeft", { seconds: Math.ceil(seconds) });
}
