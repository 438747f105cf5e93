// The panel on the Train and Evaluate nodes: which job it shows, and how it finds that job again after a reload.
import { app } from "../../scripts/app.js";
import { addPanel } from "./dom.mjs";
import { JobPanel } from "./job_panel.mjs";
import { isEvaluation } from "./job_facts.mjs";
import { jobs } from "./job_store.mjs";

// Kept in the node's properties, so it is saved with the workflow and travels with the node.
const JOB = "erase_anything_job";

const shown = new WeakMap(); // node → id of the job it shows
const followers = new Set();

/** The id of the job that a Train or Evaluate node shows, or undefined. */
export const jobShownBy = (node) => shown.get(node);

/** Call `changed()` whenever a Train node shows another job; returns a function that ends it. */
export function onJobShown(changed) {
  followers.add(changed);
  return () => followers.delete(changed);
}

/** On the Train node. */
export const attachJobPanel = (node) => attach(node, new JobPanel(), (job) => !isEvaluation(job));

/** On the Evaluate node. */
export const attachEvaluation = (node) => attach(node, new JobPanel("noEvaluation"), isEvaluation);

/** fits(job): whether it is one of those that this node makes. */
function attach(node, panel, fits) {
  addPanel(node, "job", panel.element);

  let watched = null;
  let stop = () => {};
  function show(id) {
    if (id === watched) return;
    stop();
    watched = id;
    if (id) stop = jobs.watch(id, (job) => panel.show(job));
    else panel.showNone();
    if (id) shown.set(node, id);
    else shown.delete(node);
    for (const changed of followers) changed();
  }

  /** After a reload: the job this node remembers, else (it was started elsewhere) the newest that the node would have made. */
  async function findAgain() {
    if (node.properties?.[JOB]) return show(node.properties[JOB]);
    const name = valueOf(node, "name");
    const concept = node.getInputNode(node.findInputSlot("concept"));
    const preset = valueOf(concept, "preset")?.split(" / ").at(-1);
    const phrase = valueOf(concept, "phrase")?.split("|")[0].trim() ?? preset; // the first spelling
    const mine = name ? (job) => job.name === name : (job) => job.concept === phrase;
    const job = await jobs.newest((one) => fits(one) && mine(one)).catch(() => undefined); // no answer: nothing to show yet
    if (job && !watched) show(job.id);
  }

  const { onExecuted, onConfigure, onRemoved } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    const id = output?.job?.[0];
    if (!id) return;
    node.properties[JOB] = id;
    // A property set by code goes unnoticed; say so, or a reload restores the workflow as it was before.
    app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState();
    show(id);
    jobs.refresh(id);
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    setTimeout(findAgain); // when the graph's links are there too
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    show(null);
  };
}

function valueOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name)?.value;
}
