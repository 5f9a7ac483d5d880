// What was decided, the latest first; each decision opens to all that is known of it.

import { MARK_COLOURS } from "./charts.js";
import { detail } from "./decision_parts.js";
import { el, icon, plural, redraw, signedPercent } from "./format.js";
import { OUTCOMES, sign, title } from "./run.js";

const WINDOW = 60; // so many decisions are in the page at once
const REST = 120; // ms without a move before the list follows

class DecisionList {
  constructor(which, onOpen) {
    this.which = which;
    this.onOpen = onOpen;
    this.items = new Map();
    this.open = new Set();
    this.end = Infinity; // the window ends before this one
    this.list = el("ol", { class: "decisions" });
    this.newer = el("button", { type: "button", class: "quiet", onclick: () => this.#slide(this.end + WINDOW / 2) });
    this.older = el("button", {
      type: "button",
      class: "quiet",
      onclick: () => this.#slide(this.#bounds()[1] - WINDOW / 2),
    });
    this.heading = el("h3", { class: which ? "second" : "first" });
    this.empty = el("div", { class: "empty" });
    this.node = el("div", {}, this.heading, this.newer, this.list, this.empty, this.older);
  }

  show(run, label) {
    if (this.run?.id !== run.id) {
      this.items.clear();
      this.open.clear();
      this.list.replaceChildren();
      this.end = Infinity;
    }
    this.run = run;
    this.label = label;
    this.heading.textContent = label;
    this.heading.hidden = !label;
    const all = run.adaptations;
    const [from, to] = this.#bounds();
    for (const [index, item] of this.items) {
      if (index >= from && index < to) continue;
      item.node.remove();
      this.items.delete(index);
    }
    for (let index = to - 1, place = 0; index >= from; index -= 1, place += 1) {
      this.#item(all[index], run.marks[index].kind);
      const { node } = this.items.get(index);
      if (this.list.children[place] !== node) this.list.insertBefore(node, this.list.children[place] ?? null);
    }
    this.newer.hidden = to === all.length;
    this.newer.textContent = plural(all.length - to, "later decision");
    this.older.hidden = from === 0;
    this.older.textContent = plural(from, "earlier decision");
    this.empty.hidden = all.length > 0;
    redraw(this.empty, `${run.id}${run.going}`, () =>
      el(
        "p",
        {},
        run.going
          ? "No decision yet: the policy looks at the end of every epoch, and acts when training stalls or a schedule says so."
          : "Nothing was decided in this run. Policies that decide sooner: tamiyo=eager, tamiyo=schedule, tamiyo=random.",
      ),
    );
  }

  #bounds() {
    const to = Math.max(Math.min(WINDOW, this.run.adaptations.length), Math.min(this.end, this.run.adaptations.length));
    return [Math.max(0, to - WINDOW), to];
  }

  #slide(end) {
    this.end = end >= this.run.adaptations.length ? Infinity : end;
    this.show(this.run, this.label);
    this.scrub(this.epoch);
  }

