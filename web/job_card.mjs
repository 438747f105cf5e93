// One job as a card in the sidebar: always its state, bar, numbers and buttons; opened, also curves, samples and log.
import { element } from "./dom.mjs";
import { Actions } from "./job_actions.mjs";
import { isTraining } from "./job_facts.mjs";
import { getLog } from "./job_api.mjs";
import { Progress, sentence } from "./job_parts.mjs";
import { jobs } from "./job_store.mjs";
import { Losses } from "./losses.mjs";
import { Samples } from "./samples.mjs";
import { text } from "./texts.mjs";

const LOG_LINES = 40;
const LOG_SECONDS = 3; // between two looks at the log of a running job

export class JobCard {
  #job = null;
  #history = null;
  #stop = null; // ends what an open card watches

  /** toggled(open): called when the user opens or closes it. */
  constructor(id, toggled) {
    this.id = id;
    this.progress = new Progress();
    this.losses = new Losses({ curves: true });
    this.samples = new Samples({ allSteps: true });
    this.rate = element("p", { className: "ea-rate" });
    this.log = new LogTail(id);
    this.sentence = element("p", { className: "ea-sentence" });
    this.actions = new Actions({ onCard: true, say: (words) => this.#say(words) });
    this.name = element("span", { className: "ea-name" });
    this.model = element("p", { className: "ea-model" });
    this.details = element(
      "div",
      { className: "ea-details", id: `ea-details-${id}`, hidden: true },
      section("losses", this.losses.element),
      section("samples", this.samples.element),
      this.rate,
      this.log.element,
    );
    this.toggle = element(
      "button",
      { type: "button", className: "ea-toggle", "aria-expanded": false, "aria-controls": this.details.id },
      element("i", { className: "pi pi-chevron-right", "aria-hidden": true }),
      this.name,
    );
    this.toggle.onclick = () => {
      this.open(!this.isOpen);
      toggled(this.isOpen);
    };
    const { badge, bar, steps, speed, left } = this.progress;
    this.element = element(
      "li",
      { className: "ea-card", "data-job": id },
      element("div", { className: "ea-card-head" }, element("h3", {}, this.toggle), badge),
      this.model,
      bar,
      element("div", { className: "ea-head" }, steps, speed, left),
      this.sentence,
      this.details,
      this.actions.element,
    );
  }

  get isOpen() {
    return !this.details.hidden;
  }

  /** Open or close it; only an open card asks for losses and samples. */
  open(wanted) {
    if (wanted === this.isOpen) return;
    this.details.hidden = !wanted;
    this.toggle.setAttribute("aria-expanded", wanted);
    this.#stop?.();
    this.#stop = null;
    if (!wanted) return;
    this.#stop = jobs.watch(this.id, () => {}); // that is: fetch its samples too
    jobs.history(this.id).then((history) => {
      this.#history = history;
      if (this.#job) this.show(this.#job);
    });
    if (this.#job) this.show(this.#job);
  }

  show(job) {
    const before = this.#job;
    this.#job = job;
    this.element.dataset.state = job.state;
    this.element.dataset.kind = job.kind;
    this.name.textContent = job.concept;
    this.model.textContent = text("model", { model: job.model, name: job.name });
    this.progress.show(job);
    if (sentence(job) !== (before && sentence(before))) this.#say(sentence(job));
    this.actions.show(job);
    if (!this.isOpen) return;
    this.losses.show(job.losses, this.#history);
    this.samples.show(job);
    this.rate.textContent = rate(this.#history?.rates ?? []);
    if (isTraining(job) || job.state !== before?.state) this.log.refresh();
  }

  /** Stop watching; the card is not used again. */
  close() {
    this.#stop?.();
  }

  #say(words) {
    this.sentence.textContent = words;
  }
}

/** The end of what the worker has printed, fetched while it is open. */
class LogTail {
  #asked = 0;

  constructor(id) {
    this.id = id;
    this.lines = element("pre", { tabIndex: 0 });
    const summary = element("summary", {}, text("log"));
    this.element = element("details", { className: "ea-log", ontoggle: () => this.refresh(true) }, summary, this.lines);
  }

  async refresh(now = false) {
    if (!this.element.open || (!now && Date.now() - this.#asked < LOG_SECONDS * 1000)) return;
    this.#asked = Date.now();
    const log = await getLog(this.id).catch((error) => error.message);
    const tail = log.trimEnd().split("\n").slice(-LOG_LINES).join("\n");
    if (tail === this.lines.textContent) return;
    this.lines.textContent = tail || text("log.empty");
    this.lines.scrollTop = this.lines.scrollHeight;
  }
}

function section(name, content) {
  return element("section", {}, element("h4", {}, text(name)), content);
}

/** How often a classifier saw the concept: at first, and in the latest pictures. */
function rate(rates) {
  if (!rates.length) return "";
  const percent = ({ rate }) => Math.round(100 * rate);
  const [first, last] = [rates[0], rates.at(-1)];
  if (first === last) return text("rate", { step: last.step, percent: percent(last) });
  return text("rate.change", { step: last.step, before: percent(first), percent: percent(last) });
}
