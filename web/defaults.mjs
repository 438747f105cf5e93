// What new nodes begin with, as the user has set it. Nodes of a loaded workflow, or copied ones, keep what they say.
import { app } from "../../scripts/app.js";

/** Setting → the node and widget that begin with its value. */
const BEGINNINGS = [
  { id: "EraseAnything.SampleEvery", type: "EraseAnything_Train", widget: "sample_every" },
  { id: "EraseAnything.KeepCheckpoints", type: "EraseAnything_Train", widget: "keep_checkpoints" },
  { id: "EraseAnything.EndpointUrl", type: "EraseAnything_WordsEndpoint", widget: "base_url" },
  { id: "EraseAnything.EndpointModel", type: "EraseAnything_WordsEndpoint", widget: "model" },
];

const choices = (numbers) => [{ text: "as the node says", value: "" }, ...numbers.map((n) => ({ text: `${n}`, value: n }))];

/** For the host's settings dialog. Names and tooltips in other languages: locales/<language>/settings.json. */
export const defaultSettings = [
  {
    id: "EraseAnything.SampleEvery",
    category: ["Erase Anything", "New nodes", "Samples"],
    name: "Steps between samples",
    tooltip: "What a new Train Erasure LoRA node begins with. 0 renders none.",
    type: "combo",
    options: choices([0, 10, 25, 50, 100, 200]),
    defaultValue: "",
  },
  {
    id: "EraseAnything.KeepCheckpoints",
    category: ["Erase Anything", "New nodes", "Checkpoints"],
    name: "Checkpoints to keep",
    tooltip: "What a new Train Erasure LoRA node begins with.",
    type: "combo",
    options: choices([1, 2, 3, 5, 10]),
    defaultValue: "",
  },
  {
    id: "EraseAnything.EndpointUrl",
    category: ["Erase Anything", "New nodes", "Endpoint"],
    name: "Address of the words endpoint",
    tooltip: "What a new Words Endpoint node begins with. The key is never a setting: see the node's help.",
    type: "text",
    defaultValue: "",
  },
  {
    id: "EraseAnything.EndpointModel",
    category: ["Erase Anything", "New nodes", "EndpointModel"],
    name: "Model at the words endpoint",
    tooltip: "What a new Words Endpoint node begins with.",
    type: "text",
    defaultValue: "",
  },
];

/** Give a node that the user has just added what the settings say; the node's own defaults where they say nothing. */
export function beginAsSet(node) {
  if (app.configuringGraph) return; // it comes out of a workflow
  for (const { id, type, widget } of BEGINNINGS) {
    if (node.constructor.comfyClass !== type) continue;
    const value = app.extensionManager.setting.get(id);
    const found = node.widgets?.find(({ name }) => name === widget);
    if (found && value !== undefined && value !== "") found.value = value;
  }
}
