// What a finished job does to the graph: its LoRA as a node, its settings on a Train node.
import { app } from "../../scripts/app.js";
import { getDefaults, getRequest } from "./job_api.mjs";
import { text } from "./texts.mjs";

const LORA_NODE = "LoraLoader"; // the host's own Load LoRA
const TRAIN_NODE = "EraseAnything_Train";
const WIDGET_OF = { seed: "training_seed" }; // settings whose widget has another name

/** Put a Load LoRA node that has the job's LoRA chosen into the middle of what is seen of the graph. */
export async function addLoraNode(job) {
  let node = LiteGraph.createNode(LORA_NODE);
  if (!choicesOf(node).includes(job.lora)) {
    await app.refreshComboInNodes(); // the page opened before the LoRA was written
    node = LiteGraph.createNode(LORA_NODE);
  }
  if (!choicesOf(node).includes(job.lora)) throw new Error(text("loraGone", { lora: job.lora }));
  set(widgetOf(node, "lora_name"), job.lora);
  place(node);
  changed();
  told(text("toast.loraAdded"), job.lora);
}

/** Give the selected Train node (or the only one, or a new one) the job's training settings; its LoRA's name stays. */
export async function copySettings(job) {
  const [{ config }, defaults] = await Promise.all([getRequest(job.id), getDefaults()]);
  const graph = app.canvas.graph;
  const all = graph.nodes.filter((node) => node.type === TRAIN_NODE);
  const selected = all.filter((node) => node.id in (app.canvas.selected_nodes ?? {}));
  const candidates = selected.length ? selected : all;
  if (candidates.length > 1) throw new Error(text("whichTrainNode"));
  const node = candidates[0] ?? place(LiteGraph.createNode(TRAIN_NODE));
  const left = [];
  for (const [setting, value] of Object.entries(config)) {
    const widget = widgetOf(node, WIDGET_OF[setting] ?? setting);
    if (widget) set(widget, Array.isArray(value) ? value.join(", ") : value); // a list is typed as text
    else if (JSON.stringify(value) !== JSON.stringify(defaults[setting])) left.push(setting);
  }
  changed();
  told(text("toast.settingsCopied"), left.length ? text("toast.settingsLeft", { left: left.join(", ") }) : job.name);
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function choicesOf(node) {
  const { values } = widgetOf(node, "lora_name").options;
  return typeof values === "function" ? values() : values;
}

function set(widget, value) {
  widget.value = value;
  widget.callback?.(value);
}

/** Add a node in the middle of the view, beside what has been put there before, and select it. */
function place(node) {
  const { canvas } = app;
  const [left, top, width, height] = canvas.ds.visible_area;
  const [x, y] = [left + (width - node.size[0]) / 2, top + (height - node.size[1]) / 2];
  const taken = (shift) => canvas.graph.nodes.some(({ pos }) => Math.hypot(pos[0] - x - shift, pos[1] - y - shift) < 20);
  let shift = 0;
  while (taken(shift)) shift += 30;
  node.pos = [x + shift, y + shift];
  canvas.graph.add(node);
  canvas.selectNode?.(node);
  return node;
}

/** A change made by code goes unnoticed; say so, or it can neither be undone nor survives a reload. */
/** Give a widget a value as typing it would. */
export function setWidget(widget, value) {
  set(widget, value);
  changed();
}

function changed() {
  app.canvas.setDirty(true, true);
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState();
}

function told(summary, detail) {
  app.extensionManager.toast.add({ severity: "success", summary, detail, life: 4000 });
}
