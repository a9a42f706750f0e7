// A degraded picture, the level it looks like, and what it may have been.

import { plot, showPixels } from "./draw.js";
import { messages } from "./stream.js";

const $ = (id) => document.getElementById(id);

export class Restore {
  constructor(app) {
    this.app = app;
    this.keys = ["rpicture", "rmodel", "rlevel", "rsamples", "rseed"];
    this.frames = [];
  }

  load() {
    const { rpicture, rmodel, rlevel, rsamples, rseed } = this.app.state;
    const query = { picture: rpicture, model: rmodel, samples: rsamples, seed: rseed, ...(rlevel && { level: rlevel }) };
    return this.app.work(async (signal) => {
      for await (const message of messages("/api/restored", query, signal)) this[message.kind](message);
    });
  }

  scene(about) {
    this.about = about;
    this.frames = [];
    this.estimated = null;
    this.app.player.stop();
    this.app.player.frames = 2;
    this.app.command(about.command);
    showPixels($("degraded"), about.body, about.width, about.height);
    showPixels($("restored"), about.body.map(() => 128), about.width, about.height);
    $("restored-caption").textContent = "restored";
    $("levels-caption").textContent = "Probability of the levels";
    plot($("levels"), []);
    this.draws = Array.from({ length: about.count }, () => document.createElement("canvas"));
    const figures = this.draws.map((canvas, number) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = `sample ${number}`;
      figure.append(canvas, caption);
      return figure;
    });
    $("draws").replaceChildren(...figures);
  }

  progress({ text }) {
    this.app.numbers({ "": text });
  }

  estimate(found) {
    this.estimated = found;
    const near = (level) => level >= found.low - 40 && level <= found.high + 40;
    const [x, y] = [found.at, found.probability].map((values) => values.filter((_, i) => near(found.at[i])));
    plot($("levels"), [{ x, y, colour: "--accent" }], { xLabel: "level", linear: true, marks: [found.level] });
    $("levels-caption").textContent =
      `Level ${found.level} of ${this.about.levels} (90 %: ${found.low} to ${found.high}), blur ${found.sigma[0].toFixed(2)} px, noise ${found.noise[0].toFixed(3)}`;
  }

  frame(frame) {
    this.frames.push(frame);
    this.app.player.frames = Math.max(2, this.frames.length);
    this.app.player.go(1);
  }

  result({ body, spread }) {
    showPixels($("restored"), body, this.about.width, this.about.height);
    $("restored-caption").textContent = `restored: mean of the samples; they differ by ${spread.toFixed(3)}`;
    this.app.player.go(1);
  }

  show(number) {
    const frame = this.frames[number];
    if (!frame) return;
    const one = 3 * this.about.width * this.about.height;
    this.draws.forEach((canvas, i) =>
      showPixels(canvas, frame.body.subarray(i * one, (i + 1) * one), this.about.width, this.about.height));
    this.app.numbers({ level: frame.level, step: `${number} of ${this.frames.length - 1}` });
  }

  png() {
    return $("restored");
  }
}
