// Cache tiers with their hit rates, the library's kernels, and what was and is being compiled.

import { clock, count, day, el, number, percent, plain, redraw, seconds, short, small } from "./format.js";
import { get } from "./server.js";

const SHOWN = 8;

const TIER_NAMES = { loaded: "loaded", memory: "memory", redis: "Redis", sql: "database" };

function tierRow([name, { hits, misses, errors, state }]) {
  const rate = hits + misses ? hits / (hits + misses) : NaN;
  const fill = el("i", { "aria-hidden": "true" });
  fill.style.width = `${Number.isFinite(rate) ? 100 * rate : 0}%`;
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row" },
      TIER_NAMES[name] ?? name,
      state && state !== "closed" ? el("span", { class: "chip bad" }, state) : null,
    ),
    el("td", {}, count(hits)),
    el("td", {}, count(misses)),
    el("td", { class: errors ? "bad" : "" }, count(errors)),
    el("td", { class: "rate" }, percent(rate, 0), el("span", { class: "meter" }, fill)),
  );
}

function tiers(run, label) {
  const rows = Object.entries(run.cache ?? {});
  if (!rows.length) return el("p", { class: "empty" }, `${label}The library was not asked for a kernel yet.`);
  return el(
    "table",
    {},
    el("caption", {}, `${label}Cache tiers, in the order in which they are asked`),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        ["tier", "hits", "misses", "errors", "hit rate"].map((name) => el("th", { scope: "col" }, name)),
      ),
    ),
    el("tbody", {}, rows.map(tierRow)),
  );
}

function kernelRow({ kernel: record, standing }) {
  return el(
    "tr",
    {},
    el(
      "th",
      { scope: "row", title: record.kernel_id },
      record.name || short(record.kernel_id),
      el("small", {}, record.input_shape ? ` ${record.input_shape.join("×")} → ${record.output_shape.join("×")}` : ""),
    ),
    el("td", {}, count(record.parameters)),
    el("td", {}, standing.trials ? `${standing.kept} of ${standing.trials}` : "–"),
    el("td", {}, small(number(standing.score))),
  );
}

const compilationRow = (each) =>
  el(
    "li",
    { class: each.status === "failed" ? "bad" : "" },
    el("b", {}, each.blueprint_name || short(each.blueprint_id)),
    el("span", {}, each.status === "failed" ? `failed at ${each.stage ?? "?"}` : seconds(number(each.seconds))),
    el("time", { datetime: each.at, title: day(each.at) }, clock(each.at)),
  );

const inventionRow = (each) =>
  el(
    "li",
    { class: each.failure ? "bad" : "", title: each.failure ?? each.reason },
    el("b", {}, each.blueprint_name),
    el(
      "span",
      {},
      each.failure
        ? "failed"
        : each.predicted_impact === null
          ? each.origin
          : `gain ${small(number(each.predicted_impact))} ± ${small(number(each.uncertainty))}`,
    ),
    el("time", { datetime: each.at, title: day(each.at) }, clock(each.at)),
  );

const isBusy = (queue) => queue && queue.waiting + queue.compiling > 0;

function age(iso) {
  const passed = (Date.now() - Date.parse(iso)) / 1000;
  return passed >= 10 ? seconds(passed) : "a moment";
}

function queueRow([label, queue]) {
  const stuck = queue.waiting && !queue.workers;
  return el(
    "li",
    { class: stuck ? "bad" : "" },
    label ? el("b", { class: "whose" }, label) : null,
    el("span", {}, el("b", {}, plain(queue.waiting)), queue.waiting === 1 ? " waits" : " wait"),
    el("span", {}, el("b", {}, plain(queue.compiling)), " being compiled"),
    el("span", {}, el("b", {}, plain(queue.workers)), queue.workers === 1 ? " worker" : " workers"),
    queue.oldest ? el("span", {}, `the oldest for ${age(queue.oldest)}`) : null,
    stuck ? el("span", {}, "start a worker: ", el("code", {}, "esper worker")) : null,
  );
}

