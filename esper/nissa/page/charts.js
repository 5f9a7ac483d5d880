// Loss and accuracy by epoch, with what was decided marked on the curve; uPlot draws, this says what.

/* global uPlot */
import * as format from "./format.js";
import { OUTCOMES, sign, title } from "./run.js";

const HEIGHTS = { loss: [220, 170], accuracy: [140, 120] };
const SYNC = "epochs";

const SHAPES = {
  kept: "M0 -5L5 4H-5Z",
  grown: "M-4.2 -4.2H4.2V4.2H-4.2Z",
  culled: "M-5 -4H5L0 5Z",
  failed: "M-4 -4L4 4M4 -4L-4 4",
  trial: "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z",
  refused: "M-4 0H4",
  rollback: "M0 -4.5L-5 0L0 4.5M5 -4.5L0 0L5 4.5",
};
const FILLED = new Set(["kept", "grown"]);
export const MARK_COLOURS = {
  kept: "good",
  grown: "good",
  culled: "muted",
  failed: "bad",
  trial: "wait",
  refused: "muted",
  rollback: "bad",
};

class Chart {
  constructor(node, names, { scrubTo, read, format: words, share }) {
    this.node = node;
    this.names = names;
    this.scrubTo = scrubTo;
    this.read = read;
    this.words = words;
    this.share = share;
    this.log = false;
    this.line = format.el("div", { class: "scrubline", "aria-hidden": "true" });
    this.paths = Object.fromEntries(Object.entries(SHAPES).map(([kind, path]) => [kind, new Path2D(path)]));
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(node);
  }

  #size() {
    const [high, low] = HEIGHTS[this.node.id];
    return { width: Math.max(120, this.node.clientWidth), height: innerWidth < 640 ? low : high };
  }

  #data() {
    const tables = this.runs.map((run) => [
      run.epochs.map((epoch) => epoch + 1),
      ...this.names.map((name) => run.columns[name]),
    ]);
    const clean = tables.map((table) =>
      table.map((column) =>
        column.map((value) => (Number.isFinite(value) && !(this.log && value <= 0) ? value : null)),
      ),
    );
    return clean.length === 1 ? clean[0] : uPlot.join(clean);
  }

  show(runs, { fresh }) {
    // Of fewer than two epochs there is no range, and points are drawn in place of a line.
    const recreate = fresh || !(this.plot?.data[0].length > 1) || this.runs.length !== runs.length;
    this.runs = runs;
    if (recreate) this.create();
    else {
      const zoomed =
        this.plot.scales.x.max !== this.plot.data[0].at(-1) || this.plot.scales.x.min !== this.plot.data[0][0];
      this.plot.setData(this.#data(), !zoomed);
      if (zoomed) this.plot.redraw();
    }
    this.place();
  }

  create() {
    this.plot?.destroy();
    const axis = {
      stroke: format.colour("muted"),
      grid: { stroke: format.colour("line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const lines = this.runs.flatMap((_, which) =>
      this.names.map((name) => ({
        stroke:
          name === "loss"
            ? format.colour(which ? "second-soft" : "first-soft")
            : format.colour(which ? "second" : "first"),
        width: name === "loss" ? 1.25 : 2,
        dash: which ? [6, 4] : undefined,
        points: { show: this.runs[which].length < 2 },
        spanGaps: false,
      })),
    );
    this.plot = new uPlot(
      {
        ...this.#size(),
        padding: [10, 24, 0, 0],
        legend: { show: false },
        scales: { x: { time: false }, y: { distr: this.log ? 3 : 1 } },
        axes: [
          { ...axis, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000] },
          {
            ...axis,
            size: 52,
            values: (_, splits) =>
              splits.map((value) =>
                value === null ? "" : this.share ? `${Math.round(value * 100)} %` : String(+value.toPrecision(3)),
              ),
          },
        ],
        cursor: { sync: { key: SYNC, scales: ["x", null] }, points: { size: 7 }, y: false },
        series: [{}, ...lines],
        hooks: {
          draw: [() => this.#marks()],
          setCursor: [() => this.tell()],
          setSize: [() => this.place()],
          setScale: [() => this.place()],
        },
      },
      this.#data(),
      this.node,
    );
    this.plot.over.append(this.line);
    this.plot.over.addEventListener("click", () => {
      const index = this.plot.cursor.idx;
      if (index !== null && index !== undefined) this.scrubTo(this.plot.data[0][index] - 1);
    });
  }

  // The line at the epoch that is looked at, where it is not simply the latest.
  place(epoch = this.epoch) {
    this.epoch = epoch;
    if (!this.plot || epoch === undefined || !this.runs?.length) return;
    const x = this.plot.valToPos(epoch + 1, "x");
    const shown = x >= -1 && x <= this.plot.bbox.width / devicePixelRatio + 1 && Number.isFinite(x);
    this.line.style.display = shown ? "" : "none";
    if (shown) this.line.style.transform = `translateX(${Math.round(x)}px)`;
    this.tell();
  }

  tell() {
    if (!this.plot) return;
    const index = this.plot.cursor.idx;
    const epoch = index === null || index === undefined ? this.epoch : this.plot.data[0][index] - 1;
    if (epoch === undefined) return;
    const parts = this.runs.map((run) => {
      const here = run.at(epoch) >= 0 && epoch <= run.lastEpoch;
      return this.names.map((name) => (here ? this.words(run.value(name, epoch)) : "–")).join(" / ");
    });
    const mark = this.runs[0].marks.filter((each) => each.epoch === epoch && this.plot.cursor.idx !== null).at(-1);
    const told = mark ? `  ·  ${title(mark.adaptation.decision).what}: ${OUTCOMES[mark.kind] ?? mark.kind}` : "";
    this.read.textContent = `epoch ${epoch + 1}  ·  ${parts.join("  |  ")}${told}`;
  }

  #marks() {
    const { ctx, bbox } = this.plot;
    const scale = devicePixelRatio;
    const column = this.names.at(-1);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 6 * scale, bbox.top - 6 * scale, bbox.width + 12 * scale, bbox.height + 6 * scale);
    ctx.clip();
    const surface = format.colour("surface");
    const { min, max } = this.plot.scales.x;
    this.runs.forEach((run, which) => {
      const all = [...run.marks, ...run.rollbacks.map((each) => ({ epoch: each.to_epoch - 1, kind: "rollback" }))];
      const seen = all.filter(
        (mark) => mark.epoch + 1 >= min && mark.epoch + 1 <= max && Number.isFinite(run.value(column, mark.epoch)),
      );
      for (const mark of seen) {
        const left = this.plot.valToPos(mark.epoch + 1, "x", true);
        this.#mark(
          ctx,
          sign(mark.kind),
          left,
          this.plot.valToPos(run.value(column, mark.epoch), "y", true),
          which,
          surface,
          seen.length,
        );
      }
    });
    ctx.restore();
  }

  #mark(ctx, kind, left, top, which, surface, crowd) {
    const { bbox } = this.plot;
    const scale = devicePixelRatio;
    const stroke = format.colour(MARK_COLOURS[kind]);
    const reduced = crowd > 80 ? 0.6 : which || crowd > 40 ? 0.8 : 1;
    if (!which && crowd <= 40) {
      ctx.globalAlpha = 0.35;
      ctx.strokeStyle = stroke;
      ctx.lineWidth = scale;
      ctx.setLineDash([2 * scale, 3 * scale]);
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.globalAlpha = 1;
    }
    ctx.save();
    ctx.translate(left, top);
    ctx.scale(scale * reduced, scale * reduced);
    ctx.lineJoin = "round";
    ctx.lineWidth = 4.5;
    ctx.strokeStyle = surface;
    ctx.stroke(this.paths[kind]);
    ctx.fillStyle = FILLED.has(kind) ? stroke : surface;
    if (kind !== "failed" && kind !== "refused" && kind !== "rollback") ctx.fill(this.paths[kind]);
    ctx.lineWidth = 1.8;
    ctx.strokeStyle = stroke;
    ctx.stroke(this.paths[kind]);
    ctx.restore();
  }
}

