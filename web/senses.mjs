// The meanings that WordNet has for the phrase of a Concept node: the chosen one is marked, clicking another chooses it.
import { setWidget } from "./canvas.mjs";
import { getSenses } from "./concept_api.mjs";
import { after, element, redraw } from "./dom.mjs";
import { text } from "./texts.mjs";
import { fetchButton } from "./wordnet.mjs";

const SHOWN = 3; // before "and N more"
const PAUSE = 400; // ms without a key after which the phrase counts as typed

/** `fetched` is called when WordNet was missing and is there now. */
export function senseList(node, fetched) {
  const list = element("div", { className: "ea-senses", role: "group", "aria-label": text("senses") });
  const [phrase, sense] = ["phrase", "sense"].map((name) => node.widgets.find((widget) => widget.name === name));
  let asked = ""; // the phrase whose meanings are shown or on their way
  let senses = [];
  let all = false; // whether more than the first few are shown
  let timer = 0;

  const choose = (number) => setWidget(sense, number);

  function draw() {
    const few = all ? senses : senses.filter(({ number }) => number <= SHOWN || number === sense.value);
    const more = senses.length - few.length;
    redraw(list, ...few.map((found) => entry(found, found.number === sense.value, choose)), more > 0 && moreButton(more));
  }

  function mark() {
    if (senses.length) draw(); // else the list holds a sentence
  }

  function moreButton(more) {
    const onclick = () => {
      all = true;
      draw();
    };
    return element("button", { type: "button", className: "ea-more", onclick }, text("words.more", { more }));
  }

  /** WordNet's data are missing, or could not be fetched. */
  function failed(sentence) {
    tell(sentence);
    list.append(fetchButton(() => Promise.all([ask(phrase.value), fetched()]), failed));
  }

  const tell = (...told) => list.replaceChildren(element("p", { className: "ea-sentence" }, ...told));

  async function ask(words) {
    words = words.trim();
    if (words === asked) return;
    asked = words;
    senses = [];
    all = false;
    if (!words) return draw();
    try {
      const found = await getSenses(words);
      if (words !== asked) return; // another phrase was typed meanwhile
      senses = found;
      if (found.length) draw();
      else tell(text("senses.none", { phrase: words }));
    } catch (error) {
      if (words !== asked) return;
      asked = ""; // so that it is asked again
      if (error.missing === "wordnet") failed(error.message);
      else tell(error.message);
    }
  }

  let known = phrase.value;
  after(phrase, "callback", () => {
    if (phrase.value === known) return;
    known = phrase.value;
    if (sense.value !== 1) choose(1); // the number was one of the other phrase's meanings
    clearTimeout(timer);
    timer = setTimeout(() => ask(phrase.value), PAUSE);
  });
  after(sense, "callback", mark);
  after(node, "onConfigure", () => {
    known = phrase.value;
    ask(phrase.value);
    mark();
  });
  after(node, "onExecuted", (output) => {
    const run = output?.concept?.[0]; // what was typed, or came over a link
    if (run) ask(node.isInputConnected?.(node.findInputSlot("phrase")) ? run.phrase : phrase.value);
  });
  after(node, "onRemoved", () => clearTimeout(timer));
  setTimeout(() => ask(phrase.value)); // a new node has its default phrase; a loaded one is configured by then
  return list;
}

function entry({ number, gloss, words, visual }, chosen, choose) {
  return element(
    "button",
    {
      type: "button",
      className: `ea-sense${visual ? "" : " ea-unseen"}`,
      title: [words.join(", "), gloss, visual ? "" : text("senses.unseen")].filter(Boolean).join("\n\n"),
      "aria-pressed": chosen,
      onclick: () => choose(number),
    },
    element("span", { className: "ea-label" }, String(number)),
    element("span", { className: "ea-gloss" }, gloss),
  );
}
