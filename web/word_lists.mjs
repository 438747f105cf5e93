// Lists of words in a text box, as the server reads them, and the kinds that a hint names. No DOM.

/** null for an empty box (words are chosen), [] for a single "-" (no words). */
export function wordsOf(text) {
  const words = text.split(/[,\n]/).map((word) => word.trim().replace(/\s+/g, " ")).filter(Boolean);
  if (!words.length) return null;
  return words.length === 1 && words[0] === "-" ? [] : words;
}

/** The box's text with a word taken in, or left out. `chosen`: the words that an empty box stands for. */
export function withWord(text, chosen, word, takenIn) {
  const others = (wordsOf(text) ?? chosen).filter((other) => !same(other, word));
  return (takenIn ? [...others, word] : others).join(text.includes("\n") ? "\n" : ", ") || "-";
}

/** Whether a word stands in the phrase itself as another spelling ("Coca-Cola | Coke"), so that no box can take it out. */
export function isSpelling(word, phrase) {
  return phrase.split("|").some((spelling) => same(spelling.trim(), word));
}

/** The kinds that a hint of the server says to choose. */
export function kindsIn(hint, kinds) {
  const named = /choose the kind ([\w ]+)/.exec(hint)?.[1].split(" ") ?? [];
  return kinds.filter((kind) => named.includes(kind));
}

function same(one, other) {
  return one.toLowerCase() === other.toLowerCase();
}
