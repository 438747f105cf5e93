// The panel on the Concept node: every word that was chosen, so that nothing happens behind the user's back.
import { addPanel, element } from "./dom.mjs";
import { text } from "./texts.mjs";

const SHOWN = 8; // of a kind
const GROUPS = ["synonyms", "irrelevant", "preserve"];

export function attachWords(node) {
  const content = element("div", { className: "ea-words" }, element("p", { className: "ea-sentence" }, text("noWords")));
  addPanel(node, "words", content);

  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    const concept = output?.concept?.[0];
    if (concept) content.replaceChildren(...groups(concept));
  };
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