export class Charts {
  constructor(scrubTo) {
    const at = (id) => document.getElementById(id);
    this.loss = new Chart(at("loss"), ["loss", "held_out_loss"], {
      scrubTo,
      read: at("read-loss"),
      format: format.loss,
    });
    this.accuracy = new Chart(at("accuracy"), ["accuracy"], {
      scrubTo,
      read: at("read-accuracy"),
      format: (value) => format.percent(value, 2),
      share: true,
    });
    this.log = at("log");
    this.log.addEventListener("click", () => {
      this.loss.log = !this.loss.log;
      this.log.setAttribute("aria-pressed", String(this.loss.log));
      this.loss.create();
      this.loss.place();
    });
  }

  show(runs, options) {
    this.loss.show(runs, options);
    this.accuracy.show(runs, options);
    this.#keys(runs);
    const last = runs[0].lastEpoch;
    this.loss.node.setAttribute(
      "aria-label",
      last < 0
        ? "No epoch yet"
        : `Loss by epoch: training ${format.loss(runs[0].value("loss", last))}, held-out ${format.loss(runs[0].value("held_out_loss", last))} after epoch ${last + 1}`,
    );
    this.accuracy.node.setAttribute(
      "aria-label",
      last < 0
        ? "No epoch yet"
        : `Held-out accuracy by epoch: ${format.percent(runs[0].value("accuracy", last))} after epoch ${last + 1}`,
    );
  }

  #keys(runs) {
    const key = runs.map((run) => run.id).join();
    format.redraw(document.getElementById("curve-key"), key, () =>
      runs.flatMap((_, which) =>
        [
          format.el("span", { class: `line ${which ? "second" : "first"} soft` }, "training"),
          format.el("span", { class: `line ${which ? "second" : "first"}` }, "held-out"),
          runs.length > 1 ? format.el("b", { class: which ? "second" : "first" }, which ? "B" : "A") : null,
        ].filter(Boolean),
      ),
    );
    const kinds = [
      ...new Set(
        runs.flatMap((run) => [
          ...run.marks.map((mark) => sign(mark.kind)),
          ...(run.rollbacks.length ? ["rollback"] : []),
        ]),
      ),
    ];
    format.redraw(document.getElementById("mark-key"), kinds.join(), () =>
      kinds.map((kind) =>
        format.el("span", { class: `mark ${MARK_COLOURS[kind]}` }, format.icon(`mark-${kind}`), OUTCOMES[kind]),
      ),
    );
  }

  scrub(epoch) {
    this.loss.place(epoch);
    this.accuracy.place(epoch);
  }
}
