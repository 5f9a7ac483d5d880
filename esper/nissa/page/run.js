// A run as the server tells it, and its network at any epoch.

import { number } from "./format.js";

const FACTS = [
  "run",
  "layers",
  "growths",
  "faults",
  "fault_counts",
  "rollbacks",
  "checkpoint",
  "cache",
  "queue",
  "sinks",
  "inventions",
];

// The last place in `rows` (sorted by their first entry) whose first entry is at most `epoch`; -1 when none is.
function lastAt(rows, epoch) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][0] <= epoch) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// How many of sorted `epochs` are before `epoch`.
const before = (epochs, epoch) => {
  let place = epochs.length;
  while (place > 0 && epochs[place - 1] >= epoch) place -= 1;
  return place;
};

export class Run {
  constructor(history) {
    this.columns = {};
    this.adaptations = [];
    this.sizes = [];
    this.states = [];
    this.merge(history);
  }

  get id() {
    return this.run.run_id;
  }
  get epochs() {
    return this.columns.epoch;
  }
  get length() {
    return this.epochs.length;
  }
  get lastEpoch() {
    return this.length ? this.epochs[this.length - 1] : -1;
  }
  get going() {
    return this.run.status === "running" || this.run.status === "paused";
  }

  // Take over what the server told: everything from `from_epoch` on, and the facts of the run.
  merge(history) {
    const from = history.from_epoch;
    const keep = before(this.columns.epoch ?? [], from);
    for (const [name, values] of Object.entries(history.epochs)) {
      this.columns[name] = [...(this.columns[name] ?? []).slice(0, keep), ...values.map(number)];
    }
    for (const name of FACTS) this[name] = history[name];
    this.sizes = [...this.sizes.filter((row) => row[0] < from), ...history.sizes];
    this.states = [...this.states.filter((row) => row[0] < from), ...history.states];
    if (from === 0) this.adaptations = [];
    for (const adaptation of history.adaptations) this.adaptations[adaptation.index] = adaptation;
    this.cursor = history.cursor;
    this.version = (this.version ?? 0) + 1;
    this.#index();
  }

  #index() {
    this.layerSizes = this.layers.map(() => []);
    this.seedStates = this.layers.map((layer) => Array.from({ length: layer.seeds }, () => []));
    this.largest = 1;
    for (const [epoch, layer, parameters] of this.sizes) {
      this.layerSizes[layer]?.push([epoch, parameters]);
      this.largest = Math.max(this.largest, parameters);
    }
    for (const [epoch, layer, seed, state, kernel] of this.states) {
      this.seedStates[layer]?.[seed]?.push([epoch, state, kernel]);
    }
    this.marks = this.adaptations.map((adaptation) => ({
      epoch: adaptation.epoch,
      kind: outcome(adaptation),
      adaptation,
    }));
    this.changes = [...new Set(this.marks.map((mark) => mark.epoch))].sort((a, b) => a - b);
  }

  // Place of `epoch` in the columns; -1 before the first.
  at(epoch) {
    if (epoch >= this.lastEpoch) return this.length - 1;
    const guess = this.epochs[epoch] === epoch ? epoch : -1;
    if (guess >= 0) return guess;
    let index = this.length - 1;
    while (index >= 0 && this.epochs[index] > epoch) index -= 1;
    return index;
  }

  value(name, epoch) {
    const index = this.at(epoch);
    return index < 0 ? undefined : this.columns[name][index];
  }

  size(layer, epoch) {
    const rows = this.layerSizes[layer];
    if (!rows.length) return 0;
    return rows[Math.max(0, lastAt(rows, epoch))][1];
  }

  sizeAtStart(layer) {
    return this.layerSizes[layer][0]?.[1] ?? 0;
  }

  // [state, kernel] of a seed at the end of `epoch`.
  seed(layer, seed, epoch) {
    const rows = this.seedStates[layer][seed];
    const index = lastAt(rows, epoch);
    return index < 0 ? ["DORMANT", null] : [rows[index][1], rows[index][2]];
  }

  census(epoch) {
    const counts = {};
    this.seedStates.forEach((seeds, layer) =>
      seeds.forEach((_, seed) => {
        const [state] = this.seed(layer, seed, epoch);
        counts[state] = (counts[state] ?? 0) + 1;
      }),
    );
    return counts;
  }

  // The steps of the seed that a decision was about, from that decision to the one after it.
  lifecycle(adaptation) {
    const layer = this.layers.findIndex((each) => each.name === adaptation.decision.target_component);
    const seed = adaptation.decision.parameters?.seed_idx;
    const rows = this.seedStates[layer]?.[seed];
    if (!rows) return [];
    const steps = [];
    for (const [epoch, state, kernel] of rows) {
      if (epoch < adaptation.epoch) continue;
      if (steps.length && state === "GERMINATED") break;
      if (steps.length || kernel === adaptation.outcome.kernel_id) steps.push([epoch, state]);
    }
    return steps;
  }
}

// What became of a decision: kept, culled, failed, grown, refused, rollback, or still on trial.
export function outcome(adaptation) {
  if (adaptation.trial) return adaptation.trial.verdict;
  if (adaptation.outcome.status === "grafted") return "trial";
  if (adaptation.decision.adaptation_type === "rollback") return "rollback";
  return adaptation.outcome.status;
}

export const OUTCOMES = {
  kept: "kept",
  grown: "grown",
  trial: "on trial",
  culled: "culled",
  failed: "failed",
  refused: "refused",
  rollback: "rolled back",
};

const SIGNS = {
  kept: "kept",
  grown: "grown",
  trial: "trial",
  culled: "culled",
  failed: "failed",
  refused: "refused",
  rollback: "rollback",
};

export const sign = (kind) => SIGNS[kind] ?? "trial";

// "add seed at hidden.0, seed 2"
export function title(decision) {
  const what =
    decision.adaptation_type === "modify_architecture"
      ? (decision.parameters?.operator ?? "modify architecture")
      : decision.adaptation_type.replaceAll("_", " ");
  const seed = decision.parameters?.seed_idx;
  const where = decision.parameters?.target ?? decision.target_component;
  return { what, where: `${where}${seed === undefined || seed === null ? "" : ` · seed ${seed}`}` };
}
