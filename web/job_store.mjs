// What the page knows about jobs: asked from the server when a job is first wanted, kept up to date by events after that.
import { getJob, listJobs, onJobEvent, onReconnected } from "./job_api.mjs";

class JobStore {
  #jobs = new Map(); // id → job
  #watchers = new Map(); // id → set of functions

  /** Start listening; the server's word is asked again after a lost connection. */
  follow() {
    onJobEvent((event) => this.#take(event));
    onReconnected(() => {
      for (const id of this.#watchers.keys()) this.refresh(id);
    });
  }

  /** Call `show(job)` now and at every change of the job; returns a function that ends it. */
  watch(id, show) {
    if (!this.#watchers.has(id)) this.#watchers.set(id, new Set());
    this.#watchers.get(id).add(show);
    if (this.#jobs.has(id)) show(this.#jobs.get(id));
    else this.refresh(id);
    return () => {
      this.#watchers.get(id)?.delete(show);
      if (!this.#watchers.get(id)?.size) this.#watchers.delete(id);
    };
  }

  /** Ask the server for one job. A job it no longer knows is shown as gone. */
  async refresh(id) {
    try {
      this.put(await getJob(id));
    } catch {
      this.put({ ...this.#jobs.get(id), id, state: "unknown" });
    }
  }

  /** The newest job for which `fits(job)`, or undefined. */
  async newest(fits) {
    return (await listJobs()).find(fits);
  }

  /** Keep a job as the server told it and show it to all who watch. */
  put(job) {
    this.#jobs.set(job.id, job);
    for (const show of this.#watchers.get(job.id) ?? []) show(job);
  }

  #take({ job: id, ...event }) {
    const job = this.#jobs.get(id);
    if (!job) {
      if (this.#watchers.has(id)) this.refresh(id);
    } else if (event.type === "step") {
      const { step, total, losses, seconds_per_step } = event;
      this.put({ ...job, state: "running", step, total, losses, seconds_per_step });
    } else if (event.type === "sample") {
      this.put({ ...job, samples: [...(job.samples ?? []).filter((kept) => kept.file !== event.file), event] });
    } else if (event.type === "phase") {
      this.put({ ...job, phase: event.phase, message: event.message });
    } else {
      this.refresh(id); // a new state: the server has the whole picture
    }
  }
}

export const jobs = new JobStore();
