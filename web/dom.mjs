// Small helpers for building the pack's own DOM.

/** Create an element: `element("button", { className: "x", onclick: f }, "text", child)`. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Add the pack's style sheet to the page once. */
export function loadStyle() {
  document.head.append(element("link", { rel: "stylesheet", href: new URL("./erase_anything.css", import.meta.url).href }));
}

/**
 * Hang a panel on a node. Both renderers take DOM widgets: the canvas lays a box of `computedHeight` over the node, Vue nodes
 * put the element into the flow. So the element is an outer box that the renderer may size, around content that sizes itself.
 */
export function addPanel(node, name, content) {
  const box = element("div", { className: "erase-anything" }, content);
  const widget = node.addDOMWidget(name, "erase_anything", box, {
    serialize: false, // not part of the prompt
    hideOnZoom: false,
    getMinHeight: () => Math.max(content.offsetHeight, 24) + 2 * MARGIN,
    getMaxHeight: () => Math.max(content.offsetHeight, 24) + 2 * MARGIN,
  });
  widget.serialize = false; // not part of the saved workflow
  // The canvas asks for the height only when it draws; a panel that grew must make it draw.
  new ResizeObserver(() => {
    fit(node);
    node.setDirtyCanvas?.(true, true);
  }).observe(content);
  return widget;
}

/** The canvas renderer grows a node for its widgets by itself but never shrinks it; leave a size the user chose alone. */
function fit(node) {
  const least = node.computeSize?.();
  if (least && node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
}

const MARGIN = 10; // what the frontend leaves around a DOM widget
