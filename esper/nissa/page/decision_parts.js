// All that is known of a decision: reason, what was expected and what came of it, evidence, alternatives, its kernel.

import {
  count,
  el,
  icon,
  loss,
  number,
  percent,
  plural,
  seconds,
  short,
  signedPercent,
  small,
  STATES,
  svg,
  words,
} from "./format.js";
import { get } from "./server.js";

const pairs = (rows) =>
  el(
    "dl",
    { class: "pairs" },
    rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );

const block = (heading, ...content) => el("section", {}, el("h4", {}, heading), ...content);

function bars(rows, top) {
  return el(
    "ul",
    { class: "bars" },
    rows.map(([name, value]) => {
      const fill = el("i", { "aria-hidden": "true" });
      fill.style.width = `${Math.max(0, Math.min(100, (100 * value) / top))}%`;
      return el("li", {}, el("span", {}, name), el("b", {}, small(value)), fill);
    }),
  );
}

function alternatives(decision) {
  const rows = (decision.alternatives ?? []).map((each) => {
    const { score, target_component: where, seed_idx: seed, ...more } = each;
    const rest = Object.entries(more).map(
      ([name, value]) =>
        `${words(name)} ${typeof value === "number" ? small(value) : typeof value === "object" ? JSON.stringify(value) : value}`,
    );
    return [
      [where && `${where}${seed === undefined ? "" : ` · seed ${seed}`}`, ...rest].filter(Boolean).join(", "),
      number(score),
    ];
  });
  if (!rows.length) return block("Alternatives", el("p", { class: "sub" }, "No other was weighed."));
  if (rows.every(([, score]) => Number.isFinite(score)))
    return block("Alternatives", bars(rows, Math.max(...rows.map(([, score]) => score), 1e-12)));
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
  return svg(
    "svg",
    {
      class: "whisker",
      viewBox: "0 0 200 22",
      role: "img",
      "aria-label": `gain ${small(gain)}, between ${small(low)} and ${small(high)}; it had to be above ${small(trial.threshold)}`,
    },
    svg("line", { x1: x(trial.threshold), x2: x(trial.threshold), y1: 2, y2: 20, class: "threshold" }),
    svg("line", { x1: x(low), x2: x(high), y1: 11, y2: 11, class: "span" }),
    svg("circle", { cx: x(gain), cy: 11, r: 4 }),
  );
}

function impact(adaptation) {
  const { decision, trial, impact: told } = adaptation;
  const expected = ["expected", signedPercent(decision.expected_impact)];
  if (told && "realised" in told) return [expected, ["realised", el("b", {}, signedPercent(told.realised))]];
  if (told) {
    return [
      expected,
      [`loss fell in ${plural(told.epochs, "epoch")} after`, el("b", {}, percent(told.after))],
      [`and in ${plural(told.epochs, "epoch")} before`, percent(told.before)],
    ];
  }
  return [expected, ["realised", trial || adaptation.outcome.status === "refused" ? "–" : "not known yet"]];
}

function verdict(adaptation) {
  const { trial, outcome } = adaptation;
  if (!trial)
    return block("What became of it", outcome.reason ? el("p", {}, outcome.reason) : null, pairs(impact(adaptation)));
  return block(
    "What became of it",
    el("p", {}, trial.reason),
    whisker(trial),
    pairs([
      ...impact(adaptation),
      ["gain, nats", `${small(number(trial.gain))} ± ${small(number(trial.gain_error))}`],
      ["held-out loss", `${loss(number(trial.loss_before))} → ${loss(number(trial.loss_after))}`],
      ["accuracy", `${percent(number(trial.accuracy_before))} → ${percent(number(trial.accuracy_after))}`],
      ["parameters", `+${count(trial.parameters)}`],
      trial.seconds ? ["took", seconds(trial.seconds)] : null,
    ]),
  );
}

function growth(run, adaptation) {
  const report = run.growths.find((each) => each.epoch === adaptation.epoch && adaptation.outcome.status === "grown");
  if (!report) return null;
  return block(
    "At its birth",
    pairs([
      ...Object.entries(report.sizes ?? {}).map(([name, [from, to]]) => [name, `${from} → ${to}`]),
      ["parameters", `+${count(report.parameters)}`],
      ["held-out loss moved by", small(number(report.loss_after) - number(report.loss_before))],
    ]),
  );
}

function lifecycle(run, adaptation) {
  const steps = run.lifecycle(adaptation);
  if (!steps.length) return null;
  return block(
    "The seed",
    el(
      "ol",
      { class: "steps" },
      steps.map(([epoch, state]) =>
        el("li", { data: { state } }, icon(`seed-${state}`), STATES[state] ?? state, el("small", {}, ` ${epoch + 1}`)),
      ),
    ),
  );
}

function kernel(adaptation) {
  const id = adaptation.outcome.kernel_id;
  if (!id) return null;
  const place = el("div", {}, el("p", { class: "sub" }, "asking the library"));
  get(`/api/v1/kernels/${encodeURIComponent(id)}`).then(
    (answer) => {
      const { kernel: record, standing } = answer;
      place.replaceChildren(
        pairs([
          ["id", el("code", {}, id)],
          record.name && ["name", record.name],
          record.tags?.length && ["tags", record.tags.join(", ")],
          record.parameters !== undefined && ["parameters", count(record.parameters)],
          record.input_shape && ["shape", `${record.input_shape.join("×")} → ${record.output_shape.join("×")}`],
          standing && ["kept in trials", `${standing.kept} of ${standing.trials}`],
          Number.isFinite(record.latency_ms) && ["latency", `${small(record.latency_ms)} ms`],
          record.blueprint_id && ["blueprint", el("code", {}, short(record.blueprint_id))],
          record.author && ["made by", record.author],
        ]),
      );
    },
    (error) => {
      place.replaceChildren(
        pairs([["id", el("code", {}, id)]]),
        el("p", { class: "sub" }, error.status === 404 ? "No longer in the library." : error.message),
      );
    },
  );
  return block("Kernel", place);
}

function evidence(decision) {
  const rows = Object.entries(decision.evidence ?? {}).map(([name, value]) => [words(name), small(number(value))]);
  return block(
    "Evidence",
    rows.length
      ? pairs([...rows, ["confidence", percent(number(decision.confidence), 0)]])
      : el("p", { class: "sub" }, "None was noted."),
  );
}

export function detail(run, adaptation) {
  const { decision } = adaptation;
  return [
    decision.reason ? el("p", { class: "reason" }, decision.reason) : null,
    verdict(adaptation),
    growth(run, adaptation),
    lifecycle(run, adaptation),
    evidence(decision),
    alternatives(decision),
    kernel(adaptation),
  ].filter(Boolean);
}
