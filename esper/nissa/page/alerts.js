// What someone should look at: how a run ended, rollbacks, faults, open circuits, sinks that are down, compilations.

import { clock, day, el, plural, redraw, seconds, words } from "./format.js";

const MOST = 50;
const BEFORE = 600_000; // ms: what is compiled for a run is compiled before it starts

// Whether something that happened at that time is of interest to who looks at that run.
const during = (facts, at) =>
  Date.parse(at) >= Date.parse(facts.started) - BEFORE &&
  (facts.status === "running" || facts.status === "paused" || Date.parse(at) <= Date.parse(facts.last_event));

export function alertsOf(runs, compilations) {
  const alerts = [];
  runs.forEach((run, which) => {
    const label = runs.length > 1 ? (which ? "B: " : "A: ") : "";
    const { run: facts } = run;
    const add = (level, what, detail, at, more) => alerts.push({ level, what: label + what, detail, at, ...more });
    const resume = facts.epochs ? { next: `esper train --resume ${facts.run_id}` } : {};
    if (facts.status === "failed") add("bad", "The run failed", facts.error, facts.last_event, resume);
    if (facts.status === "stopped")
      add(
        "bad",
        "The run stopped without a last word",
        "Its process is gone: killed, out of memory, or the power was cut.",
        facts.last_event,
        resume,
      );
    for (const each of run.rollbacks) {
      const seeds = each.seeds.map(([layer, seed]) => `${layer} seed ${seed}`).join(", ");
      add(
        "bad",
        `Rolled back: ${each.kind}`,
        `${each.detail}. From step ${each.from_step} back to ${each.to_step} (epoch ${each.to_epoch}) in ${seconds(each.seconds)}; cause: ${each.cause}${seeds ? `; culled ${seeds}` : ""}.`,
        each.at,
        { epoch: each.epoch },
      );
    }
    for (const each of run.faults)
      add("bad", `Kernel ${words(each.kind)} at ${each.layer} seed ${each.seed_idx}`, each.message, each.at, {
        epoch: each.epoch,
      });
    for (const [tier, each] of Object.entries(run.cache ?? {})) {
      if (each.state && each.state !== "closed")
        add(
          "wait",
          `Circuit ${each.state}: ${tier}`,
          `${plural(each.errors, "error")}; the tiers behind it answer meanwhile.`,
          facts.last_event,
        );
    }
    for (const [name, sink] of Object.entries(run.sinks ?? {})) {
      if (sink.state === "down")
        add(
          "wait",
          `Sink ${name} takes no messages`,
          `${sink.reason ? `${sink.reason}. ` : ""}The journal has every event, and training does not wait.`,
          facts.last_event,
          { next: `esper doctor nissa/sinks=${name}` },
        );
    }
    if (run.queue?.waiting && !run.queue.workers)
      add(
        "wait",
        `${plural(run.queue.waiting, "kernel")} to be compiled, and no worker`,
        "Nobody who serves the broker has been heard of.",
        run.queue.oldest,
        { next: "esper worker" },
      );
    if (facts.inventing_error) add("wait", "Inventing ended before the run", facts.inventing_error, facts.last_event);
    if (facts.damaged_lines)
      add(
        "wait",
        `${plural(facts.damaged_lines, "line")} of the journal could not be read`,
        "They are left out here.",
        facts.last_event,
      );
  });
  for (const each of compilations.filter((failed) => runs.some((run) => during(run.run, failed.at))))
    alerts.push({
      level: "wait",
      what: `Compilation failed: ${each.blueprint_name || each.blueprint_id}`,
      detail: [each.stage, each.reason].filter(Boolean).join(": "),
      at: each.at,
    });
  return alerts.sort((a, b) => String(b.at ?? "").localeCompare(String(a.at ?? "")));
}

export class Alerts {
  constructor(goTo) {
    this.goTo = goTo;
    this.place = document.getElementById("alert-list");
    this.counted = document.getElementById("alert-count");
    this.bell = document.getElementById("bell");
  }

  show(alerts) {
    this.counted.textContent = alerts.length ? String(alerts.length) : "";
    this.bell.hidden = !alerts.length;
    this.bell.textContent = plural(alerts.length, "alert");
    redraw(this.place, JSON.stringify(alerts), () =>
      alerts.length
        ? el(
            "ul",
            { class: "alerts", tabindex: "0", "aria-label": "Alerts, the newest first" },
            alerts.slice(0, MOST).map((alert) =>
              el(
                "li",
                { class: alert.level },
                el("b", {}, alert.what),
                alert.epoch !== undefined
                  ? el(
                      "button",
                      {
                        type: "button",
                        class: "quiet",
                        title: clock(alert.at),
                        onclick: () => this.goTo(alert.epoch),
                      },
                      `epoch ${alert.epoch + 1}`,
                    )
                  : alert.at
                    ? el("time", { datetime: alert.at, title: day(alert.at) }, clock(alert.at))
                    : null,
                alert.detail ? el("p", {}, alert.detail) : null,
                alert.next ? el("p", {}, "Next: ", el("code", {}, alert.next)) : null,
              ),
            ),
            alerts.length > MOST ? el("li", { class: "sub" }, `and ${alerts.length - MOST} earlier`) : null,
          )
        : el("p", { class: "empty" }, "None: no rollback, fault, open circuit, silent sink or failed compilation."),
    );
  }
}
