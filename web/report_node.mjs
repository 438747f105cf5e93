// The panel on the Erasure Report node: the page that the last run wrote, small, and links to it.
import { addPanel, element } from "./dom.mjs";
import { getJob, outputUrl, reportUrl } from "./job_api.mjs";
import { text } from "./texts.mjs";

// Kept in the node's properties, so that a saved workflow shows the report again.
const REPORT = "erase_anything_report";
const WIDTH = 420;

export function attachReport(node) {
  const told = element("p", { className: "ea-sentence", "aria-live": "polite" }, text("report.none"));
  const links = element("div", { className: "ea-buttons" });
  // The page comes with a policy of its own that keeps it away from this one.
  const frame = element("iframe", { className: "ea-report-page", title: text("report.preview"), hidden: true, tabIndex: 0 });
  frame.setAttribute("sandbox", "allow-scripts");
  addPanel(node, "report", element("div", { className: "ea-panel" }, told, links, frame), WIDTH);

  async function show({ job, files }) {
    const [page, data] = files;
    const there = await getJob(job).then(({ state }) => state === "completed", () => false);
    const link = (name, href, opens) => element("a", { className: "ea-button", href, ...opens }, text(`report.${name}`));
    const save = ({ filename }) => ({ download: filename });
    links.replaceChildren(
      ...(there ? [link("open", reportUrl(job), { target: "_blank", rel: "noopener" })] : []),
      link("page", outputUrl(page), save(page)),
      link("data", outputUrl(data), save(data)),
    );
    const name = [page.subfolder, page.filename].filter(Boolean).join("/");
    told.textContent = text(there ? "report.saved" : "report.gone", { name });
    frame.hidden = !there;
    if (there) frame.src = reportUrl(job);
  }

  const { onExecuted, onConfigure } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    if (!output?.report) return;
    node.properties[REPORT] = { job: output.job[0], files: output.report };
    show(node.properties[REPORT]);
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    if (node.properties?.[REPORT]) show(node.properties[REPORT]);
  };
}
