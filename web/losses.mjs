// The losses of a job: one tile each with its name and value, and on request its curve over the steps.
// All curves share a cursor: under the pointer, or moved by the arrow keys, it shows the values of one step.
import { drawing, element } from "./dom.mjs";
import { paths } from "./loss_history.mjs";
import { text } from "./texts.mjs";

const LOSSES = ["esd", "anchor", "gem", "attn", "lora", "rsc"]; // in this order; a method has some of them
const BINS = 80; // about as many as a tile has pixels to tell apart
const HEIGHT = 40;

const short = (value, digits = 3) =>
  value && Math.abs(value) < 1e-3 ? value.toExponential(digits - 2) : `${Number(value.toPrecision(digits))}`;

export class Losses {
  #tiles = new Map(); // name → {element, value, plot, cursor, …}
  #history = null;
  #latest = {};
  #step = null; // of the cursor; null: none, the latest values are shown

  /** curves: draw them too, once show() is given a history. */
  constructor({ curves = false } = {}) {
    this.curves = curves;
    this.element = element("div", { className: "ea-losses" });
    if (!curves) return;
    this.element.onpointermove = (event) => this.#point(event);
    this.element.onpointerleave = () => this.#moveTo(null);
    this.element.onblur = () => this.#moveTo(null);
    this.element.onkeydown = (event) => this.#key(event);
  }

  show(losses = {}, history = null) {
    this.#latest = losses;
    this.#history = this.curves && history?.points.length > 1 ? history : null;
    const names = LOSSES.filter((name) => Number.isFinite(losses[name]));
    if (names.join() !== [...this.#tiles.keys()].join()) {
      this.#tiles = new Map(names.map((name) => [name, this.#tile(name)]));
      this.element.replaceChildren(...[...this.#tiles.values()].map((tile) => tile.element));
    }
    if (this.#history) this.#draw();
    this.#tell();
  }

  #tile(name) {
    const value = element("span", { className: "ea-loss" });
    const label = element("span", { className: "ea-loss-name" }, text(`loss.${name}`), " ");
    return { value, element: element("div", { title: text(`loss.${name}.hint`), "data-loss": name }, label, value) };
  }

  #draw() {
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "slider"); // its value is the step whose losses are told
    this.element.setAttribute("aria-label", text("losses"));
    for (const [name, tile] of this.#tiles) {
      if (!tile.plot) {
        tile.spread = drawing("path", { class: "ea-spread" });
        tile.mean = drawing("path", { class: "ea-mean" });
        tile.cursor = drawing("line", { class: "ea-cursor", y1: 0, y2: HEIGHT });
        const box = { viewBox: `0 0 ${BINS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": true };
        tile.plot = drawing("svg", box, tile.spread, tile.mean, tile.cursor);
        tile.range = [element("span", {}), element("span", {})];
        tile.element.append(element("div", { className: "ea-plot", "aria-hidden": true }, tile.plot, ...tile.range));
      }
      const bins = this.#history.bins(name, BINS);
      if (!bins.length) continue; // told by the job's state, but by none of its events
      const { low, high, mean, spread } = paths(bins, BINS, HEIGHT);
      tile.mean.setAttribute("d", mean);
      tile.spread.setAttribute("d", spread);
      [high, low].forEach((value, i) => (tile.range[i].textContent = short(value, 2)));
    }
  }

  /** Show the values of the cursor's step, or the latest. */
  #tell() {
    const points = this.#history?.points;
    const point = points && this.#step !== null ? points[this.#history.nearest(this.#step)] : null;
    this.element.classList.toggle("ea-pointing", Boolean(point));
    for (const [name, tile] of this.#tiles) {
      const value = (point?.losses ?? this.#latest)[name];
      tile.value.textContent = Number.isFinite(value) ? short(value) : "–";
    }
    if (!points) return;
    const [first, last] = [points[0].step, points.at(-1).step];
    const step = point?.step ?? last;
    const told = [...this.#tiles].map(([name, tile]) => `${text(`loss.${name}`)} ${tile.value.textContent}`).join(", ");
    this.element.setAttribute("aria-valuemin", first);
    this.element.setAttribute("aria-valuemax", last);
    this.element.setAttribute("aria-valuenow", step);
    this.element.setAttribute("aria-valuetext", text("atStep", { step, told }));
    this.element.dataset.step = text("step", { step });
    const x = last > first ? ((step - first) / (last - first)) * BINS : BINS / 2;
    for (const { cursor } of this.#tiles.values()) for (const end of ["x1", "x2"]) cursor?.setAttribute(end, x);
  }

  #moveTo(step) {
    this.#step = step;
    this.#tell();
  }

  #point(event) {
    const plot = event.target.closest?.(".ea-plot");
    if (!plot || !this.#history) return this.#moveTo(null);
    const { points } = this.#history;
    const { left, width } = plot.firstElementChild.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - left) / width, 0), 1);
    this.#moveTo(points[0].step + share * (points.at(-1).step - points[0].step));
  }

  #key(event) {
    if (!this.#history) return;
    const { points } = this.#history;
    const at = this.#history.nearest(this.#step ?? points.at(-1).step);
    const jump = Math.max(1, Math.round(points.length / 10));
    const moves = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - jump,
      PageUp: at + jump,
      Home: 0,
      End: points.length - 1,
    };
    if (event.key === "Escape" && this.#step !== null) this.#moveTo(null);
    else if (event.key in moves) this.#moveTo(points[Math.min(Math.max(moves[event.key], 0), points.length - 1)].step);
    else return;
    event.preventDefault(); // no scrolling, and nothing of it for the canvas
    event.stopPropagation();
  }
}
