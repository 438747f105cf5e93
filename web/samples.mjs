// Sample pictures of a job: a grid with a row per step and a column per prompt and seed, and a viewer that compares two steps.
import { element } from "./dom.mjs";
import { differences, picturesOf } from "./job_facts.mjs";
import { sampleUrl } from "./job_api.mjs";
import { openModal } from "./modal.mjs";
import { text } from "./texts.mjs";

const subjectOf = ({ prompt, seed }) => JSON.stringify([prompt, seed]);
const captionOf = ({ prompt, seed, step }) => text("sample", { prompt, seed, step });

export class Samples {
  #drawn = "";

  /** allSteps: a row for every sampled step, with its number; else the first and the latest alone. */
  constructor({ allSteps = false } = {}) {
    this.allSteps = allSteps;
    this.element = element("div", { className: allSteps ? "ea-samples ea-all-steps" : "ea-samples" });
  }

  show(job) {
    const pictures = picturesOf(job.samples ?? []);
    const key = [job.id, ...pictures.map(({ file }) => file)].join();
    if (key === this.#drawn) return; // drawing again would drop the focus and let the pictures flicker
    this.#drawn = key;
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.file : null;
    const steps = [...new Set(pictures.map(({ step }) => step))];
    const rows = this.allSteps ? steps : [...new Set([steps[0], steps.at(-1)])];
    const subjects = [...new Set(pictures.map(subjectOf))];
    this.element.style.setProperty("--columns", this.allSteps ? subjects.length : Math.max(subjects.length, 4));
    const scrolled = this.element.scrollTop + this.element.clientHeight >= this.element.scrollHeight - 4;
    this.element.replaceChildren(
      ...(this.allSteps ? heads(pictures) : []),
      ...rows.flatMap((step) => this.#row(job, pictures, subjects, step)),
    );
    if (scrolled) this.element.scrollTop = this.element.scrollHeight; // the newest row stays in sight
    if (focused) this.#focus(focused);
  }

  #focus(file) {
    this.element.querySelector(`[data-file="${CSS.escape(file)}"]`)?.focus();
  }

  #row(job, pictures, subjects, step) {
    const cells = subjects.map((subject) => {
      const picture = pictures.find((one) => one.step === step && subjectOf(one) === subject);
      return picture ? this.#button(job, pictures, picture) : element("span", {}); // not rendered yet
    });
    if (!this.allSteps) return cells;
    return [element("span", { className: "ea-row-step", title: text("step", { step }) }, `${step}`), ...cells];
  }

  #button(job, pictures, picture) {
    const caption = captionOf(picture);
    return element(
      "button",
      {
        type: "button",
        title: text("enlarge", { caption }),
        className: "ea-sample",
        "data-file": picture.file,
        // the grid may have been drawn again meanwhile: the browser would give the focus to a button that is gone
        onclick: () => openViewer(job, pictures, picture, () => this.#focus(picture.file)),
      },
      element("img", { src: sampleUrl(job.id, picture.file), alt: caption, draggable: false, loading: "lazy" }),
    );
  }
}

/** Above the columns, what tells their prompts apart; one prompt's seeds stand side by side. */
function heads(pictures) {
  const seeds = new Map(); // prompt → set of seeds
  for (const { prompt, seed } of pictures) seeds.set(prompt, (seeds.get(prompt) ?? new Set()).add(seed));
  const prompts = [...seeds.keys()];
  const labels = differences(prompts).map((label, i) => {
    const head = element("span", { className: "ea-column-prompt", title: prompts[i] }, label);
    head.style.setProperty("--seeds", seeds.get(prompts[i]).size);
    return head;
  });
  return [element("span", {}), ...labels];
}

/** One picture large, with the same prompt and seed at the first step under it and a slider that uncovers it. */
function openViewer(job, pictures, chosen, ended) {
  const before = element("img", { draggable: false });
  const after = element("img", { className: "ea-after", draggable: false });
  const slider = element("input", { type: "range", min: 0, max: 100, step: 1, value: 50, className: "ea-uncover" });
  const sides = [element("span", {}), element("span", {})];
  const divider = element("div", { className: "ea-divider" });
  const compare = element("div", { className: "ea-compare" }, before, after, divider, slider);
  const subjects = [...new Map(pictures.map((one) => [subjectOf(one), one])).values()];
  const subjectChoice = choice(text("viewer.picture"), subjects.map((one) => [subjectOf(one), text("viewer.subject", one)]));
  const stepChoice = choice(text("viewer.step"), []);
  const close = element("button", { type: "button", className: "ea-button" }, text("viewer.close"));
  const dialog = element(
    "dialog",
    { className: "erase-anything ea-viewer", "aria-label": text("viewer.title", { name: job.name }) },
    element("div", { className: "ea-sides" }, ...sides),
    compare,
    element("div", { className: "ea-choices" }, subjectChoice.label, stepChoice.label, close),
  );
  let shown = chosen;

  function show(picture) {
    shown = picture;
    const same = pictures.filter((one) => subjectOf(one) === subjectOf(picture));
    const first = same[0];
    const alone = first.step === picture.step;
    stepChoice.select.replaceChildren(...same.map(({ step }) => element("option", { value: step }, text("step", { step }))));
    stepChoice.select.value = picture.step;
    subjectChoice.select.value = subjectOf(picture);
    for (const [image, one] of [[before, first], [after, picture]]) {
      image.src = sampleUrl(job.id, one.file);
      image.alt = captionOf(one);
    }
    sides[0].textContent = text("step", { step: first.step });
    sides[1].textContent = alone ? "" : text("step", { step: picture.step });
    if (alone && document.activeElement === slider) stepChoice.select.focus(); // it goes, and Escape must reach the dialog
    compare.classList.toggle("ea-alone", alone); // nothing to compare with
    slider.disabled = alone;
    uncover();
  }

  function uncover() {
    compare.style.setProperty("--at", `${slider.value}%`);
    const [from, to] = sides.map((side) => side.textContent);
    slider.setAttribute("aria-label", text("viewer.slider", { from, to }));
    slider.setAttribute("aria-valuetext", text("viewer.share", { share: slider.value, from }));
  }

  slider.oninput = uncover;
  subjectChoice.select.onchange = () => {
    const same = pictures.filter((one) => subjectOf(one) === subjectChoice.select.value);
    show(same.find(({ step }) => step === shown.step) ?? same.at(-1));
  };
  stepChoice.select.onchange = () =>
    show(pictures.find((one) => subjectOf(one) === subjectOf(shown) && one.step === Number(stepChoice.select.value)));
  show(chosen);
  openModal(dialog, close, ended);
  (slider.disabled ? close : slider).focus();
}

function choice(label, options) {
  const select = element("select", {}, ...options.map(([value, name]) => element("option", { value }, name)));
  return { select, label: element("label", {}, element("span", {}, label), select) };
}
