// The panel on the Concept nodes: every word that was chosen, so that nothing happens behind the user's back.
import { addPanel, after, element } from "./dom.mjs";
import { senseList } from "./senses.mjs";
import { text } from "./texts.mjs";

const SHOWN = 8; // of a kind
const GROUPS = ["synonyms", "irrelevant", "preserve"];

/** The words alone. `above`: what the panel shows over them. */
export function attachWords(node, ...above) {
  const words = element("div", { className: "ea-words" }, element("p", { className: "ea-sentence" }, text("noWords")));
  addPanel(node, "words", element("div", { className: "ea-concept" }, ...above, words));
  after(node, "onExecuted", (output) => {
    const concept = output?.concept?.[0];
    if (concept) words.replaceChildren(...groups(concept));
  });
}

/** The phrase's meanings and, below, the words. */
export function attachConcept(node) {
  attachWords(node, senseList(node));
}

/** One row per kind of word. A kind without words says so; of many prompts the first few are shown, the rest counted. */
function groups(concept) {
  return GROUPS.filter((group) => concept[group]).map((group) => {
    const words = concept[group];
    const more = words.length - SHOWN;
    return element(
      "div",
      { className: `ea-group ea-${group}`, title: `${text(`words.${group}.hint`)}\n\n${words.join("\n")}`.trim() },
      element("span", { className: "ea-label" }, text(`words.${group}`)),
      ...(words.length ? words.slice(0, SHOWN) : [text("words.none")]).map((word) => element("span", { className: "ea-word" }, word)),
      more > 0 ? element("span", { className: "ea-label" }, text("words.more", { more })) : null,
    );
  });
}
