// A picture on its way through the flow, with the velocity field and spectra beside it.

import { Streaks, pictureCanvas, plot, showPixels, showSpeed } from "./draw.js";
import { Paint } from "./paint.js";
import { messages } from "./stream.js";

const COARSE = [128, 32]; // shorter side, frames
const OWN = { process: "", size: "256", sigma: "4", octaves: "4", turbulence: "curl-noise", time: "0", seed: "0", strokes: "" };
const PRESETS = {
  "the paper's": { ...OWN, process: "beyond-blur", size: "128", peclet: "0.1", t: "0.3500" },
  turbulent: { ...OWN, peclet: "2000", sigma: "1.2", octaves: "3", seed: "5", t: "0.7000" },
  gentle: { ...OWN, peclet: "150", sigma: "6", octaves: "1", seed: "7", t: "0.7000" },
  painted: {
    ...OWN, peclet: "500", strokes_on: "rest", brush: "8", t: "0.8000",
    strokes: "180,330,420,240,680,300,830,500 820,700,600,800,330,740,170,560",
  },
  DDPM: { ...OWN, process: "ddpm", peclet: "0", t: "0.3000" },
};
const OF_FLOW = ["sigma", "octaves", "turbulence", "time", "strokes", "brush", "strokes_on"]; // a process has its own
const NO_FLOW = "Without a flow (Pe = 0) there is nothing to set here.";
const PAINTED = "The painted flow is all there is: turbulence and seed do nothing, unless you paint on the turbulence.";
const SPECTRAL = "Octaves are those of curl noise; spectral turbulence has all sizes.";
const $ = (id) => document.getElementById(id);

// Frames at one resolution.
class Trajectory {
  constructor(about) {
    this.about = about;
    this.frames = [];
    this.come = 0;
    if (about.field) this.field = new Float32Array(about.body.buffer);
  }

  add(frame) {
    const pixels = 3 * this.about.height * this.about.width;
    frame.pixels = frame.body.subarray(0, pixels);
    if (frame.field) frame.velocity = new Float32Array(frame.body.slice(pixels).buffer);
    this.frames[frame.number] = frame;
  }

  // The spectrum of a frame, or of the last one before it that has come with one: large pictures have fewer.
  spectrum(number) {
    const known = this.frames.slice(0, number + 1).findLast((frame) => frame?.spectrum);
    return known && { x: this.about.wavenumbers, y: known.spectrum };
  }
}

const place = (trajectory, share) => Math.round(share * (trajectory.about.frames - 1));

export class Corrupt {
  constructor(app) {
    this.app = app;
    this.keys = ["picture", "size", "process", "peclet", "seed", ...OF_FLOW];
    this.filmPath = "/api/film";
    this.streaks = new Streaks($("streaks"));
    this.field = new Streaks($("field").querySelector(".streaks"));
    this.paint = new Paint(app);
    this.presets = Object.entries(PRESETS).map(([name, preset]) => {
      const button = document.createElement("button");
      button.append(document.createElement("canvas"), name);
      button.addEventListener("click", () => app.set(preset));
      return button;
    });
    $("presets").append(...this.presets);
  }

  // Knobs that change nothing now, and why.
  idle({ process, peclet, turbulence, strokes, strokes_on }) {
    const named = this.app.choices?.processes[process], flow = ["octaves", "time", "turbulence", "seed"];
    const because = (reason, keys) => Object.fromEntries(keys.map((key) => [key, reason]));
    if (process)
      return {
        ...(named?.random === false && because("This process has no flow and no noise: a seed changes nothing.", ["seed"])),
        ...(named?.peclet === 0 && because("This process has no flow to show.", ["flow"])),
      };
    if (Number(peclet) === 0) return because(NO_FLOW, [...flow, "strokes", "brush", "strokes_on", "flow"]);
    if (strokes && strokes_on === "rest") return because(PAINTED, flow);
    return {
      ...(turbulence === "spectral" && because(SPECTRAL, ["octaves"])),
      ...(!strokes && !this.paint.on && because("Paint a stroke first.", ["brush", "strokes_on"])),
    };
  }

