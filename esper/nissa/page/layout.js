// The head of the page: which run this is, how it stands, and its numbers at the epoch that is looked at.

import { count, day, el, loss, percent, plain, redraw, seconds, signedPercent } from "./format.js";

const STATUS = {
  preparing: "preparing",
  running: "running",
  paused: "paused",
  finished: "finished",
  interrupted: "interrupted",
  failed: "failed",
  stopped: "stopped",
};

const LEVEL = { preparing: "wait", running: "good", paused: "wait", finished: "done", interrupted: "wait", failed: "bad", stopped: "bad" };

const statusOf = ({ status, preparing }) => (preparing && status === "running" ? "preparing" : status);

function sentence(run) {
  const { run: facts } = run;
  const done = `${plain(facts.epochs)} of ${plain(facts.total_epochs)} epochs`;
  switch (statusOf(facts)) {
    case "preparing":
      return `kernels are compiled before ${facts.resumes || facts.epochs ? "it goes on" : "the first epoch"}`;
    case "running":
      return `${done} in ${seconds(facts.seconds)}${facts.resumes ? `, resumed ${facts.resumes}×` : ""}`;
    case "paused":
      return `paused after ${done}; go on with: esper runs resume ${facts.run_id}`;
    case "finished":
      return `${done} in ${seconds(facts.seconds)}${facts.result?.test ? `; test accuracy ${percent(facts.result.test.accuracy, 2)}, loss ${loss(facts.result.test.loss)}` : ""}`;
    case "interrupted":
      return `after ${done}; go on with: esper train --resume ${facts.run_id}`;
    case "failed":
      return `after ${done}: ${facts.error || "no reason was written"}`;
    case "stopped":
      return `after ${done}: its process is gone without a last word; ${facts.epochs ? `go on with: esper train --resume ${facts.run_id}` : "start it anew"}`;
    default:
      return done;
  }
}

function parameters(run, epoch) {
  const last = epoch >= run.lastEpoch && run.run.result?.end?.parameters;
  const now = last || run.value("parameters", epoch) || run.run.parameters_at_start;
  const start = run.run.parameters_at_start;
  return [count(now), now && start && now !== start ? signedPercent(now / start - 1, 0) : "unchanged"];
}

function cells(run, epoch) {
  const past = run.marks.filter((mark) => mark.epoch <= epoch && mark.kind !== "refused");
  const kept = past.filter((mark) => mark.kind === "kept" || mark.kind === "grown").length;
  const [size, grown] = parameters(run, epoch);
  return [
    ["held-out loss", loss(run.value("held_out_loss", epoch)), `training ${loss(run.value("loss", epoch))}`],
    ["accuracy", percent(run.value("accuracy", epoch), 2), "held-out"],
    ["epoch", plain(Math.max(0, Math.min(epoch, run.lastEpoch) + 1)), `of ${plain(run.run.total_epochs)}`],
    ["parameters", size, grown],
    ["adaptations", String(past.length), `${kept} kept`],
    [
      "FLOPs spent",
      count(run.value("training_flops", epoch)),
      `${count(run.value("samples_per_second", epoch))} samples/s`,
    ],
  ];
}

export class Heads {
  constructor() {
    this.place = document.getElementById("heads");
  }

  show(runs, epoch) {
    const key = runs.map((run) => [run.id, run.run.status, run.run.epochs, run.run.last_event].join("|")).join(";");
    redraw(this.place, key, () => {
      this.numbers = runs.map((run) =>
        cells(run, epoch).map(([name]) => {
          const value = el("dd", { class: "value" });
          const note = el("dd", { class: "note" });
          return { value, note, node: el("div", {}, el("dt", {}, name), value, note) };
        }),
      );
      return runs.map((run, which) => this.#head(run, which, runs.length > 1));
    });
  }

  #head(run, which, both) {
    const { run: facts } = run;
    const status = statusOf(facts);
    const level = LEVEL[status] ?? "wait";
    return el(
      "article",
      { class: `head-of ${which ? "second" : "first"}` },
      el(
        "div",
        { class: "title" },
        el("h1", {}, both ? el("b", { class: "tag" }, which ? "B" : "A") : null, facts.experiment || run.id),
        el("span", { class: `status ${level}`, data: { status } }, STATUS[status] ?? status),
        el("p", { class: "sub" }, sentence(run)),
      ),
      el(
        "p",
        { class: "sub facts" },
        [facts.task, `seed ${facts.seed ?? "–"}`, `started ${day(facts.started)}`, facts.run_id]
          .filter(Boolean)
          .join("  ·  "),
      ),
      el(
        "dl",
        { class: "numbers" },
        this.numbers[which].map((cell) => cell.node),
      ),
    );
  }

  scrub(runs, epoch) {
    runs.forEach((run, which) =>
      cells(run, epoch).forEach(([, value, note], place) => {
        const cell = this.numbers[which][place];
        if (cell.value.textContent !== value) cell.value.textContent = value;
        if (cell.note.textContent !== note) cell.note.textContent = note;
      }),
    );
  }
}
