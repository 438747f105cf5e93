// What the page says and does by itself when a training ends: a toast, and the host's LoRA lists with the new file in them.
import { app } from "../../scripts/app.js";
import { isActive, isEvaluation } from "./job_facts.mjs";
import { jobs } from "./job_store.mjs";
import { text } from "./texts.mjs";

const NOTIFY = "EraseAnything.Notify";
const REFRESH = "EraseAnything.RefreshLoras";
const TOAST = 8000; // milliseconds; a failure stays until it is closed
const TOGETHER = 1000; // milliseconds: trainings that end within them need one refresh

/** For the host's settings dialog. Names and tooltips in other languages: locales/<language>/settings.json. */
export const settings = [
  {
    id: NOTIFY,
    category: ["Erase Anything", "Trainings", "Notify"],
    name: "Say when a training ends",
    tooltip: "Turn off where many trainings end and their messages are in the way. The sidebar shows them in any case.",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: REFRESH,
    category: ["Erase Anything", "Trainings", "Refresh"],
    name: "Refresh node lists when a training ends",
    tooltip: "LoRA lists then offer the new file at once. Turn off where reading all node definitions takes long, and press R.",
    type: "boolean",
    defaultValue: true,
  },
];

/** From now on, whatever ends while the page is open is told once. */
export function announceEnds() {
  let refreshing;
  jobs.watchAll((job, before) => {
    if (!job || !before || job.state === before.state || !isActive(before)) return;
    if (job.state === "completed" && !isEvaluation(job) && isOn(REFRESH)) {
      clearTimeout(refreshing);
      refreshing = setTimeout(() => app.refreshComboInNodes(), TOGETHER);
    }
    if (isOn(NOTIFY)) tell(job);
  });
}

const isOn = (id) => app.extensionManager.setting.get(id) !== false;

function tell({ kind, state, name, lora, error }) {
  const { toast } = app.extensionManager;
  if (isEvaluation({ kind })) {
    const severity = { completed: "success", failed: "error", interrupted: "error" }[state];
    const life = severity === "success" ? { life: TOAST } : {};
    if (severity) toast.add({ severity, summary: text(`toast.evaluation.${state}`, { name }), detail: error ?? "", ...life });
  } else if (state === "completed") {
    toast.add({ severity: "success", summary: text("toast.completed", { name }), detail: text("done", { lora }), life: TOAST });
  } else if (state === "failed" || state === "interrupted") {
    toast.add({ severity: "error", summary: text(`toast.${state}`, { name }), detail: error });
  }
}
