// Advanced widgets: out of sight until the user asks for them, and remembered with the workflow (node.showAdvanced).
//
// The frontend of ComfyUI 0.3.75 takes the mark from a node's definition into `widget.options`, but its canvas looks for it on
// the widget, and its Vue nodes don't look at all. Here both learn of it. A frontend that puts the mark on the widget by itself
// needs none of this.
import { addPanel, after, element } from "./dom.mjs";
import { text } from "./texts.mjs";

const GAP = 4; // pixels that the canvas puts between widgets

export function attachAdvanced(node) {
  const advanced = node.widgets?.filter((widget) => widget.options?.advanced) ?? [];
  if (!advanced.length || advanced.some((widget) => widget.advanced)) return;
  for (const widget of advanced) {
    widget.advanced = true; // the canvas hides it now, and has a line for it in the node's menu
    // but it leaves room for a hidden widget, unless that says it needs none; GAP comes between any two
    widget.computeSize = (width) => [width, node.showAdvanced ? LiteGraph.NODE_WIDGET_HEIGHT : -GAP];
  }
  fit();

  const button = element("button", { type: "button", className: "ea-button ea-advanced", onclick: () => node.toggleAdvanced() });
  addPanel(node, "advanced", element("div", { className: "ea-buttons" }, button));

  function show() {
    button.textContent = text(node.showAdvanced ? "advanced.hide" : "advanced.show", { count: advanced.length });
    button.setAttribute("aria-expanded", Boolean(node.showAdvanced));
    // A Vue node has a row for each widget, in their order; it finds out by its rows alone.
    const rows = button.closest(".lg-node-widgets")?.children ?? [];
    const shown = node.widgets.filter(({ type, options }) => type && !options?.hidden && !options?.canvasOnly);
    if (rows.length !== shown.length) return;
    shown.forEach((widget, index) => (rows[index].style.display = widget.advanced && !node.showAdvanced ? "none" : ""));
  }

  /** The canvas makes room by itself, but never takes it back. */
  function fit() {
    node.setSize([node.size[0], node.computeSize()[1]]);
  }

  after(node, "toggleAdvanced", () => {
    show();
    fit();
  });
  after(node, "onConfigure", show);
  new ResizeObserver(show).observe(button); // whenever a renderer has built the node anew
  show();
}
