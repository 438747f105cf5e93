// Draws the words of a concept: its prompt, what means the same, what was left out, what is unrelated, what is kept.
import { element } from "./dom.mjs";
import { text } from "./texts.mjs";

const SHOWN = { preserve: 3 }; // of a group, before "and N more"; prompts are long
const SHOWN_ELSE = 8;

/**
 * One row per kind of word. `open`: the groups that are shown whole; `onMore` is called with one to open. `onWord(word,
 * takenIn)` is called for a word that shall be erased too, or no longer; `canChange(word)` says for which it may be.
 */
export function wordRows(concept, remarks, { open, onMore, onWord, canChange }) {
  const synonyms = concept.synonyms.map((word) => (canChange(word) ? choice(word, true, "words.leave", onWord) : plain(word)));
  const leftOut = remarks.left_out.map(({ word, reason }) => {
    const why = text(`reason.${reason || "yours"}`);
    return canChange(word) ? choice(word, false, "words.take", onWord, why) : plain(word, "ea-word ea-left-out", why);
  });
  const row = (name, words) => group(name, words, open.has(name), onMore);
  return [
    row("prompt", [plain(remarks.prompt)]),
    row("synonyms", synonyms),
    leftOut.length ? row("leftOut", leftOut) : null,
    row("irrelevant", concept.irrelevant.map((word) => plain(word))),
    row("preserve", concept.preserve.map((prompt) => plain(prompt || text("words.emptyPrompt")))),
  ].filter(Boolean);
}

function group(name, words, whole, onMore) {
  const label = text(`words.${name}`);
  const shown = whole ? words : words.slice(0, SHOWN[name] ?? SHOWN_ELSE);
  const more = words.length - shown.length;
  return element(
    "div",
    { className: `ea-group ea-${name}`, role: "group", "aria-label": label, title: text(`words.${name}.hint`) },
    element("span", { className: "ea-label" }, label),
    ...(words.length ? shown : [plain(text("words.none"))]),
    more ? element("button", { type: "button", className: "ea-more", onclick: () => onMore(name) }, text("words.more", { more })) : null,
  );
}

function plain(word, className = "ea-word", title = "") {
  return element("span", { className, title }, word);
}

/** A word that a click takes in or leaves out. */
function choice(word, takenIn, hint, onWord, why) {
  return element(
    "button",
    {
      type: "button",
      className: `ea-word ${takenIn ? "" : "ea-left-out"}`,
      title: [why, text(hint)].filter(Boolean).join("\n\n"),
      "aria-pressed": takenIn,
      onclick: () => onWord(word, !takenIn),
    },
    word,
  );
}
