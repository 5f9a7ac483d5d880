// What the page shows is a function of: the runs (#run=A&with=B), what the server said of them, and the epoch looked at.

import { Alerts, alertsOf } from "./alerts.js";
import { Charts, MARK_COLOURS } from "./charts.js";
import { Decisions } from "./decisions.js";
import { colour, coloursChanged, day, el, plain, plural } from "./format.js";
import { Heads } from "./layout.js";
import { Library } from "./library.js";
import { Networks } from "./network.js";
import { Run, sign } from "./run.js";
import { follow, get, history } from "./server.js";

const REFRESH = 250; // ms between two questions for the same run, at least
const LIST_EVERY = 5000;
const LIBRARY_EVERY = 15_000;
const FRAMES = 24; // epochs a second when playing; fewer in a short run

const $ = (id) => document.getElementById(id);

const state = { wanted: [null, null], runs: [], epoch: -1, following: true, playing: null, list: [], failures: [], link: "starting", lost: null };

const charts = new Charts((epoch) => scrub(epoch));
const heads = new Heads();
const networks = new Networks();
const decisions = new Decisions((epoch) => { if (epoch !== state.epoch) scrub(epoch); });
const alerts = new Alerts((epoch) => scrub(epoch));
const library = new Library((failures) => { state.failures = failures; alerts.show(alertsOf(state.runs, state.failures)); });

/* ---- which runs: the URL says, and can be shared ---- */

function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  state.wanted = [asked.get("run"), asked.get("with")];
}

function writeHash(run, beside) {
  const parts = new URLSearchParams();
  if (run) parts.set("run", run);
  if (beside) parts.set("with", beside);
  location.hash = parts.toString();
}

function pick() {
  writeHash($("run").value, $("with").value);
}

const wantedIds = () => [state.wanted[0] ?? state.list[0]?.run_id, state.wanted[1]].filter(Boolean);

async function askList() {
  let answer;
  try {
    answer = await get("/api/v1/runs");
  } catch (error) {
    if (error.status !== 404) throw error;
    answer = await get("/api/v1/status");
  }
  const list = answer.runs ?? answer.items ?? [];
  const said = JSON.stringify(list.map((each) => [each.run_id, each.status]));
  if (said !== state.said) {
    state.said = said;
    state.list = list;
    fillPickers();
  }
}

function fillPickers() {
  const option = (run, chosen) => el("option", { value: run.run_id, selected: run.run_id === chosen }, [run.experiment || "run", run.started && day(run.started), run.status].filter(Boolean).join(" · "));
  const [run, beside] = state.runs.length ? state.runs.map((each) => each.id) : state.wanted;
  const known = new Set(state.list.map((each) => each.run_id));
  const strangers = [run, beside].filter((id) => id && !known.has(id)).map((id) => ({ run_id: id, experiment: id, status: "" }));
  $("run").replaceChildren(...[...state.list, ...strangers].map((each) => option(each, run)));
  $("with").replaceChildren(el("option", { value: "" }, "no other"), ...[...state.list, ...strangers].filter((each) => each.run_id !== run).map((each) => option(each, beside)));
}

/* ---- asking for a run, and for what came since ---- */

const asking = new Map();

