// The question before a job is deleted; a LoRA that exists goes only when that is ticked.
import { element } from "./dom.mjs";
import { isEvaluation } from "./job_facts.mjs";
import { openModal } from "./modal.mjs";
import { text } from "./texts.mjs";

/** Ask the user; resolves with the body of the delete action, {lora}, or with null for "no". */
export function askToDelete(job) {
  const lora = element("input", { type: "checkbox" });
  const keep = element("button", { type: "button", className: "ea-button" }, text("delete.no"));
  const remove = element("button", { type: "button", className: "ea-button ea-danger" }, text("delete.yes"));
  const dialog = element(
    "dialog",
    { className: "erase-anything ea-viewer ea-question", "aria-label": text("delete.title") },
    element("p", {}, text(isEvaluation(job) ? "delete.evaluation" : "delete.question", { name: job.name })),
    job.lora_exists ? element("label", {}, lora, text("delete.lora", { lora: job.lora })) : null,
    element("div", { className: "ea-buttons" }, keep, remove),
  );
  return new Promise((resolve) => {
    let answer = null;
    remove.onclick = () => {
      answer = { lora: lora.checked };
      dialog.close();
    };
    openModal(dialog, keep, () => resolve(answer));
    keep.focus();
  });
}
