// Small helpers for building the pack's own DOM.

/** Create an element: `element("button", { className: "x", onclick: f }, "text", child)`. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name.startsWith("data-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Give `box` other children; the keyboard stays on the button with the same text. */
export function redraw(box, ...children) {
  const focused = box.contains(document.activeElement) && document.activeElement.textContent;
  box.replaceChildren(...children.filter(Boolean));
  if (focused) [...box.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
}

/** Let `then` run after a method of a node or widget, with the same arguments. Others may have hung themselves on it before. */
export function after(object, method, then) {
  const before = object[method];
  object[method] = function (...args) {
    const result = before?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

/** Create an SVG element: `drawing("path", { d: "M0 0" })`. */
export function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Add the pack's style sheet to the page once. */
export function loadStyle() {
  document.head.append(element("link", { rel: "stylesheet", href: new URL("./erase_anything.css", import.meta.url).href }));
}

const MARGIN = 10; // what the frontend leaves around a DOM widget
const SNUG = 16; // pixels between a node's height and its least height below which the user has not made it taller
const LEAST = 24;

/**
 * Hang a panel on a node. Both renderers take DOM widgets: the canvas lays a box of `computedHeight` over the node, Vue nodes
 * put the element into the flow. So the element is an outer box that the renderer may size, around content that sizes itself.
 */
export function addPanel(node, name, content, width = 300) {
  const box = element("div", { className: "erase-anything" }, content);
  let height = LEAST;
  const widget = node.addDOMWidget(name, "erase_anything", box, {
    serialize: false, // not part of the prompt
    hideOnZoom: false,
    getMinHeight: () => height + 2 * MARGIN,
    getMaxHeight: () => height + 2 * MARGIN,
  });
  widget.serialize = false; // not part of the saved workflow
  node.setSize([Math.max(node.size[0], width), node.size[1]]);

  // The canvas asks for a height only when it draws, grows a node by itself and never shrinks it.
  new ResizeObserver(() => {
    if (!content.offsetWidth || content.offsetWidth > node.size[0]) return; // not laid out in the node yet
    const snug = node.size[1] - node.computeSize()[1] < SNUG;
    height = Math.max(content.offsetHeight, LEAST);
    const least = node.computeSize()[1];
    if (snug || node.size[1] < least) node.setSize([node.size[0], least]);
    node.setDirtyCanvas(true, true);
  }).observe(content);
  return widget;
}
