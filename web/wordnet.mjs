// The button that lets the server fetch WordNet's data: when it is clicked, and never otherwise.
import { fetchWordnet } from "./concept_api.mjs";
import { element } from "./dom.mjs";
import { text } from "./texts.mjs";

/** `fetched`: called when the data are there; `failed`: called with a sentence when they could not be fetched. */
export function fetchButton(fetched, failed) {
  const onclick = async () => {
    button.disabled = true;
    button.textContent = text("wordnet.fetching");
    try {
      await fetchWordnet();
    } catch (error) {
      return failed(error.message);
    }
    await fetched();
  };
  const properties = { type: "button", className: "ea-button", title: text("wordnet.fetch.hint"), onclick };
  const button = element("button", properties, text("wordnet.fetch"));
  return element("div", { className: "ea-buttons" }, button);
}
