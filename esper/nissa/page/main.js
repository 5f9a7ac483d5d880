// What the page shows is a function of: the runs (#run=A&with=B), what the server said of them, and the epoch looked at.

import { Alerts, alertsOf } from "./alerts.js";
import { Charts } from "./charts.js";
import { Decisions } from "./decisions.js";
import { coloursChanged, day, el, plural } from "./format.js";
import { Heads } from "./layout.js";
import { Library } from "./library.js";
import { Networks } from "./network.js";
import { say, sayEmpty, saying, sayTrouble, silence } from "./notices.js";
import { Run } from "./run.js";
import { follow, get, history } from "./server.js";
import { Time } from "./time.js";

const REFRESH = 250; // ms between two questions for the same run, at least
const LIST_EVERY = 5000;
const LIBRARY_EVERY = 15_000;
const QUEUE_EVERY = 3000; // while something is compiled
const LISTED = 200; // runs to choose from; any other by its address
const REFUSALS = [401, 403, 404]; // to ask again does not help

const $ = (id) => document.getElementById(id);

const state = { wanted: [null, null], runs: [], list: [], failures: [], link: "starting", lost: null };

const time = new Time(
  () => scrubbed(),
  (epoch) => decisions.reveal(epoch),
);
const charts = new Charts((epoch) => time.to(epoch));
const heads = new Heads();
const networks = new Networks();
const decisions = new Decisions((epoch) => {
  if (epoch !== time.epoch) time.to(epoch);
});
const alerts = new Alerts((epoch) => time.to(epoch));
const library = new Library((failures) => {
  state.failures = failures;
  alerts.show(alertsOf(state.runs, failures));
});

/* ---- which runs: the URL says, and can be shared ---- */

function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  state.wanted = [asked.get("run"), asked.get("with")];
}

function pick() {
  const parts = new URLSearchParams({ run: $("run").value });
  if ($("with").value) parts.set("with", $("with").value);
  location.hash = parts.toString();
}

const wantedIds = () => [state.wanted[0] ?? state.list[0]?.run_id, state.wanted[1]].filter(Boolean);

async function askList() {
  const { runs } = await get(`/api/v1/runs?limit=${LISTED}`);
  const said = JSON.stringify(runs.map((each) => [each.run_id, each.status]));
  if (said === state.said) return;
  state.said = said;
  state.list = runs;
  fillPickers();
  state.runs.forEach((run, which) => {
    const listed = runs.find((each) => each.run_id === run?.id);
    if (listed && listed.status !== run.run.status) refresh(which); // a process that was killed tells of no event
  });
}

// The list may lag behind the event that told of a run: whoever asks for it looks whether there is a newer one.
async function askNewest() {
  const before = wantedIds()[0];
  await askList();
  if (wantedIds()[0] !== before) await choose();
  const newest = state.list[0]?.run_id;
  state.runs.forEach((run, which) => {
    if (run?.asked === "latest" && newest && run.id !== newest) refresh(which); // it began while nobody listened
  });
}

function fillPickers() {
  const [run, beside] = state.runs.length ? state.runs.map((each) => each.id) : state.wanted;
  const known = new Set(state.list.map((each) => each.run_id));
  const strangers = [run, beside].filter((id) => id && !known.has(id)).map((id) => ({ run_id: id, experiment: id }));
  const option = (each, chosen) =>
    el(
      "option",
      { value: each.run_id, selected: each.run_id === chosen },
      [each.experiment || "run", each.started && day(each.started), each.status].filter(Boolean).join(" · "),
    );
  const all = [...state.list, ...strangers];
  $("run").replaceChildren(...all.map((each) => option(each, run)));
  $("with").replaceChildren(
    el("option", { value: "" }, "no other"),
    ...all.filter((each) => each.run_id !== run).map((each) => option(each, beside)),
  );
}

/* ---- asking for a run, and for what came since ---- */

const asking = new Map();

async function refresh(which) {
  const id = wantedIds()[which];
  if (!id || asking.has(id)) {
    if (id) asking.set(id, "again");
    return;
  }
  asking.set(id, "once");
  const known = state.runs[which];
  const same = known && (known.id === id || known.asked === id);
  try {
    const told = await history(id, same ? known.cursor : null);
    if (wantedIds()[which] !== id) return;
    const more = same && known.id === told.run.run_id; // "latest" may be another by now
    if (more) known.merge(told);
    else {
      state.runs[which] = new Run(told);
      state.runs[which].asked = id;
    }
    state.lost = null;
    render(!more);
  } catch (error) {
    trouble(error);
  } finally {
    setTimeout(() => {
      const again = asking.get(id) === "again";
      asking.delete(id);
      if (again) refresh(which);
    }, REFRESH);
  }
}