  query(size = Number(this.app.values.size), frames, values = this.app.values) {
    const idle = this.idle(values), { process } = values;
    const without = [...Object.keys(idle), ...(process ? OF_FLOW : values.strokes ? [] : ["brush", "strokes_on"])];
    const keys = this.keys.filter((key) => values[key] !== "" && !without.includes(key));
    const query = Object.fromEntries(keys.map((key) => [key, values[key]]));
    for (const share of ["sigma", "brush"]) if (query[share]) query[share] /= 100;
    // A process without a flow takes no Peclet number.
    if (this.app.choices.processes[process]?.peclet === 0) delete query.peclet;
    return { ...query, size, frames: frames ?? (size <= 256 ? 96 : 48) };
  }

  // Coarse at once, then fine as soon as nothing has changed for a moment. While a coarse one is under way the next change waits.
  async load() {
    this.wanted = true;
    this.app.stop();
    this.app.busy(true);
    clearTimeout(this.later);
    if (this.loading) return;
    this.loading = true;
    let signal;
    try {
      while (this.wanted) {
        this.wanted = false;
        ({ signal } = this.under = new AbortController());
        await this.receive(this.query(...COARSE), signal).catch((error) => {
          if (!signal.aborted && !this.wanted) throw error;
        });
      }
      if (!signal.aborted) this.later = setTimeout(() => this.refine(), 150);
    } catch (error) {
      this.app.fail(error);
    } finally {
      this.loading = false;
    }
  }

  // Another view is looked at, or this one in another way.
  stop() {
    this.under?.abort();
    clearTimeout(this.later);
    this.wanted = false;
    this.coarse = this.finer = null;
    this.paint.toggle(false);
  }

  refine() {
    this.app.work(async (signal) => {
      await this.receive(this.query(), signal, true);
      this.app.busy(false);
      if (this.app.state.view === "corrupt") await this.thumbnails(signal);
    });
  }

  async receive(query, signal, fine = false) {
    const { player } = this.app, first = player.playing ? {} : { at: player.share };
    let trajectory;
    for await (const message of messages("/api/trajectory", { ...query, ...first }, signal)) {
      if (message.kind === "scene") {
        trajectory = new Trajectory(message);
        if (fine) this.finer = trajectory;
        else [this.coarse, this.finer] = [trajectory, null];
        this.began(trajectory);
      } else if (message.kind === "frame") {
        trajectory.add(message);
        if (trajectory.come++ === 0 || message.number === place(trajectory, player.share)) this.show();
      }
    }
    this.show();
  }

  began({ about, field }) {
    const { app } = this;
    app.welcome();
    // A step of the keys is a fine frame.
    app.player.frames = this.query().frames;
    app.command(about.command.replace(/--size \d+/, `--size ${app.values.size}`));
    document.body.style.setProperty("--aspect", about.width / about.height);
    this.flow(field, about.field);
    $("field-caption").textContent = field ? "Speed of the flow: bright is fast" : "No flow";
    const law = about.k?.map((k) => 1.5 * Math.max(...about.energy) * k ** (-5 / 3));
    plot(
      $("energy"),
      [
        { x: about.k, y: law, colour: "--soft", dashed: true, width: 1.2 },
        { x: about.k, y: about.energy, colour: "--warm" },
      ],
      { xLabel: "waves per side; dashed: k⁻⁵ᐟ³", decades: 4 });
    this.paint.ink();
    this.show();
  }

  flow(velocity, size = [1, 1]) {
    this.field.show(velocity, ...size);
    this.streaks.show(this.app.values.flow ? velocity : undefined, ...size);
    const speed = $("field").querySelector(".speed");
    if (velocity) showSpeed(speed, velocity, ...size);
    else speed.getContext("2d").clearRect(0, 0, speed.width, speed.height);
  }

