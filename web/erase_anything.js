// Entry: the only file of the pack that the frontend imports by itself. It hangs a panel on each of the pack's nodes.
import { app } from "../../scripts/app.js";
import { attachJobPanel } from "./job_node.mjs";
import { jobs } from "./job_store.mjs";
import { loadStyle } from "./dom.mjs";
import { loadTexts } from "./texts.mjs";
import { attachWords } from "./concept_node.mjs";
import { attachHeatmaps } from "./heatmap_node.mjs";

const PANELS = {
  EraseAnything_Train: attachJobPanel,
  EraseAnything_Concept: attachWords,
  EraseAnything_TokenHeatmaps: attachHeatmaps,
};

app.registerExtension({
  name: "EraseAnything",

  // Before any node exists, so that no panel is ever drawn without its words.
  async init() {
    loadStyle();
    await loadTexts();
  },

  nodeCreated(node) {
    PANELS[node.constructor.comfyClass]?.(node);
  },

  async setup() {
    jobs.follow();
  },
});