async function refresh(which) {
  const id = wantedIds()[which];
  if (!id || asking.get(id)) {
    if (id) asking.set(id, "again");
    return;
  }
  asking.set(id, "once");
  const known = state.runs[which];
  const same = known && (known.id === id || known.asked === id);
  try {
    const told = await history(id, same ? known.cursor : null);
    if (wantedIds()[which] !== id) return;
    if (same) known.merge(told);
    else {
      state.runs[which] = new Run(told);
      state.runs[which].asked = id;
    }
    state.lost = null;
    render(!same);
  } catch (error) {
    if (error.status === undefined) throw error;
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
  state.following = true;
  state.lost = null;
  const waiting = setTimeout(() => { if (!state.runs.length && wanted.length && $("notice").hidden) notice("Reading the run", el("p", { class: "sub" }, wanted.join(", "))); }, 300);
  await Promise.all(wanted.map((_, which) => refresh(which)));
  clearTimeout(waiting);
  fillPickers();
  if (!wanted.length) empty();
}

/* ---- drawing ---- */

const longest = () => Math.max(-1, ...state.runs.map((run) => run.lastEpoch));

function render(fresh) {
  const runs = state.runs.filter(Boolean);
  if (runs.length !== wantedIds().length) return;
  if (state.following) state.epoch = longest();
  $("content").hidden = false;
  $("notice").hidden = true;
  document.body.classList.toggle("both", runs.length > 1);
  document.title = `${runs.map((run) => run.run.experiment).join(" | ")} · Esper`;
  heads.show(runs, state.epoch);
  charts.show(runs, { fresh });
  networks.show(runs, state.epoch);
  decisions.show(runs, state.epoch);
  library.show(runs);
  alerts.show(alertsOf(runs, state.failures));
  transport(fresh);
  scrubbed();
  link();
}

function transport(fresh) {
  const last = longest();
  $("transport").hidden = last < 0;
  $("scrub").max = String(Math.max(0, last));
  const key = state.runs.map((run) => run.version).join();
  if (fresh || key !== state.ticksOf) {
    state.ticksOf = key;
    ticks();
  }
}

// Where along the bar something was decided.
function ticks() {
  const canvas = $("ticks");
  const scale = devicePixelRatio;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = canvas.clientHeight * scale;
  const ctx = canvas.getContext("2d");
  const last = Math.max(1, longest());
  const inset = 8 * scale;
  state.runs.forEach((run, which) => run.marks.forEach((mark) => {
    ctx.fillStyle = colour(MARK_COLOURS[sign(mark.kind)]);
    const x = inset + (mark.epoch / last) * (canvas.width - 2 * inset);
    ctx.fillRect(Math.round(x - scale), which ? canvas.height - 5 * scale : 0, 2 * scale, 5 * scale);
  }));
}

let frame = 0;

function scrub(epoch, { follow: live = false } = {}) {
  const last = longest();
  state.epoch = Math.max(0, Math.min(last, epoch));
  state.following = live;
  if (!frame) frame = requestAnimationFrame(scrubbed);
}

function scrubbed() {
  frame = 0;
  const { runs, epoch } = state;
  if (!runs.length || runs.includes(undefined)) return;
  document.body.classList.toggle("following", state.following);
  heads.scrub(runs, epoch);
  charts.scrub(epoch);
  networks.scrub(runs, epoch);
  decisions.scrub(epoch, !state.following);
  const bar = $("scrub");
  if (bar.valueAsNumber !== epoch) bar.value = String(Math.max(0, epoch));
  bar.setAttribute("aria-valuetext", `epoch ${epoch + 1} of ${longest() + 1}`);
  $("at").textContent = `${plain(epoch + 1)} / ${plain(longest() + 1)}`;
  const going = runs.some((run) => run.going);
  $("follow").textContent = going ? "Live" : "End";
  $("follow").setAttribute("aria-pressed", String(state.following));
}

/* ---- moving in time ---- */

function jump(direction) {
  const { changes } = state.runs[0];
  const to = direction > 0 ? changes.find((epoch) => epoch > state.epoch) : changes.findLast((epoch) => epoch < state.epoch);
  if (to !== undefined) scrub(to);
}

function play(on) {
  clearInterval(state.playing);
  state.playing = null;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (state.epoch >= longest()) scrub(0);
  const step = Math.max(1, Math.round(longest() / (FRAMES * 20)));
  const rate = Math.min(FRAMES, Math.max(4, longest() / 8));
  state.playing = setInterval(() => {
    if (state.epoch >= longest()) {
      play(false);
      scrub(longest(), { follow: true });
    } else scrub(state.epoch + step);
  }, 1000 / rate);
}

const KEYS = {
  ArrowLeft: (event) => scrub(state.epoch - (event.shiftKey ? 10 : 1)),
  ArrowRight: (event) => scrub(state.epoch + (event.shiftKey ? 10 : 1)),
  Home: () => scrub(0),
  End: () => scrub(longest(), { follow: true }),
  "[": () => jump(-1),
  "]": () => jump(1),
  " ": () => play(!state.playing),
  Enter: () => decisions.reveal(state.epoch),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const { target } = event;
  if (target.closest("select, textarea") || (event.key === " " || event.key === "Enter") && target.closest("button, a, summary")) return;
  if (event.key === "?") toggleKeys();
  else if (event.key === "Escape" && !$("keymap").hidden) toggleKeys();
  else if (KEYS[event.key] && longest() >= 0) KEYS[event.key](event);
  else return;
  event.preventDefault();
}

function toggleKeys() {
  $("keymap").hidden = !$("keymap").hidden;
  $("keys").setAttribute("aria-expanded", String(!$("keymap").hidden));
}

/* ---- colours ---- */

const THEMES = ["", "light", "dark"];

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("esper.theme", next); } catch { /* then only until the page is closed */ }
  $("theme").textContent = { "": "Auto", light: "Light", dark: "Dark" }[next];
  recolour();
}

