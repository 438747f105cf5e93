// Client of the pack's HTTP routes about concepts.
import { api } from "../../scripts/api.js";
import { answer } from "./job_api.mjs";

const ROOT = "/erase_anything/v1";

/** All meanings of a phrase in WordNet, those that can be seen first; the error has `missing: "wordnet"` without its data. */
export async function getSenses(phrase) {
  return (await answer(await api.fetchApi(`${ROOT}/senses?phrase=${encodeURIComponent(phrase)}`, { cache: "no-store" }))).senses;
}

/** The complete concept: what is null is chosen; `remarks` has its `prompt`, the words `left_out` and `hints`. */
export async function chooseWords(concept) {
  return answer(await post("/concept", concept));
}

/** The presets, each with the `label` that Preset Concept lists it by. */
export async function getPresets() {
  return (await answer(await api.fetchApi(`${ROOT}/presets`))).presets;
}

/** Let the server fetch WordNet's data. Only ever at the user's wish. */
export async function fetchWordnet() {
  await answer(await post("/wordnet", {}));
}

function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return api.fetchApi(`${ROOT}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
}
