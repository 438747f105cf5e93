// Heatmaps to explore: point at a word to see where it is read, point at a pixel to see which words are read there.
import { element } from "./dom.mjs";
import { ALL, HeatmapData, paint } from "./heatmap_data.mjs";
import { text } from "./texts.mjs";

const RANKED = 5; // words listed for a pixel
const AXES = ["time", "block", "head"];

export class HeatmapViewer {
  #data = null;
  #at = { time: ALL, block: ALL, head: ALL };
  #pinned = 0; // the word that is shown while none is pointed at
  #shown = 0;
  #chips = [];

  constructor() {
    this.chips = element("div", { className: "ea-chips" });
    this.image = element("img", { alt: "", draggable: false });
    this.canvas = element("canvas", {});
    this.stage = element("div", { className: "ea-stage" }, this.image, this.canvas);
    this.readout = element("p", { className: "ea-sentence ea-readout" });
    this.controls = element("div", { className: "ea-controls" });
    this.element = element("div", { className: "ea-heatmaps" });
    // The graph under the node must not be dragged with a slider.
    for (const part of [this.controls, this.stage, this.chips]) part.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.stage.addEventListener("pointermove", (event) => this.#rank(event));
    this.stage.addEventListener("pointerleave", () => this.#draw());
    this.showNone();
  }

  /** Before the node has ever run. */
  showNone(sentence = text("noHeatmaps")) {
    this.#data = null;
    this.element.replaceChildren(element("p", { className: "ea-sentence" }, sentence));
  }

  /** A figure as the server wrote it. */
  show(figure) {
    this.#data = new HeatmapData(figure);
    this.#at = { time: ALL, block: ALL, head: ALL };
    this.#pinned = this.#shown = this.#clearest();
    this.image.src = figure.image;
    this.image.alt = figure.prompt;
    this.#chips = figure.words.map((word, index) => this.#chip(word, index));
    this.chips.replaceChildren(...this.#chips);
    if (figure.cut) this.chips.append(element("s", { className: "ea-cut", title: text("heat.cut") }, figure.cut));
    this.controls.replaceChildren(...this.#controls(figure));
    this.element.replaceChildren(this.chips, this.stage, this.readout, this.controls);
    this.#draw();
  }

  /** The word of the prompt whose map stands out most from its own mean. */
  #clearest() {
    const contrast = (index) => {
      const map = this.#data.map(index, this.#at);
      return Math.max(...map) - map.reduce((sum, value) => sum + value, 0) / map.length;
    };
    const own = this.#data.words.map((word, index) => index).filter((index) => this.#data.words[index].kind === "word");
    return own.reduce((best, index) => (contrast(index) > contrast(best) ? index : best), 0);
  }

  #chip(word, index) {
    const special = word.kind !== "word";
    return element(
      "button",
      {
        type: "button",
        className: special ? "ea-word ea-special" : "ea-word",
        title: this.#hint(word),
        onpointerenter: () => this.#draw(index),
        onfocus: () => this.#draw(index),
        onpointerleave: () => this.#draw(this.#pinned),
        onblur: () => this.#draw(this.#pinned),
        onclick: () => this.#draw((this.#pinned = index)),
      },
      special ? text(`heat.${word.kind}`) : word.text,
    );
  }

  /** The T5 pieces of a word and the attention it gets. */
  #hint(word) {
    const { tokens } = this.#data.figure;
    const pieces = word.tokens.map((place) => tokens[place]?.piece).filter(Boolean);
    return [pieces.join(" "), text("heat.mass", { mass: percent(word.mass) })].filter(Boolean).join("\n");
  }

  #controls(figure) {
    const sizes = this.#data.sizes;
    const names = { time: figure.detail_times?.map((t) => t.toFixed(2)), block: figure.blocks };
    const sliders = AXES.filter((axis) => sizes[axis] > 1).map((axis) => this.#slider(axis, sizes[axis], names[axis]));
    this.opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, value: figure.opacity, oninput: () => this.#draw() });
    this.colours = element(
      "select",
      { onchange: () => this.#draw() },
      ...Object.keys(this.#data.colours).map((name) => element("option", { value: name, selected: name === figure.colour_map }, text(`colour.${name}`))),
    );
    this.shared = element("input", { type: "checkbox", checked: figure.scale === "shared", onchange: () => this.#draw() });
    this.legend = element("canvas", { className: "ea-legend" });
    this.top = element("output", {});
    return [
      ...sliders,
      labelled("opacity", this.opacity),
      labelled("colours", this.colours),
      labelled("shared", this.shared),
      element("div", { className: "ea-control ea-scale" }, element("span", {}, "0"), this.legend, this.top),
    ];
  }

  /** A slider whose first position is the mean over its axis. */
  #slider(axis, size, names) {
    const value = element("output", {}, text("heat.mean"));
    const slider = element("input", {
      type: "range",
      min: ALL,
      max: size - 1,
      step: 1,
      value: ALL,
      oninput: () => {
        const position = Number(slider.value);
        this.#at[axis] = position;
        value.textContent = position === ALL ? text("heat.mean") : (names?.[position] ?? position);
        this.#draw();
      },
    });
    slider.dataset.axis = axis;
    return labelled(axis, slider, value);
  }

  #ceiling(index) {
    const tops = (indices) => Math.max(...indices.map((each) => Math.max(...this.#data.map(each, this.#at)))) || 1;
    const own = this.#data.words.map((_, each) => each).filter((each) => this.#data.words[each].kind === "word");
    return tops(this.shared.checked && this.#data.words[index].kind === "word" ? own : [index]);
  }

  #draw(index = this.#pinned) {
    if (!this.#data) return;
    this.#shown = index;
    this.#chips.forEach((chip, each) => {
      chip.classList.toggle("ea-shown", each === index);
      chip.setAttribute("aria-pressed", each === this.#pinned);
    });
    const map = this.#data.map(index, this.#at);
    const colours = this.#data.colours[this.colours.value];
    const ceiling = this.#ceiling(index);
    paint(this.canvas, map, this.#data.grid(this.#at), colours, ceiling);
    this.canvas.style.opacity = this.opacity.value;
    paint(this.legend, Float32Array.from({ length: 64 }, (_, i) => i / 63), [1, 64], colours, 1);
    this.top.textContent = percent(ceiling);
    const mass = map.reduce((sum, value) => sum + value, 0) / map.length;
    this.readout.textContent = text("heat.word", { word: this.#name(index), mass: percent(mass) });
  }

  /** Which words the pixel under the pointer reads most. */
  #rank(event) {
    const box = this.stage.getBoundingClientRect();
    const [rows, columns] = this.#data.grid(this.#at);
    const row = Math.min(Math.floor(((event.clientY - box.top) / box.height) * rows), rows - 1);
    const column = Math.min(Math.floor(((event.clientX - box.left) / box.width) * columns), columns - 1);
    if (row < 0 || column < 0) return;
    const cell = row * columns + column;
    const ranked = this.#data.words
      .map((_, index) => [this.#data.map(index, this.#at)[cell], index])
      .sort(([a], [b]) => b - a)
      .slice(0, RANKED);
    this.readout.textContent = ranked.map(([value, index]) => `${this.#name(index)} ${percent(value)}`).join(", ");
  }

  #name(index) {
    const word = this.#data.words[index];
    return word.kind === "word" ? word.text : text(`heat.${word.kind}`);
  }
}

function labelled(key, ...parts) {
  return element("label", { className: "ea-control", title: text(`heat.${key}.hint`) }, element("span", {}, text(`heat.${key}`)), ...parts);
}

const percent = (share) => `${(100 * share).toPrecision(2)} %`;
