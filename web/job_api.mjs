// Client of the pack's HTTP routes about jobs. The only file that knows their addresses and the shape of their answers.
import { api } from "../../scripts/api.js";

const ROOT = "/erase_anything/v1";

/** The server's refusal: `message` is its sentence, `status` the HTTP status, `missing` what can be fetched to mend it. */
class Refused extends Error {
  constructor(message, status, missing) {
    super(message);
    Object.assign(this, { status, missing });
  }
}

/** The JSON of an answer; throws Refused. */
export async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(body.error ?? `${response.status} ${response.statusText}`, response.status, body.missing);
  return body;
}

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(await api.fetchApi(`${ROOT}${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function get(path) {
  return answer(await api.fetchApi(`${ROOT}${path}`, { cache: "no-store" }));
}

const jobPath = (id, part = "") => `/jobs/${encodeURIComponent(id)}${part}`;

/** {jobs: all the server knows, newest first, without their samples; queue: ids of the waiting ones; settings of the queue}. */
export async function listJobs() {
  return get("/jobs");
}

/** One job as it is now. */
export async function getJob(id) {
  return get(jobPath(id));
}

/** A job's events with numbers above `since`. */
export async function getEvents(id, since = 0) {
  return (await get(jobPath(id, `/events?since=${since}`))).events;
}

/** The end of what the worker has printed. */
export async function getLog(id) {
  return (await get(jobPath(id, "/log"))).log;
}

/** What the job was asked to do: {model, precision, files, concept, config, name}. */
export async function getRequest(id) {
  return get(jobPath(id, "/request"));
}

/** Every training setting with its default. */
export async function getDefaults() {
  return (await get("/config")).config;
}

/**
 * Ask for "pause", "resume", "cancel", …; `body` says more where the action takes more. Answers with the job as it is after
 * that, with {deleted: id}, or with {queue: ids}.
 */
export async function act(id, action, body = {}) {
  return post(jobPath(id, `/${action}`), body);
}

/** Change settings of the queue ({slots, wait_for_memory}, each optional). */
export async function changeSettings(settings) {
  return post("/settings", settings);
}

/** Address of a sample picture. */
export function sampleUrl(id, file) {
  return api.apiURL(`${ROOT}${jobPath(id, `/samples/${encodeURIComponent(file.split("/").pop())}`)}`);
}

/** Address of a completed job's LoRA. */
export function loraUrl(id) {
  return api.apiURL(`${ROOT}${jobPath(id, "/lora")}`);
}

/** Address of a completed evaluation's report, a page. */
export function reportUrl(id) {
  return api.apiURL(`${ROOT}${jobPath(id, "/report")}`);
}

/** Address of a file that a node has saved: {filename, subfolder, type}. */
export function outputUrl(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

/** Call `handle(event)` for every event that any job sends. */
export function onJobEvent(handle) {
  api.addEventListener("erase_anything.job", ({ detail }) => handle(detail));
}

/** Call `handle()` after the connection to the server came back: events may have been missed. */
export function onReconnected(handle) {
  api.addEventListener("reconnected", handle);
}
