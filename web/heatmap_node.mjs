// The panel on the Token Heatmaps node: fetches what the last run drew and shows it.
import { api } from "../../scripts/api.js";
import { addPanel } from "./dom.mjs";
import { HeatmapViewer } from "./heatmap_viewer.mjs";
import { text } from "./texts.mjs";

export function attachHeatmaps(node) {
  const viewer = new HeatmapViewer();
  addPanel(node, "heatmaps", viewer.element, 380);

  let wanted = null;
  const { onExecuted } = node;
  node.onExecuted = async function (output) {
    onExecuted?.apply(this, arguments);
    const file = output?.heatmaps?.[0];
    if (!file) return;
    wanted = file.filename;
    const figure = await fetchFigure(file).catch(() => null);
    if (wanted !== file.filename) return; // a newer run was faster
    if (figure) viewer.show(figure);
    else viewer.showNone(text("heat.gone")); // the server empties its temporary files when it starts
  };
}

async function fetchFigure(file) {
  const response = await api.fetchApi(`/view?${new URLSearchParams(file)}`);
  if (!response.ok) throw new Error(response.statusText);
  return response.json();
}