  // The frame of the slider: the fine one, else the coarse one, else the last that has come.
  show() {
    if (!this.coarse) return;
    const { share } = this.app.player;
    const [fine, coarse] = [this.finer, this.coarse].map((trajectory) => trajectory?.frames[place(trajectory, share)]);
    const frame = fine ?? coarse ?? this.coarse.frames.at(-1), { about } = fine ? this.finer : this.coarse;
    if (!frame) return;
    showPixels($("picture"), frame.pixels, about.width, about.height);
    if (frame.velocity) this.flow(frame.velocity, frame.field);
    const spectrum = (number) => (fine && this.finer.spectrum(number(this.finer))) ?? this.coarse.spectrum(number(this.coarse));
    plot(
      $("spectrum"),
      [
        { ...spectrum(() => 0), colour: "--soft", width: 1.2 },
        { ...spectrum((trajectory) => place(trajectory, share)), colour: "--accent" },
      ],
      { xLabel: "waves per side; grey: clean" });
    const fourier = frame.fourier.toPrecision(3), carried = `${(100 * about.peclet * frame.fourier).toPrecision(2)} %`;
    const { warning } = (this.finer ?? this.coarse).about;
    const title = `${about.title}, ${about.width} x ${about.height} px${warning ? `. ${warning}` : ""}`;
    if ($("picture-caption").textContent !== title) $("picture-caption").textContent = title;
    $("picture").setAttribute("aria-label", `${this.app.pictureName}, ${title}`);
    this.app.numbers({
      Fo: fourier,
      ...(this.app.state.view === "story" && { Pe: String(about.peclet) }),
      "Pe · Fo": `${carried} of the side`,
      σ: `${frame.sigma.toPrecision(3)} px`,
      ...(this.app.state.view === "corrupt" && {
        signal: frame.signal.toFixed(2),
        noise: frame.noise.toFixed(3),
        mean: frame.mean.toFixed(4),
        deviation: frame.deviation.toFixed(4),
      }),
    });
    for (const [name, text] of Object.entries({ fo: fourier, carried }))
      for (const element of document.querySelectorAll(`[data-number=${name}]`)) element.textContent = text;
  }

  arrange(idle) {
    const { state, values } = this.app, process = this.app.choices?.processes[values.process];
    // Four times the process's own number, which may be a tenth.
    const peclet = document.querySelector("[data-key=peclet]"), most = process ? 4 * process.peclet : 2000;
    Object.assign(peclet, { max: most, step: process ? most / 1000 || 1 : 1, value: state.peclet });
    peclet.closest("label").hidden = process?.peclet === 0;
    $("process-about").textContent = process?.about ?? "The flow and the blur of your choice";
    for (const label of document.querySelectorAll("[data-own]")) label.hidden = Boolean(state.process);
    if (state.process || "strokes" in idle) this.paint.toggle(false);
    $("painting").hidden ||= Boolean(state.process);
    $("paint").disabled = "strokes" in idle;
    $("clear").disabled = !state.strokes;
    $("undo").disabled = !state.strokes && !this.paint.past.length;
    $("streaks").hidden = !values.flow;
    this.paint.ink();
    this.presets.forEach((button, number) => {
      const preset = Object.entries(Object.values(PRESETS)[number]).filter(([key]) => key !== "t");
      button.setAttribute("aria-pressed", preset.every(([key, value]) => state[key] === value));
    });
  }

  // What the presets make of the picture, once for each picture.
  async thumbnails(signal) {
    const { picture } = this.app.state;
    if (this.drawn === picture) return;
    for (const [number, preset] of Object.values(PRESETS).entries()) {
      const query = { ...this.query(128, 21, { ...this.app.state, flow: "", ...preset }), at: preset.t, slot: "thumbnails" };
      let about;
      for await (const message of messages("/api/trajectory", query, signal)) {
        if (message.kind === "scene") about = message;
        else if (message.number === Math.round(20 * preset.t)) {
          this.presets[number].querySelector("canvas").replaceWith(pictureCanvas(message.body, about.width, about.height));
          break;
        }
      }
    }
    this.drawn = picture;
  }

  redraw() {
    if (this.coarse) this.began(this.finer ?? this.coarse);
  }

  png() {
    return $("picture");
  }

  get title() {
    const { process, peclet } = this.app.values;
    return `${process || "flow"}${this.app.choices.processes[process]?.peclet === 0 ? "" : `-pe${peclet}`}`;
  }
}