  #item(adaptation, kind) {
    const said = JSON.stringify([
      kind,
      adaptation.impact,
      adaptation.trial?.verdict,
      adaptation.epoch,
      this.run.lifecycle(adaptation).length,
    ]);
    let item = this.items.get(adaptation.index);
    if (item?.said === said) return;
    const open = this.open.has(adaptation.index);
    const { what, where } = title(adaptation.decision);
    const told =
      adaptation.impact && "realised" in adaptation.impact ? adaptation.impact.realised : adaptation.impact?.after;
    const id = `decision-${this.which}-${adaptation.index}`;
    const button = el(
      "button",
      {
        type: "button",
        class: "head",
        "aria-expanded": String(open),
        "aria-controls": id,
        onclick: () => this.toggle(adaptation.index),
      },
      el("span", { class: `mark ${MARK_COLOURS[sign(kind)]}` }, icon(`mark-${sign(kind)}`)),
      el("span", { class: "what" }, el("b", {}, what), ` ${where}`),
      el("span", { class: `chip ${MARK_COLOURS[sign(kind)]}` }, OUTCOMES[kind] ?? kind),
      el(
        "span",
        { class: "when" },
        `epoch ${adaptation.epoch + 1}`,
        el("span", {}, `expected ${signedPercent(adaptation.decision.expected_impact)}`),
        told === undefined || told === null ? null : el("span", {}, `realised ${signedPercent(told)}`),
      ),
    );
    const panel = el("div", { class: "panel", id, hidden: !open });
    if (open) panel.append(...detail(this.run, adaptation));
    if (item) {
      const focused = item.button === document.activeElement;
      item.node.replaceChildren(button, panel);
      Object.assign(item, { button, panel, said, adaptation });
      if (focused) button.focus();
    } else {
      item = { node: el("li", { data: { epoch: adaptation.epoch } }, button, panel), button, panel, said, adaptation };
      this.items.set(adaptation.index, item);
    }
  }

  bring(epoch) {
    const index = this.run.marks.findLastIndex((mark) => mark.epoch <= epoch);
    if (index < 0) return;
    const [from, to] = this.#bounds();
    if (index < from || index >= to) {
      this.end = Math.min(this.run.adaptations.length, index + WINDOW / 2);
      this.show(this.run, this.label);
      this.#place();
    }
    if (index !== this.brought) bringIntoView(this.items.get(index).node);
    this.brought = index;
  }

  toggle(index, force) {
    const item = this.items.get(index);
    if (!item) return;
    const open = force ?? !this.open.has(index);
    if (open) this.open.add(index);
    else this.open.delete(index);
    item.button.setAttribute("aria-expanded", String(open));
    item.panel.hidden = !open;
    if (open) {
      item.panel.replaceChildren(...detail(this.run, item.adaptation));
      this.onOpen(item.adaptation.epoch);
    } else item.panel.replaceChildren();
  }

  // Word of the epoch that is looked at: what is later steps back, and what was decided last is in sight.
  scrub(epoch, reveal = false) {
    this.epoch = epoch;
    clearTimeout(this.resting);
    if (reveal) this.resting = setTimeout(() => this.bring(epoch), REST);
    this.#place();
  }

  #place() {
    for (const { node, adaptation } of this.items.values()) {
      node.classList.toggle("later", adaptation.epoch > this.epoch);
      node.classList.toggle("now", adaptation.epoch === this.epoch);
    }
  }
}

function bringIntoView(node) {
  const area = node.closest("#decisions");
  const top = node.offsetTop - area.offsetTop;
  if (top < area.scrollTop || top + node.offsetHeight > area.scrollTop + area.clientHeight)
    area.scrollTop = top - area.clientHeight / 3;
}

export class Decisions {
  constructor(onOpen) {
    this.place = document.getElementById("decisions");
    this.counted = document.getElementById("decision-count");
    this.lists = [new DecisionList(0, onOpen), new DecisionList(1, onOpen)];
  }

  show(runs) {
    if (this.place.childElementCount !== runs.length)
      this.place.replaceChildren(...runs.map((_, which) => this.lists[which].node));
    runs.forEach((run, which) =>
      this.lists[which].show(run, runs.length > 1 ? `${which ? "B" : "A"}  ${run.run.experiment}` : ""),
    );
    const kept = runs[0].marks.filter((mark) => mark.kind === "kept" || mark.kind === "grown").length;
    this.counted.textContent = runs[0].marks.length ? `${kept} of ${runs[0].marks.length} kept` : "";
  }

  scrub(epoch, reveal) {
    this.lists.forEach((list, which) => list.run && list.scrub(epoch, reveal && which === 0));
  }

  // Open the decision at `epoch` of the first run, and go to it.
  reveal(epoch) {
    const list = this.lists[0];
    list.bring(epoch);
    const item = [...list.items.values()].filter((each) => each.adaptation.epoch === epoch).at(-1);
    if (!item) return;
    list.toggle(item.adaptation.index, true);
    item.button.focus();
    bringIntoView(item.node);
  }
}
