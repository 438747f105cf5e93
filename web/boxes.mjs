// Text boxes of several lines: the frontend shows them with a placeholder alone, which is gone once there is text.
import { element } from "./dom.mjs";

/**
 * Put the input's name above each of a node's boxes. The canvas mounts a widget's element as it is; Vue nodes have a box of
 * their own for the type "customtext" and mount the element of a type that they don't know.
 */
export function labelBoxes(node) {
  for (const widget of node.widgets ?? []) {
    const box = widget.element;
    if (widget.type !== "customtext" || box?.tagName !== "TEXTAREA") continue;
    const name = element("span", { className: "ea-label" }, widget.label ?? widget.name);
    // "widget-expands": the mark by which Vue nodes give a row the room that is left
    const label = element("label", { className: "erase-anything ea-box widget-expands" }, name, box);
    label.blur = () => box.blur(); // the canvas takes the focus from a widget's element
    for (const event of ["pointerdown", "pointermove", "pointerup"]) {
      label.addEventListener(event, (happened) => happened.stopPropagation()); // selects text, does not move the node
    }
    box.dataset.captureWheel = "true"; // Vue nodes: the wheel scrolls the box
    widget.element = label;
    widget.type = "erase_anything_text";
  }
}
