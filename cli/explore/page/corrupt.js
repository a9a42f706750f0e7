// A picture on its way through the flow, with the velocity field and spectra beside it.

import { Field, plot, showPixels } from "./draw.js";
import { messages } from "./stream.js";

const COARSE = [128, 32]; // shorter side, frames
const $ = (id) => document.getElementById(id);

// Frames at one resolution.
class Trajectory {
  constructor(about) {
    this.about = about;
    this.frames = [];
    if (about.field) this.field = new Float32Array(about.body.buffer);
  }

  add(frame) {
    const pixels = 3 * this.about.height * this.about.width;
    frame.pixels = frame.body.subarray(0, pixels);
    if (frame.field) frame.velocity = new Float32Array(frame.body.slice(pixels).buffer);
    frame.spectrum ??= this.frames.at(-1)?.spectrum;
    this.frames[frame.number] = frame;
  }
}

export class Corrupt {
  constructor(app) {
    this.app = app;
    this.keys = ["picture", "size", "process", "peclet", "sigma", "octaves", "turbulence", "time", "seed", "strokes"];
    this.filmPath = "/api/film";
    this.field = new Field($("field"));
    this.paint();
  }

  query(size = Number(this.app.state.size), frames) {
    const values = Object.fromEntries(this.keys.map((key) => [key, this.app.state[key]]).filter(([, value]) => value !== ""));
    values.sigma = this.app.state.sigma / 100;
    // A process without a flow takes no Peclet number.
    if (this.app.choices.processes[values.process]?.peclet === 0) delete values.peclet;
    return { ...values, size, frames: frames ?? (size <= 256 ? 96 : 48) };
  }

  // Coarse at once, then fine as soon as nothing has changed for a moment. While a coarse one is under way the next change waits.
  async load() {
    this.wanted = true;
    this.app.stop();
    clearTimeout(this.later);
    if (this.loading) return;
    this.loading = true;
    this.app.busy(true);
    const started = performance.now();
    try {
      while (this.wanted) {
        this.wanted = false;
        await this.receive(this.query(...COARSE));
      }
      this.app.took = performance.now() - started;
      this.later = setTimeout(() => this.refine(), 150);
    } catch (error) {
      if (!this.wanted) this.app.fail(error);
    } finally {
      this.loading = false;
    }
    if (this.wanted) this.load();
  }

  refine() {
    if (this.app.state.view === "corrupt") this.app.work((signal) => this.receive(this.query(), signal, true));
  }

  async receive(query, signal, fine = false) {
    let trajectory;
    for await (const message of messages("/api/trajectory", query, signal)) {
      if (message.kind === "scene") {
        trajectory = new Trajectory(message);
        if (fine) this.finer = trajectory;
        else [this.coarse, this.finer] = [trajectory, null];
        this.began(trajectory);
      } else {
        trajectory.add(message);
        if (message.number === this.app.player.number || trajectory.frames.length === 1) this.show();
      }
    }
    this.show();
  }

  began({ about, field }) {
    if (this.app.state.view !== "corrupt") return;
    // A step of the keys is a fine frame.
    this.app.player.frames = this.query().frames;
    this.app.command(about.command.replace(/--size \d+/, `--size ${this.app.state.size}`));
    $("corrupt").style.setProperty("--aspect", about.width / about.height);
    this.field.show(field, ...(about.field ?? [1, 1]));
    $("field-caption").textContent = field ? "Velocity: speed (bright is fast), and particles in the flow" : "No flow";
    const law = about.k?.map((k) => 1.5 * Math.max(...about.energy) * k ** (-5 / 3));
    plot(
      $("energy"),
      [
        { x: about.k, y: law, colour: "--soft", dashed: true, width: 1.2 },
        { x: about.k, y: about.energy, colour: "--warm" },
      ],
      { xLabel: "waves per side; dashed: k^(-5/3)", decades: 4 });
    this.show();
  }

  // The frame of the slider: the fine one, else the coarse one, else the last that has come.
  show() {
    if (this.app.state.view !== "corrupt" || !this.coarse) return;
    const place = (trajectory) => trajectory && Math.round(this.app.player.share * (trajectory.about.frames - 1));
    const [fine, coarse] = [this.finer, this.coarse].map((trajectory) => trajectory?.frames[place(trajectory)]);
    const frame = fine ?? coarse ?? this.coarse.frames.at(-1), { about } = fine ? this.finer : this.coarse;
    if (!frame) return;
    showPixels($("picture"), frame.pixels, about.width, about.height);
    if (frame.velocity) this.field.show(frame.velocity, ...frame.field);
    const first = (fine ? this.finer : this.coarse).frames[0];
    plot(
      $("spectrum"),
      [
        { x: about.wavenumbers, y: first?.spectrum ?? [], colour: "--soft", width: 1.2 },
        { x: about.wavenumbers, y: frame.spectrum, colour: "--accent" },
      ],
      { xLabel: "waves per side; grey: clean" });
    $("picture-caption").textContent = `${about.title}, ${about.width} x ${about.height} px`;
    this.app.numbers({
      σ: `${frame.sigma.toPrecision(3)} px`,
      Fo: frame.fourier.toPrecision(3),
      "carried about": `${(100 * about.peclet * frame.fourier).toPrecision(2)} % of the side`,
      signal: frame.signal.toFixed(2),
      noise: frame.noise.toFixed(3),
      mean: frame.mean.toFixed(4),
      deviation: frame.deviation.toFixed(4),
    });
  }

  png() {
    return $("picture");
  }

  // Strokes are kept in the address: a word for each, x and y of its points in thousandths.
  paint() {
    let stroke = null;
    const point = (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) =>
        Math.round(1000 * Math.min(Math.max(v, 0), 1)));
    };
    const words = () => this.app.state.strokes.split(" ").filter(Boolean);
    for (const place of [$("picture"), $("field")]) {
      place.addEventListener("pointerdown", (event) => {
        if (!this.painting || event.button || this.app.state.process) return;
        place.setPointerCapture(event.pointerId);
        stroke = [point(event)];
        event.preventDefault();
      });
      place.addEventListener("pointermove", (event) => {
        if (!stroke) return;
        const next = point(event), last = stroke.at(-1);
        if (Math.hypot(next[0] - last[0], next[1] - last[1]) < 30) return;
        const before = stroke.length > 1 ? words().slice(0, -1) : words();
        const points = [...before, "", ...stroke].join(",").split(",").length / 2;
        if (before.length >= 64 || points > 500) return this.app.say("The flow is full of strokes; clear it to paint on.");
        stroke.push(next);
        this.app.set({ strokes: [...before, stroke.flat().join(",")].join(" ") });
      });
      for (const end of ["pointerup", "pointercancel"]) {
        place.addEventListener(end, () => {
          if (stroke?.length > 1) (this.app.player.play(1, true), this.app.player.go(0));
          stroke = null;
        });
      }
    }
    $("paint").addEventListener("click", () => this.togglePainting());
    $("undo").addEventListener("click", () => this.app.set({ strokes: words().slice(0, -1).join(" ") }));
    $("clear").addEventListener("click", () => this.app.set({ strokes: "" }));
  }

  togglePainting() {
    this.painting = !this.painting;
    $("paint").setAttribute("aria-pressed", this.painting);
    $("corrupt").classList.toggle("painting", this.painting);
    if (this.painting) this.app.say("Draw on the picture or on the velocity field.");
  }
}
