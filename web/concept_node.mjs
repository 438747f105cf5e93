// The panel on the Concept node: every word that was chosen, so that nothing happens behind the user's back.
import { addPanel, element } from "./dom.mjs";
import { text } from "./texts.mjs";

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

/** One row per kind of word; a kind without words says so. */
function groups(concept) {
  return GROUPS.filter((group) => concept[group]).map((group) =>
    element(
      "div",
      { className: `ea-group ea-${group}`, title: text(`words.${group}.hint`) },
      element("span", { className: "ea-label" }, text(`words.${group}`)),
      ...(concept[group].length ? concept[group] : [text("words.none")]).map((word) => element("span", { className: "ea-word" }, word)),
    ),
  );
}
