// The sidebar tab "Erasure": a card for every job, and a badge on its icon with the number of active ones.
import { app } from "../../scripts/app.js";
import { element } from "./dom.mjs";
import { JobCard } from "./job_card.mjs";
import { inOrder, isActive, isTraining } from "./job_facts.mjs";
import { jobs } from "./job_store.mjs";
import { text } from "./texts.mjs";

const ID = "erase-anything";
const PAGE = 30; // cards at first; older ones on request

const TOGGLE = "EraseAnything.ToggleJobs";

/** For app.registerExtension. Labels are functions: they are asked when the texts are there. */
export const commands = [
  {
    id: TOGGLE,
    icon: "pi pi-eraser",
    label: () => text("command.toggle"),
    async function() {
      await app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${ID}`);
      requestAnimationFrame(() => sidebar?.focus()); // when it is drawn
    },
  },
];
export const menuCommands = [{ path: ["Erase Anything"], commands: [TOGGLE] }];
export const keybindings = [{ combo: { key: "e" }, commandId: TOGGLE }];

let sidebar;

export function registerSidebar() {
  sidebar = new Sidebar();
  app.extensionManager.registerSidebarTab({
    id: ID,
    icon: "pi pi-eraser",
    title: text("tab"),
    tooltip: text("tab.hint"),
    label: text("tab"),
    iconBadge: "",
    type: "custom",
    render: (place) => sidebar.show(place),
    destroy: () => sidebar.hide(),
  });
  // The frontend's own copy of the tab: it redraws the icon when a field of that one changes.
  const tab = app.extensionManager.getSidebarTabs?.().find(({ id }) => id === ID);
  jobs.watchAll(() => {
    const count = jobs.all().filter(isActive).length;
    if (tab) tab.iconBadge = count ? `${count}` : "";
  });
}

class Sidebar {
  #cards = new Map(); // id → JobCard
  #wanted = new Map(); // id → whether the user wants the card open
  #most = PAGE;
  #drawing = 0;
  #stop = null;

  constructor() {
    this.summary = element("p", { className: "ea-summary" });
    this.said = element("p", { className: "ea-hidden", role: "status", "aria-live": "polite" });
    this.empty = element("div", { className: "ea-empty", hidden: true });
    this.list = element("ul", { className: "ea-cards" });
    this.older = element("button", { type: "button", className: "ea-button", hidden: true, onclick: () => this.#showMore() });
    this.heading = element("h2", { tabIndex: -1 });
    this.element = element(
      "section",
      { className: "erase-anything ea-sidebar" },
      element("header", {}, this.heading, this.summary),
      this.said,
      this.empty,
      this.list,
      this.older,
    );
  }

  /** Called whenever the frontend draws the tab, also again with the same place. */
  show(place) {
    if (this.element.parentElement !== place) place.replaceChildren(this.element);
    if (this.#stop) return;
    this.#stop = jobs.watchAll((job, before) => this.#changed(job, before));
    this.heading.textContent = text("tab");
    this.empty.replaceChildren(
      element("p", {}, text("noJobs")),
      element(
        "button",
        { type: "button", className: "ea-button", onclick: () => app.extensionManager.command.execute("Comfy.BrowseTemplates") },
        text("browseExamples"),
      ),
    );
    this.#draw();
    jobs.load().catch((error) => (this.summary.textContent = error.message));
  }

  hide() {
    this.#stop?.();
    this.#stop = null;
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    for (const card of this.#cards.values()) card.close();
    this.#cards.clear();
    this.list.replaceChildren();
  }

  /** Who opened it by the keyboard goes on in it. */
  focus() {
    if (this.element.isConnected) this.heading.focus();
  }

  #changed(job, before) {
    if (job && before && job.state !== before.state) {
      this.said.textContent = text("said", { concept: job.concept, state: text(`state.${job.state}`) });
    }
    this.#drawing ||= requestAnimationFrame(() => this.#draw()); // many changes, one drawing
  }

  #draw() {
    this.#drawing = 0;
    const all = inOrder(jobs.all());
    const count = (fits) => all.filter(fits).length;
    const [training, active] = [count(isTraining), count(isActive)];
    this.summary.textContent = all.length ? text("summary", { training, waiting: active - training, all: all.length }) : "";
    this.empty.hidden = all.length > 0;
    const shown = all.slice(0, this.#most);
    this.older.hidden = all.length <= this.#most;
    this.older.textContent = text("older", { more: all.length - this.#most });
    this.#dropAllBut(new Set(shown.map(({ id }) => id)));
    const newest = all.reduce((a, b) => (b.created > (a?.created ?? 0) ? b : a), undefined);
    const focused = document.activeElement;
    for (const [place, job] of shown.entries()) {
      const card = this.#card(job.id);
      if (this.list.children[place] !== card.element) this.list.insertBefore(card.element, this.list.children[place] ?? null);
      card.show(job);
      // Until the user says otherwise, what trains is open, or the newest where nothing does.
      card.open(this.#wanted.get(job.id) ?? (card.isOpen || isTraining(job) || (!training && job === newest)));
    }
    if (this.list.contains(focused)) focused.focus({ preventScroll: true }); // moving a card takes the focus away
  }

  #card(id) {
    if (!this.#cards.has(id)) this.#cards.set(id, new JobCard(id, (open) => this.#wanted.set(id, open)));
    return this.#cards.get(id);
  }

  #dropAllBut(ids) {
    for (const [id, card] of this.#cards) {
      if (ids.has(id)) continue;
      card.close();
      card.element.remove();
      this.#cards.delete(id);
    }
  }

  #showMore() {
    const next = this.#most;
    this.#most += PAGE;
    this.#draw();
    this.list.children[next]?.querySelector("button").focus(); // the pressed button may be gone
  }
}
