// What can be done with a job: a list, and the buttons made of it.
import { addLoraNode, copySettings } from "./canvas.mjs";
import { element } from "./dom.mjs";
import { act, loraUrl, reportUrl } from "./job_api.mjs";
import { askToDelete } from "./job_deletion.mjs";
import { isEvaluation } from "./job_facts.mjs";
import { jobs } from "./job_store.mjs";
import { text } from "./texts.mjs";

/** Ask the server for a change and show what came of it. */
const ask = (action, body) => async (job) => {
  const answer = await act(job.id, action, body);
  if (answer.deleted) jobs.forget(answer.deleted);
  else if (answer.queue) jobs.reorder(answer.queue);
  else if (answer.id) jobs.put(answer); // the job itself, or the new one that was made of it
};

async function deleteJob(job) {
  const body = await askToDelete(job);
  if (body) await ask("delete", body)(job);
}

const trains = (job) => !isEvaluation(job);
const ENDED = ["completed", "failed", "cancelled"];

/**
 * name: its texts are `action.NAME` and `action.NAME.hint`. states: in which it is offered, if also `fits(job)`. run(job):
 * does it; what it throws is shown. href(job): instead of run, a download, or with `page` what opens in a tab. busy(job): it is being done already. cardOnly: too
 * much for a node.
 */
const ACTIONS = [
  {
    name: "pause",
    states: ["queued", "starting", "running"],
    run: ask("pause"),
    busy: (job) => Boolean(job.stopping),
  },
  { name: "resume", states: ["paused", "interrupted", "failed", "cancelled"], run: ask("resume") },
  {
    name: "cancel",
    states: ["queued", "starting", "running", "paused", "interrupted"],
    run: ask("cancel"),
    busy: (job) => job.stopping === "cancel",
  },
  { name: "up", states: ["queued"], fits: ({ place }) => place !== 0, run: ask("move", { to: "up" }), cardOnly: true },
  { name: "down", states: ["queued"], run: ask("move", { to: "down" }), cardOnly: true },
  { name: "cheaper", states: ["failed"], fits: ({ problem }) => problem === "memory", run: ask("retry", { cheaper: true }) },
  { name: "report", states: ["completed"], fits: isEvaluation, href: (job) => reportUrl(job.id), page: true },
  { name: "addLora", states: ["completed"], fits: trains, run: addLoraNode, cardOnly: true },
  { name: "download", states: ["completed"], fits: trains, href: (job) => loraUrl(job.id), cardOnly: true },
  { name: "copySettings", states: ENDED, fits: trains, run: copySettings, cardOnly: true },
  { name: "again", states: ENDED, fits: trains, run: ask("clone", {}), cardOnly: true },
  { name: "measureAgain", states: ENDED, fits: isEvaluation, run: ask("clone", {}), cardOnly: true },
  { name: "delete", states: [...ENDED, "paused", "interrupted"], run: deleteJob, cardOnly: true },
];

export class Actions {
  #job = null;
  #running = null; // the action whose answer is awaited
  #said; // function that shows a sentence

  constructor({ onCard = false, say }) {
    this.element = element("div", { className: "ea-buttons" });
    this.actions = ACTIONS.filter(({ cardOnly }) => onCard || !cardOnly);
    this.#said = say;
  }

  show(job) {
    this.#job = job;
    const offered = this.actions.filter(({ states, fits }) => states.includes(job?.state) && (fits?.(job) ?? true));
    const shown = [...this.element.children].map((button) => button.dataset.action);
    if (shown.join() !== offered.map(({ name }) => name).join()) {
      const hadFocus = this.element.contains(document.activeElement);
      this.element.replaceChildren(...offered.map((action) => this.#button(action)));
      if (hadFocus) this.element.firstElementChild?.focus(); // a keyboard user stays where they were
    }
    for (const button of this.element.children) {
      const action = offered.find(({ name }) => name === button.dataset.action);
      // Out of reach but not disabled: a disabled button loses the focus.
      button.setAttribute("aria-disabled", Boolean(this.#running || action.busy?.(job)));
    }
  }

  #button(action) {
    const { name, href, page } = action;
    const common = { title: text(`action.${name}.hint`), "data-action": name, className: `ea-button ea-${name}` };
    const opens = page ? { target: "_blank", rel: "noopener" } : { download: "" };
    if (href) return element("a", { ...common, href: href(this.#job), ...opens }, text(`action.${name}`));
    return element("button", { ...common, type: "button", onclick: () => this.#do(action) }, text(`action.${name}`));
  }

  async #do(action) {
    const job = this.#job;
    if (this.#running || action.busy?.(job)) return;
    this.#running = action;
    this.show(job);
    let wrong = "";
    try {
      await action.run(job);
    } catch (error) {
      wrong = error.message;
      await jobs.refresh(job.id);
    }
    this.#running = null;
    this.show(this.#job);
    if (wrong) this.#said(wrong);
  }
}
