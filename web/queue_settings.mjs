// Settings of the training queue in the host's settings dialog. The server keeps them, for all who use it; the page shows them.
import { app } from "../../scripts/app.js";
import { changeSettings } from "./job_api.mjs";
import { jobs } from "./job_store.mjs";

const SETTINGS = {
  slots: "EraseAnything.Slots",
  wait_for_memory: "EraseAnything.WaitForMemory",
  lora_folder: "EraseAnything.LoraFolder",
};

/** For the host's settings dialog. Names and tooltips in other languages: locales/<language>/settings.json. */
export const queueSettings = [
  {
    id: SETTINGS.slots,
    category: ["Erase Anything", "Queue", "Slots"],
    name: "Trainings at once",
    tooltip: "One for each GPU. 0 holds the queue: what trains goes on, what waits keeps waiting.",
    type: "number",
    attrs: { min: 0, max: 16, step: 1 },
    defaultValue: 1,
    onChange: (value, before) => tell("slots", value, before),
  },
  {
    id: SETTINGS.wait_for_memory,
    category: ["Erase Anything", "Queue", "Memory"],
    name: "Wait until a training fits into memory",
    tooltip: "Turn off to start trainings at once; one that does not fit then fails and can be retried with less memory.",
    type: "boolean",
    defaultValue: true,
    onChange: (value, before) => tell("wait_for_memory", value, before),
  },
  {
    id: SETTINGS.lora_folder,
    category: ["Erase Anything", "Queue", "Folder"],
    name: "Folder for new LoRAs",
    tooltip: "Below the first loras folder, for example: erased/people. Empty: that folder itself.",
    type: "text",
    defaultValue: "",
    onChange: (value, before) => tell("lora_folder", value, before),
  },
];

/** Show the server's values: another page or client may have changed them. */
export async function showQueueSettings() {
  const { setting } = app.extensionManager;
  for (const [name, id] of Object.entries(SETTINGS)) {
    const value = jobs.settings?.[name];
    if (value !== undefined && setting.get(id) !== value) await setting.set(id, value);
  }
}

/** The user's change, to the server; not what the host tells when it loads the settings, nor the server's own value. */
async function tell(name, value, before) {
  if (before === undefined || !jobs.settings || jobs.settings[name] === value) return;
  try {
    jobs.settings = await changeSettings({ [name]: value });
  } catch (error) {
    app.extensionManager.toast.add({ severity: "error", summary: error.message });
    await showQueueSettings();
  }
}
