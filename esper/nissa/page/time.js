// The bar at the bottom: which epoch is looked at, by hand, by keys, played, or the latest as it comes.

import { MARK_COLOURS } from "./charts.js";
import { colour, plain } from "./format.js";
import { sign } from "./run.js";

const FRAMES = 24; // epochs a second when playing; fewer in a short run
const PLAYED = 20; // seconds that playing a long run takes

const at = (id) => document.getElementById(id);

export class Time {
  // `onMove` is called, at most once a frame, when another epoch is looked at; `onEnter` opens what was decided there.
  constructor(onMove, onEnter) {
    this.onMove = onMove;
    this.onEnter = onEnter;
    this.runs = [];
    this.epoch = -1;
    this.following = true;
    this.frame = 0;
    this.playing = null;
    this.keys = {
      ArrowLeft: (event) => this.to(this.epoch - (event.shiftKey ? 10 : 1)),
      ArrowRight: (event) => this.to(this.epoch + (event.shiftKey ? 10 : 1)),
      Home: () => this.to(0),
      End: () => this.follow(),
      "[": () => this.#jump(-1),
      "]": () => this.#jump(1),
      p: () => this.#jump(-1), // where brackets need a third hand
      n: () => this.#jump(1),
      " ": () => this.#play(!this.playing),
      Enter: () => this.onEnter(this.epoch),
      "?": () => this.#toggleKeys(),
    };
    this.#wire();
  }

  get last() {
    return Math.max(-1, ...this.runs.map((run) => run.lastEpoch));
  }

  show(runs) {
    this.runs = runs;
    if (this.following) this.epoch = this.last;
    else this.epoch = Math.min(this.epoch, this.last);
    at("transport").hidden = this.last < 0;
    at("scrub").max = String(Math.max(0, this.last));
    this.#ticks();
    this.#tell();
  }

  to(epoch, following = false) {
    this.epoch = Math.max(0, Math.min(this.last, epoch));
    this.following = following;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#tell();
      this.onMove(this.epoch);
    });
  }

  follow() {
    this.to(this.last, true);
  }

  #tell() {
    const bar = at("scrub");
    if (bar.valueAsNumber !== this.epoch) bar.value = String(Math.max(0, this.epoch));
    bar.setAttribute("aria-valuetext", `epoch ${this.epoch + 1} of ${this.last + 1}`);
    at("at").textContent = `${plain(this.epoch + 1)} / ${plain(this.last + 1)}`;
    at("follow").textContent = this.runs.some((run) => run.going) ? "Live" : "End";
    at("follow").setAttribute("aria-pressed", String(this.following));
    document.body.classList.toggle("following", this.following);
  }

  // Where along the bar something was decided.
  #ticks() {
    const canvas = at("ticks");
    const scale = devicePixelRatio;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const ctx = canvas.getContext("2d");
    const last = Math.max(1, this.last);
    const inset = 8 * scale; // half of the bar's knob
    this.runs.forEach((run, which) =>
      run.marks.forEach((mark) => {
        ctx.fillStyle = colour(MARK_COLOURS[sign(mark.kind)]);
        const x = inset + (mark.epoch / last) * (canvas.width - 2 * inset);
        ctx.fillRect(Math.round(x - scale), which ? canvas.height - 5 * scale : 0, 2 * scale, 5 * scale);
      }),
    );
  }

  #jump(direction) {
    const { changes } = this.runs[0];
    const to =
      direction > 0 ? changes.find((epoch) => epoch > this.epoch) : changes.findLast((epoch) => epoch < this.epoch);
    if (to !== undefined) this.to(to);
  }

  #play(on) {
    clearInterval(this.playing);
    this.playing = null;
    at("play").textContent = on ? "❚❚" : "▶";
    at("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (!on) return;
    if (this.epoch >= this.last) this.to(0);
    const step = Math.max(1, Math.round(this.last / (FRAMES * PLAYED)));
    const rate = Math.min(FRAMES, Math.max(4, this.last / 8));
    this.playing = setInterval(() => {
      if (this.epoch < this.last) this.to(this.epoch + step);
      else {
        this.#play(false);
        this.follow();
      }
    }, 1000 / rate);
  }

  #toggleKeys() {
    at("keymap").hidden = !at("keymap").hidden;
    at("keys").setAttribute("aria-expanded", String(!at("keymap").hidden));
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const { key, target } = event;
    if (target.closest("select, textarea") || ((key === " " || key === "Enter") && target.closest("button, a"))) return;
    if (key === "Escape" && !at("keymap").hidden) this.#toggleKeys();
    else if (this.keys[key] && (this.last >= 0 || key === "?")) this.keys[key](event);
    else return;
    event.preventDefault();
  }

  #wire() {
    addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("resize", () => this.#ticks());
    at("scrub").addEventListener("input", (event) =>
      this.to(event.target.valueAsNumber, event.target.valueAsNumber >= this.last),
    );
    at("follow").addEventListener("click", () => this.follow());
    at("play").addEventListener("click", () => this.#play(!this.playing));
    at("prev").addEventListener("click", () => this.#jump(-1));
    at("next").addEventListener("click", () => this.#jump(1));
    at("keys").addEventListener("click", () => this.#toggleKeys());
  }
}
