// The panel on the Concept nodes: the prompt and every word that belongs to the concept, asked of the server whenever something
// changes, so that nothing happens behind the user's back. A loaded workflow asks anew.
import { setWidget } from "./canvas.mjs";
import { chooseWords, getPresets } from "./concept_api.mjs";
import { wordRows } from "./concept_words.mjs";
import { addPanel, after, element, redraw } from "./dom.mjs";
import { senseList } from "./senses.mjs";
import { text } from "./texts.mjs";
import { fetchButton } from "./wordnet.mjs";
import { isSpelling, kindsIn, withWord, wordsOf } from "./word_lists.mjs";

const PAUSE = 200; // ms without a change after which the words are asked for

/** Erasure Concept: the phrase's meanings, hints, and the words, which can be taken in and left out. */
export function attachConcept(node) {
  const { phrase, kind, template, synonyms, irrelevant, word_seed, sense } = widgetsOf(node);
  synonyms.inputEl.placeholder = text("box.synonyms");
  irrelevant.inputEl.placeholder = text("box.irrelevant");
  const question = () => ({
    phrase: phrase.value,
    kind: kind.value,
    template: template.value,
    synonyms: wordsOf(synonyms.value),
    irrelevant: wordsOf(irrelevant.value),
    word_seed: word_seed.value,
    sense: sense.value,
  });
  const words = wordPanel(node, phrase, question, { kind, synonyms });
  const senses = senseList(node, words.ask);
  addPanel(node, "words", element("div", { className: "ea-concept" }, senses, words.box));
}

/** Preset Concept: its words are the list's. */
export function attachPreset(node) {
  const { preset, word_seed } = widgetsOf(node);
  const question = async () => {
    const found = (await getPresets()).find(({ label }) => label === preset.value);
    return found && { phrase: found.phrase, kind: found.kind, template: found.template, word_seed: word_seed.value };
  };
  addPanel(node, "words", element("div", { className: "ea-concept" }, wordPanel(node, preset, question).box));
}

function widgetsOf(node) {
  return Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]));
}

/**
 * Hints and words, kept true. `subject`: the widget without which nothing is known; `question()`: what the server is asked,
 * nothing where only the run can tell; `kind`, `synonyms`: the widgets that a click on a hint and on a word changes.
 */
function wordPanel(node, subject, question, { kind, synonyms } = {}) {
  const hints = element("div", { className: "ea-hints", role: "status" });
  const words = element("div", { className: "ea-words" });
  const open = new Set();
  let asked = ""; // the question whose answer is shown or on its way
  let latest = 0; // number of the latest answer, asked for or come with a run: an older one that comes later is not shown
  let timer = 0;

  const links = () => (node.inputs ?? []).filter(({ link }) => link != null);
  const linked = (widget) => links().some(({ name }) => name === widget.name);

  function tell(...told) {
    hints.replaceChildren();
    words.replaceChildren(element("p", { className: "ea-sentence" }, ...told));
  }

  function show(concept, remarks, note) {
    const phrase = synonyms && subject.value;
    const draw = () =>
      redraw(
        words,
        ...wordRows(concept, remarks, {
          open,
          onMore: (name) => {
            open.add(name);
            draw();
          },
          onWord: (word, takenIn) => change(synonyms, withWord(synonyms.value, concept.synonyms, word, takenIn)),
          canChange: (word) => synonyms && !linked(synonyms) && !linked(subject) && !isSpelling(word, phrase),
        }),
        note && element("p", { className: "ea-sentence" }, note),
      );
    redraw(hints, ...remarks.hints.map(hintRow));
    draw();
  }

  function hintRow(hint) {
    const kinds = kind && !linked(kind) ? kindsIn(hint, kind.options.values) : [];
    const buttons = kinds.map((name) =>
      element("button", { type: "button", className: "ea-button", onclick: () => change(kind, name) }, text("kind.set", { kind: name })),
    );
    return element("div", { className: "ea-hint" }, element("p", {}, hint), element("div", { className: "ea-buttons" }, ...buttons));
  }

  function change(widget, value) {
    setWidget(widget, value);
    ask();
  }

  async function ask() {
    clearTimeout(timer);
    const names = links().map(({ name, label }) => label ?? name).join(", ");
    const now = JSON.stringify([node.widgets.map(({ value }) => value), names]);
    if (now === asked) return;
    asked = now;
    const number = ++latest;
    if (!words.childElementCount) tell(text("words.asking"));
    try {
      const body = linked(subject) ? null : await question();
      const found = body && (await chooseWords(body));
      if (number !== latest) return;
      if (found) show(found, found.remarks, names && text("words.connected", { inputs: names }));
      else tell(text("noWords"));
    } catch (error) {
      if (number !== latest) return;
      asked = ""; // so that it is asked again
      if (error.missing !== "wordnet") tell(error.message);
      else if (synonyms) words.replaceChildren(); // the list of meanings says it
      else failed(error.message);
    }
  }

  function failed(sentence) {
    tell(sentence);
    words.append(fetchButton(ask, failed));
  }

  function askSoon() {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  }

  for (const widget of node.widgets) after(widget, "callback", askSoon);
  after(node, "onConfigure", askSoon);
  after(node, "onConnectionsChange", askSoon);
  after(node, "onExecuted", (output) => {
    // Where nothing is connected, what is shown is true already, and may be newer.
    if (!output?.concept?.[0] || !links().length) return;
    latest++;
    show(output.concept[0], output.remarks[0]);
  });
  after(node, "onRemoved", () => clearTimeout(timer));
  askSoon(); // a new node has its default phrase; a loaded one is configured by then
  return { box: element("div", { className: "ea-words-box" }, hints, words), ask };
}