async function choose() {
  readHash();
  const wanted = wantedIds();
  state.runs = wanted.map((id) => state.runs.find((run) => run.id === id || run.asked === id)).filter(Boolean);
  if (state.runs.length !== wanted.length) state.runs = [];
  time.following = true;
  state.lost = null;
  const waiting = setTimeout(() => {
    if (!state.runs.length && wanted.length && !saying())
      say("Reading the run", el("p", { class: "sub" }, wanted.join(", ")));
  }, 300);
  await Promise.all(wanted.map((_, which) => refresh(which)));
  clearTimeout(waiting);
  fillPickers();
  if (!wanted.length) sayEmpty();
}

/* ---- drawing ---- */

function render(fresh) {
  const { runs } = state;
  if (runs.length !== wantedIds().length || runs.includes(undefined)) return;
  $("content").hidden = false;
  silence();
  document.body.classList.toggle("both", runs.length > 1);
  document.body.classList.toggle("no-epoch", !runs.some((run) => run.length));
  document.body.classList.toggle("no-layer", !runs.some((run) => run.layers.length));
  document.title = `${runs.map((run) => run.run.experiment).join(" | ")} · Esper`;
  time.show(runs);
  heads.show(runs, time.epoch);
  charts.show(runs, { fresh });
  networks.show(runs);
  decisions.show(runs);
  library.show(runs);
  alerts.show(alertsOf(runs, state.failures));
  scrubbed();
  link();
}

function scrubbed() {
  const { runs } = state;
  if (!runs.length || runs.includes(undefined)) return;
  heads.scrub(runs, time.epoch);
  charts.scrub(time.epoch);
  networks.scrub(runs, time.epoch);
  decisions.scrub(time.epoch, !time.following);
}

/* ---- colours ---- */

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("esper.theme", next);
  } catch {
    /* then only until the page is closed */
  }
  $("theme").textContent = THEMES[next];
  recolour();
}

function recolour() {
  coloursChanged();
  if (state.runs.length) render(true);
}

/* ---- the server: what it says, that it is silent ---- */

function trouble(error) {
  if (error.status === undefined) throw error; // a defect of this page, for its console
  state.lost = error;
  sayTrouble(error, state.runs.length > 0);
  link();
}

function link() {
  const going = state.runs.some((run) => run?.going);
  const lost = state.lost !== null && !REFUSALS.includes(state.lost.status);
  const what = lost ? "lost" : state.link;
  $("link").dataset.state = what === "live" && !going ? "idle" : what;
  $("link").lastElementChild.textContent = {
    lost: "no answer",
    live: going ? "live" : "up to date",
    polling: "asking",
    starting: "connecting",
  }[what];
  $("link").title = lost ? state.lost.message : plural(state.list.length, "run");
}

const quietly = (ask) => ask().catch(trouble);

// Word that something happened in a run; without a type, that something may have.
function onEvent(type, run) {
  if (document.hidden) {
    state.missed = true; // nobody looks; all of it is asked for when somebody does
    return;
  }
  if (type === null || type.startsWith("run_") || type === "control" || type === "preparing")
    quietly(askNewest);
  state.runs.forEach((each, which) => {
    if (!each) return;
    const another = (type === "preparing" || type === "run_started") && each.asked === "latest";
    const about = type === null ? each.going || state.lost : run === null || each.id === run || another;
    if (about) refresh(which);
  });
  if (!state.runs.length && wantedIds().length && !REFUSALS.includes(state.lost?.status)) quietly(choose);
}

function onVisible() {
  if (document.hidden || !state.missed) return;
  state.missed = false;
  state.runs.forEach((_, which) => refresh(which));
  onEvent(null, null);
}

/* ---- begin ---- */

function wire() {
  addEventListener("hashchange", () => quietly(choose));
  document.addEventListener("visibilitychange", onVisible);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  $("run").addEventListener("change", pick);
  $("with").addEventListener("change", pick);
  const names = Object.keys(THEMES);
  const chosen = () => document.documentElement.dataset.theme ?? "";
  $("theme").addEventListener("click", () => theme(names[(names.indexOf(chosen()) + 1) % names.length]));
  theme(chosen());
}

const nowAndThen = (ask, every) => setInterval(() => document.hidden || quietly(ask), every);

async function begin() {
  wire();
  await quietly(async () => {
    readHash();
    if (!state.wanted[0]) await askList();
    await choose();
    if (state.wanted[0]) await askList();
  });
  follow(onEvent, (next) => {
    state.link = next;
    link();
  });
  quietly(() => library.ask());
  nowAndThen(askNewest, LIST_EVERY);
  nowAndThen(() => library.ask(), LIBRARY_EVERY);
  nowAndThen(async () => library.busy && (await library.ask()), QUEUE_EVERY);
}

begin();
