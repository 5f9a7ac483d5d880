// The network as layers, widest line for the largest, each cut into its seeds; only rows in sight exist.

import * as format from "./format.js";

const ROW = 34;
const SPARE = 4;
const MAX_SEEDS_DRAWN = 32;
const MAP_WIDTH = 44;

const STATE_COLOURS = {
  DORMANT: "seed-dormant",
  GERMINATED: "seed-germinated",
  TRAINING: "seed-training",
  BLENDING: "seed-blending",
  HOLDING: "seed-holding",
  FOSSILIZED: "seed-fossilized",
  CULLED: "seed-culled",
  EMBARGOED: "seed-embargoed",
  ERROR_RECOVERY: "seed-error",
};
const WEIGHT = Object.keys(STATE_COLOURS).reduce((weights, state, place) => ({ ...weights, [state]: place }), {});

class Network {
  constructor(which) {
    this.which = which;
    this.rows = new Map();
    this.chosen = 0;
    this.spacer = format.el("div", { class: "spacer" });
    this.scroller = format.el(
      "div",
      {
        class: "layers",
        tabindex: "0",
        role: "listbox",
        "aria-label": `Layers of run ${which ? "B" : "A"}; arrow keys move, the line below tells`,
      },
      this.spacer,
    );
    this.map = format.el("canvas", { class: "map", "aria-hidden": "true", width: String(MAP_WIDTH) });
    this.caption = format.el("p", { class: "sub name" });
    this.told = format.el("p", { class: "told", "aria-live": "polite" });
    this.census = format.el("ul", { class: "census", "aria-label": "Seeds by state" });
    this.node = format.el(
      "div",
      { class: "network" },
      this.caption,
      this.census,
      format.el("div", { class: "frame" }, this.scroller, this.map),
      this.told,
    );
    this.top = 0;
    this.height = 0; // both as last seen: to ask for them while drawing would lay out the page each time
    this.scroller.addEventListener(
      "scroll",
      () => {
        this.top = this.scroller.scrollTop;
        this.draw();
      },
      { passive: true },
    );
    this.scroller.addEventListener("keydown", (event) => this.#key(event));
    this.map.addEventListener("pointerdown", (event) => this.#jump(event));
    this.map.addEventListener("pointermove", (event) => event.buttons && this.#jump(event));
    new ResizeObserver(() => {
      this.#measure();
      this.draw();
    }).observe(this.scroller);
  }

  // Takes over what is known of a run; scrub draws it.
  show(run, name) {
    const shape = `${run.id} ${run.layers.map((layer) => `${layer.name} ${layer.seeds}`)}`;
    if (this.shape !== shape) {
      this.shape = shape;
      this.rows.forEach((row) => row.node.remove());
      this.rows.clear();
      this.chosen = 0;
    }
    this.run = run;
    this.caption.textContent = name;
    this.caption.hidden = !name;
    this.spacer.style.height = `${run.layers.length * ROW}px`;
    this.#measure();
  }

  #measure() {
    this.height = this.scroller.clientHeight;
    this.top = this.scroller.scrollTop;
    this.map.hidden = !this.run || this.run.layers.length * ROW <= this.height + 1;
  }

  draw() {
    const { run, top, height } = this;
    if (!run || this.epoch === undefined) return;
    const first = Math.max(0, Math.floor(top / ROW) - SPARE);
    const last = Math.min(run.layers.length, Math.ceil((top + height) / ROW) + SPARE);
    for (const [place, row] of this.rows) {
      if (place < first || place >= last) {
        row.node.remove();
        this.rows.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!this.rows.has(place)) this.rows.set(place, this.#row(place));
      this.#paint(place, this.rows.get(place));
    }
    this.scroller.setAttribute("aria-activedescendant", `layer-${this.which}-${this.chosen}`);
    if (!this.map.hidden) this.#paintMap(height);
    this.#count();
    this.#tell();
  }

  #row(place) {
    const layer = this.run.layers[place];
    const seeds = Array.from({ length: Math.min(layer.seeds, MAX_SEEDS_DRAWN) }, () => {
      const use = format.icon("seed-DORMANT");
      return { node: format.el("span", { class: "seed" }, use, format.el("em")), use: use.firstChild, state: null };
    });
    const bar = format.el(
      "span",
      { class: "strip" },
      seeds.map((seed) => seed.node),
    );
    const size = format.el("span", { class: "size" });
    const factor = format.el("span", { class: "factor" });
    const node = format.el(
      "div",
      {
        class: "layer",
        role: "option",
        id: `layer-${this.which}-${place}`,
        "aria-setsize": String(this.run.layers.length),
        "aria-posinset": String(place + 1),
        onclick: () => {
          this.chosen = place;
          this.draw();
        },
      },
      format.el("span", { class: "label", title: layer.name }, layer.name, format.el("small", {}, layer.kind)),
      format.el("span", { class: "lane" }, bar),
      size,
      factor,
    );
    node.style.transform = `translateY(${place * ROW}px)`;
    this.spacer.append(node);
    return { node, bar, seeds, size, factor, said: null };
  }

  #paint(place, row) {
    const { run, epoch } = this;
    const size = run.size(place, epoch);
    const states = row.seeds.map((_, seed) => run.seed(place, seed, epoch)[0]);
    const chosen = place === this.chosen;
    const said = `${size}|${run.largest}|${states.join()}|${chosen}`;
    if (row.said === said) return;
    row.said = said;
    const start = run.sizeAtStart(place);
    row.bar.style.width = `${size ? Math.max(20, 100 * Math.sqrt(size / run.largest)) : 100}%`;
    row.size.textContent = size ? format.count(size) : "";
    row.factor.textContent = start && size / start >= 1.05 ? `×${(size / start).toFixed(1)}` : "";
    states.forEach((state, seed) => {
      const cell = row.seeds[seed];
      if (cell.state === state) return;
      cell.state = state;
      cell.node.dataset.state = state;
      cell.use.setAttribute("href", `#seed-${state in STATE_COLOURS ? state : "DORMANT"}`);
      cell.node.lastChild.textContent = state === "DORMANT" ? "" : (format.STATES[state] ?? state);
      cell.node.title = `seed ${seed}: ${format.STATES[state] ?? state}`;
    });
    row.node.setAttribute("aria-selected", String(chosen));
    row.node.setAttribute(
      "aria-label",
      `${run.layers[place].name}, ${size ? `${size} parameters, ` : ""}seeds ${states.map((state) => format.STATES[state] ?? state).join(", ")}`,
    );
  }

  #count() {
    const counts = this.run.census(this.epoch);
    const states = Object.keys(counts).sort((a, b) => (WEIGHT[a] ?? 99) - (WEIGHT[b] ?? 99));
    format.redraw(this.census, states.map((state) => state + counts[state]).join(), () =>
      states.map((state) =>
        format.el(
          "li",
          { data: { state } },
          format.icon(`seed-${state in STATE_COLOURS ? state : "DORMANT"}`),
          format.el("b", {}, format.plain(counts[state])),
          ` ${format.STATES[state] ?? state}`,
        ),
      ),
    );
  }