function recolour() {
  coloursChanged();
  if (state.runs.length) render(true);
}

/* ---- when something is wrong, and when there is nothing yet ---- */

function notice(heading, ...content) {
  $("notice").replaceChildren(el("h1", {}, heading), ...content);
  $("notice").hidden = false;
}

function empty() {
  $("content").hidden = true;
  $("transport").hidden = true;
  notice("No run yet", el("p", {}, "Start one in the folder that this server reads; it appears here by itself."), el("pre", {}, el("code", {}, "esper train +experiment=smoke")));
}

function trouble(error) {
  state.lost = error;
  if (error.status === 401) {
    hide();
    notice("Not signed in", el("p", {}, "This server asks for a token, and yours is missing or has run out. Issue one, then open this page with ", el("code", {}, "/?token=TOKEN"), "."), el("pre", {}, el("code", {}, "esper token issue --person --role viewer --for NAME")));
  } else if (error.status === 403) {
    hide();
    notice("Not allowed", el("p", {}, "Your token is good, but its role may not read this. Ask for the role viewer."), el("p", { class: "sub" }, error.message));
  } else if (error.status === 404) {
    hide();
    notice("No such run", el("p", {}, error.message), el("p", {}, el("a", { href: "#" }, "Show the latest run"), " or choose one above."));
  } else if (!state.runs.length) {
    notice("No answer", el("p", {}, error.message), error.hint ? el("p", {}, error.hint) : null, el("p", { class: "sub" }, "Trying again."));
  }
  link();
}

function hide() {
  $("content").hidden = true;
  $("transport").hidden = true;
}

function link() {
  const going = state.runs.some((run) => run?.going);
  const what = state.lost && (state.lost.status === 0 || state.lost.status >= 500) ? "lost" : state.link;
  const text = { lost: "no answer", live: going ? "live" : "up to date", polling: "asking", starting: "connecting" }[what];
  $("link").dataset.state = what === "live" && !going ? "idle" : what;
  $("link").lastElementChild.textContent = text;
  $("link").title = state.lost ? state.lost.message : plural(state.list.length, "run");
}

/* ---- begin ---- */

async function quietly(ask) {
  try {
    await ask();
  } catch (error) {
    if (error.status === undefined) throw error;
    trouble(error);
  }
}

function onEvent(type, run) {
  if (type === null || type.startsWith("run_") || type === "control") quietly(async () => {
    const before = wantedIds()[0];
    await askList();
    if (wantedIds()[0] !== before) await choose();
  });
  state.runs.forEach((each, which) => {
    if (each && (type === null || run === null || each.id === run) && (type !== null || each.going || state.lost)) refresh(which);
  });
  // Trying again makes sense where nothing was said of the run itself.
  if (!state.runs.length && wantedIds().length && ![401, 403, 404].includes(state.lost?.status)) choose();
}

function wire() {
  addEventListener("hashchange", choose);
  addEventListener("keydown", onKey);
  addEventListener("resize", () => state.runs.length && ticks());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  $("run").addEventListener("change", pick);
  $("with").addEventListener("change", pick);
  $("scrub").addEventListener("input", (event) => scrub(event.target.valueAsNumber, { follow: event.target.valueAsNumber >= longest() }));
  $("follow").addEventListener("click", () => scrub(longest(), { follow: true }));
  $("play").addEventListener("click", () => play(!state.playing));
  $("prev").addEventListener("click", () => jump(-1));
  $("next").addEventListener("click", () => jump(1));
  $("keys").addEventListener("click", toggleKeys);
  $("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "") + 1) % 3]));
  theme(document.documentElement.dataset.theme ?? "");
}

async function begin() {
  wire();
  await quietly(async () => {
    readHash();
    if (!state.wanted[0]) await askList();
    await choose();
    if (state.wanted[0]) await askList();
  });
  follow(onEvent, (link_) => { state.link = link_; link(); });
  quietly(() => library.ask());
  setInterval(() => document.visibilityState === "visible" && quietly(askList), LIST_EVERY);
  setInterval(() => document.visibilityState === "visible" && quietly(() => library.ask()), LIBRARY_EVERY);
}

begin();
