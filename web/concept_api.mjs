// Client of the pack's HTTP routes about concepts.
import { api } from "../../scripts/api.js";
import { answer } from "./job_api.mjs";

const ROOT = "/erase_anything/v1";

/** All meanings of a phrase in WordNet, those that can be seen first; the error has `missing: "wordnet"` without its data. */
export async function getSenses(phrase) {
  return (await answer(await api.fetchApi(`${ROOT}/senses?phrase=${encodeURIComponent(phrase)}`, { cache: "no-store" }))).senses;
}

/** Let the server fetch WordNet's data. Only ever at the user's wish. */
export async function fetchWordnet() {
  await answer(
    await api.fetchApi(`${ROOT}/wordnet`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
    }),
  );
}