  // All layers at once, a line each: where in a deep network something happens.
  #paintMap(height) {
    const { run, epoch } = this;
    const scale = devicePixelRatio;
    const ctx = this.map.getContext("2d");
    if (this.map.height !== Math.round(height * scale)) {
      this.map.height = Math.round(height * scale);
      this.map.width = Math.round(MAP_WIDTH * scale);
    }
    const layers = run.layers.length;
    const line = (height * scale) / layers;
    ctx.clearRect(0, 0, this.map.width, this.map.height);
    for (let place = 0; place < layers; place += 1) {
      const width = Math.max(0.2, Math.sqrt(run.size(place, epoch) / run.largest)) * (this.map.width - 4 * scale);
      const seeds = run.layers[place].seeds || 1;
      for (let seed = 0; seed < run.layers[place].seeds; seed += 1) {
        ctx.fillStyle = format.colour(STATE_COLOURS[run.seed(place, seed, epoch)[0]] ?? "seed-dormant");
        ctx.fillRect(
          2 * scale + (seed * width) / seeds,
          place * line,
          width / seeds,
          Math.max(1, line - (line > 3 ? 1 : 0)),
        );
      }
    }
    const top = (this.top / (layers * ROW)) * this.map.height;
    const share = (height / (layers * ROW)) * this.map.height;
    ctx.strokeStyle = format.colour("ink");
    ctx.lineWidth = 1.5 * scale;
    ctx.strokeRect(
      scale,
      Math.min(top, this.map.height - share) + scale,
      this.map.width - 2 * scale,
      Math.max(4, share - 2 * scale),
    );
  }

  #jump(event) {
    const share = event.offsetY / this.map.clientHeight;
    this.scroller.scrollTop = share * this.run.layers.length * ROW - this.scroller.clientHeight / 2;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / ROW) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[
      event.key
    ];
    if (step === undefined || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.chosen = Math.min(this.run.layers.length - 1, Math.max(0, this.chosen + step));
    const top = this.chosen * ROW;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    if (top + ROW > this.scroller.scrollTop + this.scroller.clientHeight)
      this.scroller.scrollTop = top + ROW - this.scroller.clientHeight;
    this.draw();
  }

  #tell() {
    const layer = this.run.layers[this.chosen];
    if (!layer) return;
    const seeds = Array.from({ length: Math.min(layer.seeds, MAX_SEEDS_DRAWN) }, (_, seed) => {
      const [state, kernel] = this.run.seed(this.chosen, seed, this.epoch);
      return state === "DORMANT"
        ? null
        : `seed ${seed} ${format.STATES[state] ?? state}${kernel ? ` (${format.short(kernel)})` : ""}`;
    }).filter(Boolean);
    const text = `${layer.name}${layer.kind ? `, ${layer.kind}` : ""}: ${seeds.length ? seeds.join(", ") : format.plural(layer.seeds, "seed") + ", all dormant"}`;
    if (this.told.textContent !== text) this.told.textContent = text;
  }
}

export class Networks {
  constructor() {
    this.place = document.getElementById("networks");
    this.at = document.getElementById("network-at");
    this.drawings = [new Network(0), new Network(1)];
  }

  show(runs) {
    const nodes = runs.map((_, which) => this.drawings[which].node);
    if (this.place.childElementCount !== nodes.length) this.place.replaceChildren(...nodes);
    runs.forEach((run, which) =>
      this.drawings[which].show(run, runs.length > 1 ? `${which ? "B" : "A"}  ${run.run.experiment}` : ""),
    );
  }

  scrub(runs, epoch) {
    runs.forEach((run, which) => {
      this.drawings[which].epoch = epoch;
      this.drawings[which].draw();
    });
    const run = runs[0];
    const seeds = run.layers.reduce((sum, layer) => sum + layer.seeds, 0);
    this.at.textContent = `${format.plural(run.layers.length, "layer")}, ${format.plural(seeds, "seed")}${epoch >= 0 ? `, after epoch ${epoch + 1}` : ""}`;
  }
}
