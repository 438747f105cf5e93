// Client of the pack's HTTP routes about jobs. The only file that knows their addresses and the shape of their answers.
import { api } from "../../scripts/api.js";

const ROOT = "/erase_anything/v1/jobs";

/** The JSON of an answer; throws the server's sentence, with what is `missing` where something can be fetched. */
export async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.error ?? `${response.status} ${response.statusText}`);
    throw Object.assign(error, { missing: body.missing });
  }
  return body;
}

/** All jobs the server knows, newest first, without their samples. */
export async function listJobs() {
  return (await answer(await api.fetchApi(ROOT, { cache: "no-store" }))).jobs;
}

/** One job as it is now. */
export async function getJob(id) {
  return answer(await api.fetchApi(`${ROOT}/${encodeURIComponent(id)}`, { cache: "no-store" }));
}

/** Ask for "pause", "resume" or "cancel"; answers with the job as it is after that. */
export async function act(id, action) {
  return answer(
    await api.fetchApi(`${ROOT}/${encodeURIComponent(id)}/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
    }),
  );
}

/** Address of a sample picture. */
export function sampleUrl(id, file) {
  const name = file.split("/").pop();
  return api.apiURL(`${ROOT}/${encodeURIComponent(id)}/samples/${encodeURIComponent(name)}`);
}

/** Call `handle(event)` for every event that any job sends. */
export function onJobEvent(handle) {
  api.addEventListener("erase_anything.job", ({ detail }) => handle(detail));
}

/** Call `handle()` after the connection to the server came back: events may have been missed. */
export function onReconnected(handle) {
  api.addEventListener("reconnected", handle);
}
