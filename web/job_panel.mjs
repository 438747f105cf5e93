// One job as a small panel on a node: state, bar, step, time left, losses, first and last samples, buttons.
import { element } from "./dom.mjs";
import { Actions } from "./job_actions.mjs";
import { Progress, sentence } from "./job_parts.mjs";
import { Losses } from "./losses.mjs";
import { Samples } from "./samples.mjs";
import { text } from "./texts.mjs";

export class JobPanel {
  /** none: what it says before the node has ever run, as a text's name. */
  constructor(none = "noJob") {
    this.none = none;
    this.progress = new Progress();
    this.losses = new Losses();
    this.samples = new Samples();
    this.sentence = element("p", { className: "ea-sentence", "aria-live": "polite" });
    this.actions = new Actions({ say: (words) => (this.sentence.textContent = words) });
    const { badge, steps, left, bar } = this.progress;
    this.element = element(
      "div",
      { className: "ea-panel" },
      element("div", { className: "ea-head" }, badge, steps, left),
      bar,
      this.losses.element,
      this.samples.element,
      this.sentence,
      this.actions.element,
    );
    this.showNone();
  }

  /** Before the node has ever run. */
  showNone() {
    this.element.dataset.state = "none";
    this.progress.clear();
    this.losses.show();
    this.samples.show({});
    this.actions.show(null);
    this.sentence.textContent = text(this.none);
  }

  show(job) {
    this.element.dataset.state = job.state;
    this.element.dataset.job = job.id;
    this.progress.show(job);
    this.losses.show(job.losses);
    this.samples.show(job);
    this.actions.show(job);
    const words = sentence(job);
    if (this.sentence.textContent !== words) this.sentence.textContent = words; // a screen reader says it once
  }
}
