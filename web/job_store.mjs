// What the page knows about jobs: the server's list when the page opens, kept up to date by events after that.
import { getEvents, getJob, listJobs, onJobEvent, onReconnected } from "./job_api.mjs";
import { merged } from "./job_facts.mjs";
import { LossHistory } from "./loss_history.mjs";

class JobStore {
  settings = null; // of the queue, once the server has told them
  #jobs = new Map(); // id → job
  #watchers = new Map(); // id → set of functions
  #allWatchers = new Set();
  #histories = new Map(); // id → {history, heard: last event's number, reading: promise while events are read}

  /** Start listening; the server's word is asked again after a lost connection. */
  async follow() {
    onJobEvent((event) => this.#take(event));
    onReconnected(() => this.load().catch(() => {})); // gone again: the next reconnection asks again
    await this.load();
  }

  /** Ask the server for all jobs, and for whatever else somebody looks at. Throws where it does not answer. */
  async load() {
    const { jobs: listed, queue, settings, problems = {} } = await listJobs();
    this.settings = settings;
    const there = new Set(listed.map(({ id }) => id));
    for (const id of this.#jobs.keys()) if (!there.has(id)) this.forget(id);
    for (const job of listed) this.put(job);
    this.reorder(queue);
    // the list has every job: one that is not in it is gone, and asking for it would be answered with 404
    for (const id of this.#watchers.keys()) there.has(id) || id in problems ? this.refresh(id) : this.forget(id);
    for (const id of this.#histories.keys()) this.#catchUp(id);
  }

  /** All known jobs, in no order. */
  all() {
    return [...this.#jobs.values()];
  }

  /** Call `show(job)` now and at every change of the job; returns a function that ends it. */
  watch(id, show) {
    if (!this.#watchers.has(id)) this.#watchers.set(id, new Set());
    this.#watchers.get(id).add(show);
    const job = this.#jobs.get(id);
    if (job) show(job);
    if (!job?.samples) this.refresh(id); // the list tells jobs without their samples
    return () => {
      this.#watchers.get(id)?.delete(show);
      if (!this.#watchers.get(id)?.size) this.#watchers.delete(id);
    };
  }

  /** Call `changed(job, before)` at every change of any job: `before` is undefined for a new one, `job` for one deleted. */
  watchAll(changed) {
    this.#allWatchers.add(changed);
    return () => this.#allWatchers.delete(changed);
  }

  /** Ask the server for one job. A job it no longer knows is shown as gone. */
  async refresh(id) {
    try {
      this.put(await getJob(id));
    } catch (error) {
      if (error.status === 404) this.forget(id); // anything else: the server is away, and reconnecting asks again
    }
  }

  /** The newest job for which `fits(job)`, or undefined. */
  async newest(fits) {
    return (await listJobs()).jobs.find(fits);
  }

  /** Keep a job as the server told it and show it to all who watch. */
  put(told) {
    const before = this.#jobs.get(told.id);
    const job = merged(before, told);
    this.#jobs.set(job.id, job);
    for (const show of this.#watchers.get(job.id) ?? []) show(job);
    for (const changed of this.#allWatchers) changed(job, before);
  }

  /** The ids of the waiting jobs in their order, as the server told them. */
  reorder(queue) {
    for (const [place, id] of queue.entries()) {
      const job = this.#jobs.get(id);
      if (job && job.place !== place) this.put({ ...job, place });
    }
  }

  /** Drop a job that is no longer there. */
  forget(id) {
    const before = this.#jobs.get(id);
    this.#jobs.delete(id);
    this.#histories.delete(id);
    for (const show of this.#watchers.get(id) ?? []) show({ ...before, id, state: "unknown" });
    if (before) for (const changed of this.#allWatchers) changed(undefined, before);
  }

  /** The losses of all steps so far; events keep it current from then on. */
  async history(id) {
    if (!this.#histories.has(id)) {
      this.#histories.set(id, { history: new LossHistory() });
      await this.#catchUp(id);
    }
    await this.#histories.get(id)?.reading;
    return this.#histories.get(id)?.history;
  }

  /** Read the events that a history lacks, until none that was heard of in the meantime is missing. */
  async #catchUp(id) {
    const entry = this.#histories.get(id);
    entry.reading ??= (async () => {
      let before;
      do {
        before = entry.history.last;
        for (const event of await getEvents(id, before)) entry.history.take(event);
      } while (entry.history.last < entry.heard && entry.history.last > before);
    })()
      .catch(() => {}) // the server is away, and reconnecting asks again
      .finally(() => (entry.reading = undefined));
    await entry.reading;
    const job = this.#jobs.get(id);
    if (job) this.put(job);
  }

  #record(id, event) {
    const entry = this.#histories.get(id);
    if (!entry) return;
    entry.heard = event.n;
    if (entry.reading) return;
    if (entry.history.misses(event)) this.#catchUp(id);
    else entry.history.take(event);
  }

  #take({ job: id, ...event }) {
    if (event.type === "list") return void this.load().catch(() => {}); // away again: reconnecting asks again
    this.#record(id, event);
    const job = this.#jobs.get(id);
    if (!job) {
      this.refresh(id); // a new one
    } else if (event.type === "step") {
      const { step, total, losses, seconds_per_step } = event;
      this.put({ ...job, state: "running", step, total, losses, seconds_per_step, phase: "train", message: "" });
    } else if (event.type === "sample") {
      if (!job.samples) return void (this.#watchers.has(id) && this.refresh(id)); // nobody has asked for them yet
      this.put({ ...job, samples: [...job.samples.filter((kept) => kept.file !== event.file), event] });
    } else if (event.type === "phase") {
      this.put({ ...job, phase: event.phase, message: event.message });
    } else {
      this.refresh(id); // a new state: the server has the whole picture
    }
  }
}

export const jobs = new JobStore();