export class Library {
  constructor(onFailures) {
    this.onFailures = onFailures;
    this.waits = document.getElementById("waits");
    this.broker = null;
    setInterval(() => document.hidden || this.#waits(), 1000); // what waits grows older
    this.place = document.getElementById("library");
    this.queue = document.getElementById("queue");
    this.sub = document.getElementById("library-sub");
    this.queueSub = document.getElementById("queue-sub");
    this.kernels = null;
    this.problem = null;
  }

  show(runs) {
    this.runs = runs;
    const caches = runs.map((run) => run.cache);
    redraw(
      this.place,
      JSON.stringify([
        caches,
        runs.map((run) => run.id),
        this.kernels?.map((each) => each.kernel.kernel_id),
        this.problem,
        this.busy,
      ]),
      () => [...runs.map((run, which) => tiers(run, runs.length > 1 ? `${which ? "B" : "A"}: ` : "")), this.#kernels()],
    );
    this.#queue();
  }

  // What is compiled now for the runs that are shown, and for whoever asks the broker.
  get #queues() {
    const runs = this.runs ?? [];
    const labels = runs.length > 1 ? ["A", "B"] : [this.broker ? "run" : ""];
    const queues = runs.map((run, which) => [labels[which], run.queue]);
    return [...queues, ["broker", this.broker]].filter(([, queue]) => queue);
  }

  get busy() {
    return this.#queues.some(([, queue]) => isBusy(queue));
  }

  #waits() {
    const busy = this.#queues.filter(([, queue]) => isBusy(queue));
    const ages = busy.map(([, { oldest }]) => (oldest ? age(oldest) : ""));
    redraw(this.waits, JSON.stringify([busy, ages]), () => busy.map(queueRow));
    this.waits.hidden = !busy.length;
  }

  #queue() {
    this.#waits();
    if (!this.compilations) return;
    const invented = this.runs?.flatMap((run) => run.inventions) ?? [];
    redraw(this.queue, JSON.stringify([this.compilations, invented, this.busy]), () =>
      [
        invented.length ? el("h3", {}, "Invented beside the run") : null,
        invented.length ? el("ul", { class: "compiled" }, invented.slice(-SHOWN).reverse().map(inventionRow)) : null,
        invented.length ? el("h3", {}, "All of the library") : null,
        this.compilations.length
          ? el("ul", { class: "compiled" }, this.compilations.map(compilationRow))
          : this.busy
            ? null
            : el(
                "p",
                { class: "empty" },
                "Nothing was compiled yet. Compile what ships: ",
                el("code", {}, "esper compile --for smoke"),
              ),
      ].filter(Boolean),
    );
  }

  #kernels() {
    if (this.problem) return el("p", { class: "empty" }, this.problem);
    if (!this.kernels) return el("p", { class: "empty" }, "Asking the library.");
    if (!this.kernels.length && this.busy) return el("p", { class: "empty" }, "The first kernels are being compiled.");
    if (!this.kernels.length)
      return el(
        "p",
        { class: "empty" },
        "No kernel yet. Compile what ships: ",
        el("code", {}, "esper compile --for smoke"),
      );
    return el(
      "table",
      {},
      el("caption", {}, "Kernels of the library, the best first"),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ["kernel", "parameters", "kept", "score"].map((name) => el("th", { scope: "col" }, name)),
        ),
      ),
      el("tbody", {}, this.kernels.map(kernelRow)),
    );
  }

  async ask() {
    const [kernels, compilations, failed] = await Promise.allSettled([
      get(`/api/v1/kernels?limit=${SHOWN}`),
      get(`/api/v1/compilations?limit=${SHOWN}`),
      get(`/api/v1/compilations?limit=${SHOWN}&status=failed`),
    ]);
    if (failed.status === "fulfilled") this.onFailures(failed.value.compilations);
    if (kernels.status === "fulfilled") {
      this.kernels = kernels.value.kernels;
      this.problem = null;
    } else this.problem = `The kernel library cannot be read: ${kernels.reason.message}`;
    if (this.runs) this.show(this.runs);
    this.#compilations(compilations);
    for (const each of [kernels, compilations])
      if (each.status === "rejected" && each.reason.status === 401) throw each.reason;
  }

  #compilations(answer) {
    if (answer.status === "rejected") {
      this.queueSub.textContent = "";
      redraw(this.queue, answer.reason.message, () =>
        el("p", { class: "empty" }, `Compilations cannot be read: ${answer.reason.message}`),
      );
      return;
    }
    const { compilations: all, counts, broker } = answer.value;
    this.compilations = all;
    this.broker = broker;
    this.queueSub.textContent = `${count(counts.compiled)} done, ${count(counts.failed)} failed`;
    this.#queue();
  }
}
