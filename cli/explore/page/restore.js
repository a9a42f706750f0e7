// A degraded picture, the level it looks like, and what it may have been.

import { plot, showPixels } from "./draw.js";
import { messages } from "./stream.js";

const $ = (id) => document.getElementById(id);

export class Restore {
  constructor(app) {
    this.app = app;
    this.keys = ["rpicture", "rmodel", "rclean", "rdegrade", "rlevel", "rsamples", "rseed"];
    this.frames = [];
    this.pixelated = true;
  }

  idle({ rclean }) {
    return rclean ? {} : { rdegrade: "Say that your picture is clean to degrade it first." };
  }

  load() {
    const { rpicture, rmodel, rclean, rdegrade, rlevel, rsamples, rseed } = this.app.state;
    const query = { picture: rpicture, model: rmodel, samples: rsamples, seed: rseed, ...(rlevel && { level: rlevel }) };
    if (rclean) query.degrade = rdegrade;
    return this.app.work(async (signal) => {
      for await (const message of messages("/api/restored", query, signal)) this[message.kind]?.(message);
    });
  }

  stop() {
    this.frames = [];
  }

  scene(about) {
    this.about = about;
    this.frames = [];
    this.app.welcome();
    this.app.player.stop();
    this.app.player.frames = 2;
    this.app.command(about.command);
    this.app.numbers({});
    $("clean-figure").hidden = true;
    showPixels($("degraded"), about.body, about.width, about.height);
    showPixels($("restored"), about.body.map(() => 128), about.width, about.height);
    $("degraded-caption").textContent = about.text ?? `degraded, ${about.width} x ${about.height} px`;
    $("warnings").replaceChildren();
    this.warn(about);
    $("restored-caption").textContent = "restored";
    $("levels-figure").hidden = true;
    document.querySelector("[data-key=rdegrade]").max = about.levels;
    this.draws = Array.from({ length: about.count }, () => document.createElement("canvas"));
    const figures = this.draws.map((canvas, number) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      caption.textContent = `sample ${number}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Sample ${number}`);
      figure.append(canvas, caption);
      return figure;
    });
    $("draws").replaceChildren(...figures);
  }

  clean({ body }) {
    $("clean-figure").hidden = false;
    showPixels($("clean"), body, this.about.width, this.about.height);
    $("degraded-caption").prepend(`Level ${this.app.state.rdegrade}. `);
  }

  progress({ text, done, of }) {
    this.app.numbers({ "": of ? `${text} ${Math.round((100 * done) / of)} %` : text });
  }

  warn({ warning }) {
    if (warning) $("warnings").append(Object.assign(document.createElement("p"), { textContent: warning }));
  }

  estimate(found) {
    this.warn(found);
    const near = (level) => level >= found.low - 40 && level <= found.high + 40;
    const [x, y] = [found.at, found.probability].map((values) => values.filter((_, i) => near(found.at[i])));
    $("levels-figure").hidden = false;
    plot($("levels"), [{ x, y, colour: "--accent" }], { xLabel: "level", linear: true, marks: [found.level] });
    $("levels-caption").textContent = found.level
      ? `looks like level ${found.level} of ${this.about.levels} (90 %: ${found.low} to ${found.high}): ` +
        `blur ${found.sigma[0].toFixed(2)} px, noise ${found.noise[0].toFixed(3)}`
      : `looks clean (probability ${found.clean.toFixed(2)}): nothing to restore`;
  }

  frame(frame) {
    this.frames.push(frame);
    this.app.player.frames = Math.max(2, this.frames.length);
    this.show(this.app.player.number);
  }

  // Of a picture that stays as it is there are no samples.
  result({ body, spread }) {
    showPixels($("restored"), body, this.about.width, this.about.height);
    $("restored-caption").textContent = `restored: mean of the samples; they differ by ${spread.toFixed(3)}`;
    if (this.frames.length) return;
    $("restored-caption").textContent = "the picture as it is";
    $("draws").replaceChildren();
    this.app.numbers({});
  }

  show(number) {
    const frame = this.frames[number] ?? this.frames.at(-1);
    if (!frame) return;
    const one = 3 * this.about.width * this.about.height;
    this.draws.forEach((canvas, i) =>
      showPixels(canvas, frame.body.subarray(i * one, (i + 1) * one), this.about.width, this.about.height));
    this.app.numbers({ level: frame.level, step: `${this.frames.indexOf(frame)} of ${this.frames.length - 1}` });
  }

  png() {
    return $("restored");
  }

  get title() {
    return `restored-${this.app.state.rmodel}`;
  }
}
