// Samples of a model on their way from noise and flow to pictures.

import { showSheet } from "./draw.js";
import { messages } from "./stream.js";

const $ = (id) => document.getElementById(id);

export class Generate {
  constructor(app) {
    this.app = app;
    this.keys = ["model", "num", "gseed", "steps", "label", "guidance", "mode"];
    this.filmPath = "/api/sampled-film";
    this.frames = [];
    $("again").addEventListener("click", () => {
      app.player.go(0);
      app.player.play(1, true);
    });
  }

  query() {
    const { model, num, gseed, steps, label, guidance, mode } = this.app.state;
    return { model, num, seed: gseed, mode, ...(steps !== "0" && { steps }), ...(label && { label, guidance }) };
  }

  load() {
    return this.app.work(async (signal) => {
      for await (const message of messages("/api/samples", this.query(), signal)) {
        if (message.kind === "scene") this.began(message);
        else {
          this.frames.push(message);
          // What has come is shown at once; the slider is there for replays.
          this.app.player.go((this.frames.length - 1) / (this.about.frames - 1));
        }
      }
    });
  }

  began(about) {
    this.about = about;
    this.frames = [];
    this.app.player.stop();
    this.app.player.frames = about.frames;
    this.app.command(about.command);
    this.columns = about.columns ?? Math.ceil(Math.sqrt((about.count * about.height * 1.3) / about.width));
    const rows = Math.ceil(about.count / this.columns);
    $("samples").parentElement.style.setProperty("--aspect", (this.columns * about.width) / (rows * about.height));
    const chosen = this.app.state.label;
    const classes = about.classes.map((name) => new Option(name, name));
    const every = classes.length ? [new Option("every class in turn", "all")] : [];
    $("label").replaceChildren(new Option("open", ""), ...every, ...classes);
    $("label").value = chosen;
    $("label").disabled = !about.classes.length;
  }

  show(number) {
    const frame = this.frames[number] ?? this.frames.at(-1);
    if (!frame) return;
    const { width, height, count, process, frames } = this.about;
    showSheet($("samples"), frame.body, width, height, count, this.columns);
    $("samples-caption").textContent = `${this.app.state.model}: ${count} samples of ${width} x ${height} px, process ${process}`;
    this.app.numbers({
      step: `${this.frames.indexOf(frame)} of ${frames - 1}`,
      level: frame.level,
      noise: frame.noise.toPrecision(3),
    });
  }

  png() {
    return $("samples");
  }
}
