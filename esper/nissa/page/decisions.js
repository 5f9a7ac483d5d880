// What was decided: each decision opens to its evidence, its alternatives, and what was expected and what came of it.

import { el, icon, loss, number, percent, plural, redraw, seconds, short, signedPercent, small, count, svg, STATES, words } from "./format.js";
import { MARK_COLOURS } from "./charts.js";
import { OUTCOMES, sign, title } from "./run.js";
import { get } from "./server.js";

const WINDOW = 60; // so many decisions are in the page at once
const REST = 120; // ms without a move before the list follows

const pairs = (rows) => el("dl", { class: "pairs" }, rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

const block = (heading, ...content) => el("section", {}, el("h4", {}, heading), ...content);

function bars(rows, top) {
  return el("ul", { class: "bars" }, rows.map(([name, value]) => {
    const fill = el("i", { "aria-hidden": "true" });
    fill.style.width = `${Math.max(0, Math.min(100, (100 * value) / top))}%`;
    return el("li", {}, el("span", {}, name), el("b", {}, small(value)), fill);
  }));
}

function alternatives(decision) {
  const rows = (decision.alternatives ?? []).map((each) => {
    const { score, target_component: where, seed_idx: seed, ...more } = each;
    const rest = Object.entries(more).map(([name, value]) => `${words(name)} ${typeof value === "number" ? small(value) : typeof value === "object" ? JSON.stringify(value) : value}`);
    return [[where && `${where}${seed === undefined ? "" : ` · seed ${seed}`}`, ...rest].filter(Boolean).join(", "), number(score)];
  });
  if (!rows.length) return block("Alternatives", el("p", { class: "sub" }, "No other was weighed."));
  if (rows.every(([, score]) => Number.isFinite(score))) return block("Alternatives", bars(rows, Math.max(...rows.map(([, score]) => score), 1e-12)));
  return block("Alternatives", pairs(rows.map(([name, score]) => [name, Number.isFinite(score) ? small(score) : "–"])));
}

// The gain with its standard error, against zero and the threshold it had to clear.
function whisker(trial) {
  const gain = number(trial.gain);
  const error = number(trial.gain_error);
  if (!Number.isFinite(gain) || !Number.isFinite(error)) return null;
  const low = gain - 1.645 * error;
  const high = gain + 1.645 * error;
  const from = Math.min(low, 0, trial.threshold);
  const span = Math.max(high, 0, trial.threshold) - from || 1;
  const x = (value) => 4 + (192 * (value - from)) / span;
  return svg("svg", { class: "whisker", viewBox: "0 0 200 22", role: "img", "aria-label": `gain ${small(gain)}, between ${small(low)} and ${small(high)}; it had to be above ${small(trial.threshold)}` },
    svg("line", { x1: x(trial.threshold), x2: x(trial.threshold), y1: 2, y2: 20, class: "threshold" }),
    svg("line", { x1: x(low), x2: x(high), y1: 11, y2: 11, class: "span" }),
    svg("circle", { cx: x(gain), cy: 11, r: 4 }));
}

function impact(adaptation) {
  const { decision, trial, impact: told } = adaptation;
  const expected = ["expected", signedPercent(decision.expected_impact)];
  if (told && "realised" in told) return [expected, ["realised", el("b", {}, signedPercent(told.realised))]];
  if (told) {
    return [expected, [`loss fell in ${plural(told.epochs, "epoch")} after`, el("b", {}, percent(told.after))], [`and in ${plural(told.epochs, "epoch")} before`, percent(told.before)]];
  }
  return [expected, ["realised", trial || adaptation.outcome.status === "refused" ? "–" : "not known yet"]];
}

function verdict(adaptation) {
  const { trial, outcome } = adaptation;
  if (!trial) return block("What became of it", outcome.reason ? el("p", {}, outcome.reason) : null, pairs(impact(adaptation)));
  return block("What became of it", el("p", {}, trial.reason), whisker(trial), pairs([
    ...impact(adaptation),
    ["gain, nats", `${small(number(trial.gain))} ± ${small(number(trial.gain_error))}`],
    ["held-out loss", `${loss(number(trial.loss_before))} → ${loss(number(trial.loss_after))}`],
    ["accuracy", `${percent(number(trial.accuracy_before))} → ${percent(number(trial.accuracy_after))}`],
    ["parameters", `+${count(trial.parameters)}`],
    trial.seconds ? ["took", seconds(trial.seconds)] : null,
  ]));
}

function growth(run, adaptation) {
  const report = run.growths.find((each) => each.epoch === adaptation.epoch && adaptation.outcome.status === "grown");
  if (!report) return null;
  return block("At its birth", pairs([
    ...Object.entries(report.sizes ?? {}).map(([name, [from, to]]) => [name, `${from} → ${to}`]),
    ["parameters", `+${count(report.parameters)}`],
    ["held-out loss moved by", small(number(report.loss_after) - number(report.loss_before))],
  ]));
}

function lifecycle(run, adaptation) {
  const steps = run.lifecycle(adaptation);
  if (!steps.length) return null;
  return block("The seed", el("ol", { class: "steps" }, steps.map(([epoch, state]) =>
    el("li", { data: { state } }, icon(`seed-${state}`), STATES[state] ?? state, el("small", {}, ` ${epoch + 1}`)))));
}

function kernel(adaptation) {
  const id = adaptation.outcome.kernel_id;
  if (!id) return null;
  const place = el("div", {}, el("p", { class: "sub" }, "asking the library"));
  get(`/api/v1/kernels/${encodeURIComponent(id)}`).then((answer) => {
    const { kernel: record, standing } = answer;
    place.replaceChildren(pairs([
      ["id", el("code", {}, id)],
      record.name && ["name", record.name],
      record.tags?.length && ["tags", record.tags.join(", ")],
      record.parameters !== undefined && ["parameters", count(record.parameters)],
      record.input_shape && ["shape", `${record.input_shape.join("×")} → ${record.output_shape.join("×")}`],
      standing && ["kept in trials", `${standing.kept} of ${standing.trials}`],
      Number.isFinite(record.latency_ms) && ["latency", `${small(record.latency_ms)} ms`],
      record.blueprint_id && ["blueprint", el("code", {}, short(record.blueprint_id))],
      record.author && ["made by", record.author],
    ]));
  }, (error) => {
    place.replaceChildren(pairs([["id", el("code", {}, id)]]), el("p", { class: "sub" }, error.status === 404 ? "No longer in the library." : error.message));
  });
  return block("Kernel", place);
}

function evidence(decision) {
  const rows = Object.entries(decision.evidence ?? {}).map(([name, value]) => [words(name), small(number(value))]);
  return block("Evidence", rows.length ? pairs([...rows, ["confidence", percent(number(decision.confidence), 0)]]) : el("p", { class: "sub" }, "None was noted."));
}

class DecisionList {
  constructor(which, onOpen) {
    this.which = which;
    this.onOpen = onOpen;
    this.items = new Map();
    this.open = new Set();
    this.end = Infinity; // the window ends before this one
    this.list = el("ol", { class: "decisions" });
    this.newer = el("button", { type: "button", class: "quiet", onclick: () => this.#slide(this.end + WINDOW / 2) });
    this.older = el("button", { type: "button", class: "quiet", onclick: () => this.#slide(this.#bounds()[1] - WINDOW / 2) });
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
    redraw(this.empty, `${run.id}${run.going}`, () => el("p", {}, run.going
      ? "No decision yet: the policy looks at the end of every epoch, and acts when training stalls or a schedule says so."
      : "Nothing was decided in this run. Policies that decide sooner: tamiyo=eager, tamiyo=schedule, tamiyo=random."));
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
    const said = JSON.stringify([kind, adaptation.impact, adaptation.trial?.verdict, adaptation.epoch, this.run.lifecycle(adaptation).length]);
    let item = this.items.get(adaptation.index);
    if (item?.said === said) return;
    const open = this.open.has(adaptation.index);
    const { what, where } = title(adaptation.decision);
    const told = adaptation.impact && "realised" in adaptation.impact ? adaptation.impact.realised : adaptation.impact?.after;
    const id = `decision-${this.which}-${adaptation.index}`;
    const button = el("button", { type: "button", class: "head", "aria-expanded": String(open), "aria-controls": id, onclick: () => this.toggle(adaptation.index) },
      el("span", { class: `mark ${MARK_COLOURS[sign(kind)]}` }, icon(`mark-${sign(kind)}`)),
      el("span", { class: "what" }, el("b", {}, what), ` ${where}`),
      el("span", { class: `chip ${MARK_COLOURS[sign(kind)]}` }, OUTCOMES[kind] ?? kind),
      el("span", { class: "when" }, `epoch ${adaptation.epoch + 1}`, el("span", {}, `expected ${signedPercent(adaptation.decision.expected_impact)}`),
        told === undefined || told === null ? null : el("span", {}, `realised ${signedPercent(told)}`)));
    const panel = el("div", { class: "panel", id, hidden: !open });
    if (open) panel.append(...this.#detail(adaptation));
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

  #detail(adaptation) {
    const { decision } = adaptation;
    return [
      decision.reason ? el("p", { class: "reason" }, decision.reason) : null,
      verdict(adaptation), growth(this.run, adaptation), lifecycle(this.run, adaptation), evidence(decision), alternatives(decision), kernel(adaptation),
    ].filter(Boolean);
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
      item.panel.replaceChildren(...this.#detail(item.adaptation));
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
  if (top < area.scrollTop || top + node.offsetHeight > area.scrollTop + area.clientHeight) area.scrollTop = top - area.clientHeight / 3;
}

export class Decisions {
  constructor(onOpen) {
    this.place = document.getElementById("decisions");
    this.counted = document.getElementById("decision-count");
    this.lists = [new DecisionList(0, onOpen), new DecisionList(1, onOpen)];
  }

  show(runs, epoch) {
    if (this.place.childElementCount !== runs.length) this.place.replaceChildren(...runs.map((_, which) => this.lists[which].node));
    runs.forEach((run, which) => this.lists[which].show(run, runs.length > 1 ? `${which ? "B" : "A"}  ${run.run.experiment}` : ""));
    const kept = runs[0].marks.filter((mark) => mark.kind === "kept" || mark.kind === "grown").length;
    this.counted.textContent = runs[0].marks.length ? `${kept} of ${runs[0].marks.length} kept` : "";
    this.scrub(epoch);
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
