// Entry: the only file of the pack that the frontend imports by itself. It hangs a panel on each of the pack's nodes and adds
// the sidebar tab with its command, key and settings.
import { app } from "../../scripts/app.js";
import { announceEnds, settings } from "./job_notices.mjs";
import { attachAdvanced } from "./advanced.mjs";
import { attachEvaluation, attachJobPanel } from "./job_node.mjs";
import { attachReport } from "./report_node.mjs";
import { attachWaiting } from "./wait_node.mjs";
import { attachConcept, attachPreset } from "./concept_node.mjs";
import { attachHeatmaps } from "./heatmap_node.mjs";
import { labelBoxes } from "./boxes.mjs";
import { beginAsSet, defaultSettings } from "./defaults.mjs";
import { queueSettings, showQueueSettings } from "./queue_settings.mjs";
import { commands, keybindings, menuCommands, registerSidebar } from "./sidebar.mjs";
import { jobs } from "./job_store.mjs";
import { loadStyle } from "./dom.mjs";
import { loadTexts } from "./texts.mjs";

const PANELS = {
  EraseAnything_Train: attachJobPanel,
  EraseAnything_Wait: attachWaiting,
  EraseAnything_Evaluate: attachEvaluation,
  EraseAnything_Report: attachReport,
  EraseAnything_Concept: attachConcept,
  EraseAnything_Preset: attachPreset,
  EraseAnything_TokenHeatmaps: attachHeatmaps,
};

app.registerExtension({
  name: "EraseAnything",
  commands,
  keybindings,
  menuCommands,
  settings: [...settings, ...queueSettings, ...defaultSettings],

  // Before any node exists, so that no panel is ever drawn without its words.
  async init() {
    loadStyle();
    await loadTexts();
  },

  nodeCreated(node) {
    if (!node.constructor.comfyClass?.startsWith("EraseAnything_")) return;
    beginAsSet(node);
    labelBoxes(node);
    attachAdvanced(node);
    PANELS[node.constructor.comfyClass]?.(node);
  },

  async setup() {
    registerSidebar();
    announceEnds();
    await jobs.follow().catch(() => {}); // the server is away: it is asked again when it is back
    await showQueueSettings();
  },
});
