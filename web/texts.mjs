// The pack's words in the user's language. They live in locales/<language>/main.json, which the server merges into /i18n.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};

/** Fetch the texts; English fills what a language lacks. */
export async function loadTexts() {
  const response = await api.fetchApi("/i18n");
  const all = response.ok ? await response.json() : {};
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  texts = { ...all.en?.eraseAnything, ...all[language]?.eraseAnything };
}

/** A text by its key; `{name}` in it is replaced by the values' name. */
export function text(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
