// Samples of a model on their way from noise and flow to pictures.

import { showSheet } from "./draw.js";
import { messages } from "./stream.js";

const $ = (id) => document.getElementById(id);

// Columns near a number of them, without a gap in the last row if there are such.
function columns(count, near) {
  const full = Array.from({ length: count }, (_, i) => i + 1).filter((number) => count % number === 0);
  const nearest = full.reduce((best, number) => (Math.abs(number - near) < Math.abs(best - near) ? number : best));
  return Math.abs(nearest - near) <= 2 ? nearest : Math.ceil(near);
}

export class Generate {
  constructor(app) {
    this.app = app;
    this.keys = ["model", "num", "gseed", "steps", "label", "guidance", "mode"];
    this.filmPath = "/api/sampled-film";
    this.frames = [];
    this.pixelated = true;
    $("again").addEventListener("click", () => {
      app.player.go(0);
      app.player.play(1, true);
    });
  }

  idle({ label }) {
    const without = this.about && !this.about.classes.length;
    return {
      ...(without && { label: "This model was trained without classes." }),
      ...((without || !label) && { guidance: "Guidance pulls towards a class; choose one first." }),
    };
  }

  query() {
    const { model, num, gseed, steps, label, guidance, mode } = this.app.values;
    return { model, num, seed: gseed, mode, ...(steps !== "0" && { steps }), ...(label && { label, guidance }) };
  }

  load() {
    return this.app.work(async (signal) => {
      for await (const message of messages("/api/samples", this.query(), signal)) {
        if (message.kind === "scene") this.began(message);
        else if (message.kind === "frame") {
          this.frames.push(message);
          this.app.player.place(Math.min(this.app.player.share, (this.frames.length - 1) / (this.about.frames - 1)));
          this.show(this.app.player.number);
        }
      }
    });
  }

  stop() {
    this.frames = [];
  }

  began(about) {
    this.about = about;
    this.frames = [];
    this.app.welcome();
    this.app.player.stop();
    this.app.player.frames = about.frames;
    this.app.command(about.command);
    this.columns = about.columns ?? columns(about.count, Math.sqrt((about.count * about.height * 1.3) / about.width));
    const rows = Math.ceil(about.count / this.columns);
    document.body.style.setProperty("--aspect", (this.columns * about.width) / (rows * about.height));
    const classes = about.classes.map((name) => new Option(name, name));
    const every = classes.length ? [new Option("every class in turn", "all")] : [];
    $("label").replaceChildren(new Option("open", ""), ...every, ...classes);
    this.app.arrange();
  }

  // The frame of the slider, else the last that has come.
  show(number) {
    const frame = this.frames[number] ?? this.frames.at(-1);
    if (!frame) return;
    const { width, height, count, process, frames } = this.about, { model } = this.app.values;
    showSheet($("samples"), frame.body, width, height, count, this.columns);
    const title = `${model}: ${count} samples of ${width} x ${height} px, process ${process}`;
    if ($("samples-caption").textContent !== title) $("samples-caption").textContent = title;
    $("samples").setAttribute("aria-label", title);
    this.app.numbers({
      step: `${this.frames.indexOf(frame)} of ${frames - 1}`,
      level: frame.level,
      noise: frame.noise.toPrecision(3),
    });
  }

  png() {
    return $("samples");
  }

  get title() {
    const { model, gseed, label } = this.app.values;
    return `${model}${label && `-${label}`}-seed${gseed}`;
  }
}
