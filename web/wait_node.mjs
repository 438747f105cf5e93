// The panel on the Wait node: whose training it waits for, and how far that is.
import { addPanel, element } from "./dom.mjs";
import { jobShownBy, onJobShown } from "./job_node.mjs";
import { Progress } from "./job_parts.mjs";
import { jobs } from "./job_store.mjs";
import { text } from "./texts.mjs";

export function attachWaiting(node) {
  const progress = new Progress();
  const { badge, bar, steps, left } = progress;
  const name = element("p", { className: "ea-sentence" });
  const panel = element("div", { className: "ea-wait" }, name, element("div", { className: "ea-head" }, badge, steps, left), bar);
  addPanel(node, "waiting", panel);

  let watched;
  let stop = () => {};
  function update() {
    const train = trainNodeOf(node);
    const id = train && jobShownBy(train);
    if (id !== watched) stop();
    else if (id) return;
    watched = id;
    stop = id ? jobs.watch(id, show) : () => {};
    if (id) return;
    panel.dataset.state = "none";
    name.textContent = text(train ? "wait.notRun" : "wait.nobody");
  }

  function show(job) {
    panel.dataset.state = job.state;
    name.textContent = text(job.state === "completed" ? "wait.done" : "wait.for", { name: job.name, concept: job.concept });
    progress.show(job);
  }

  const unfollow = onJobShown(update);
  const { onConnectionsChange, onConfigure, onRemoved } = node;
  node.onConnectionsChange = function () {
    onConnectionsChange?.apply(this, arguments);
    setTimeout(update); // when the link is made
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    setTimeout(update); // when the graph's links are there too
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    unfollow();
    stop();
  };
  update();
}

/** The Train node at the other end of the job input, through reroute nodes. */
function trainNodeOf(node) {
  let source = node.getInputNode(node.findInputSlot("job"));
  while (source?.type === "Reroute") source = source.getInputNode(0);
  return source;
}
