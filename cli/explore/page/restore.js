// A degraded picture, how degraded it looks, and what it may have been: by the model of photographs, or by a run.

import { plot, putPixels, showPixels } from "./draw.js";
import { messages } from "./stream.js";

const PHOTOGRAPHS = "photographs";
// Pictures here that are clean: they are degraded first, unless that is not wanted.
const CLEAN = ["chelsea", "astronaut", "emoji"];
const $ = (id) => document.getElementById(id);

export class Restore {
  constructor(app) {
    this.app = app;
    this.keys = [
      "rpicture", "rmodel", "rclean", "rdegrade", "rlevel", "rsamples", "rseed", "rblur", "rnoise", "rdblur", "rdnoise",
    ];
    this.frames = [];
    this.whole = true;
  }

  get photographs() {
    return this.app.state.rmodel === PHOTOGRAPHS;
  }

  get pixelated() {
    return !this.photographs;
  }

  get least() {
    return this.photographs ? 1 : 1024;
  }

  // Whether the picture is clean, and is degraded first.
  get degrades() {
    const { rclean, rpicture } = this.app.state;
    return rclean ? rclean === "1" : CLEAN.includes(rpicture);
  }

  idle() {
    const reason = "Say that your picture is clean to degrade it first.";
    if (this.degrades) return {};
    return { rdegrade: reason, rdblur: reason, rdnoise: reason, ...(this.photographs && { rseed: reason }) };
  }

  arrange() {
    document.body.dataset.prior = this.photographs ? PHOTOGRAPHS : "run";
  }

  load() {
    const { rpicture, rmodel, rdegrade, rlevel, rsamples, rseed, rblur, rnoise, rdblur, rdnoise } = this.app.state;
    const query = { picture: rpicture, model: rmodel, seed: rseed };
    if (this.photographs) {
      Object.assign(query, rblur && { blur: rblur }, rnoise && { noise: rnoise });
      if (this.degrades) Object.assign(query, { degrade_blur: rdblur, degrade_noise: rdnoise });
    } else {
      Object.assign(query, { samples: rsamples }, rlevel && { level: rlevel }, this.degrades && { degrade: rdegrade });
    }
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
    for (const id of ["clean-figure", "levels-figure", "spread-figure"]) $(id).hidden = true;
    showPixels($("degraded"), about.body, about.width, about.height);
    showPixels($("restored"), about.body.map(() => 128), about.width, about.height);
    $("degraded-caption").textContent = about.text ?? `degraded, ${about.width} x ${about.height} px`;
    $("warnings").replaceChildren();
    this.warn(about);
    $("restored-caption").textContent = "restored";
    if (this.photographs) return this.beginTiles(about);
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

  beginTiles({ width, height }) {
    $("draws").replaceChildren();
    $("spread-figure").hidden = false;
    $("spread-caption").textContent = "what is not known";
    showPixels($("spread"), new Uint8Array(3 * width * height), width, height);
    [this.done, this.since] = [0, performance.now()];
  }

  clean({ body }) {
    $("clean-figure").hidden = false;
    showPixels($("clean"), body, this.about.width, this.about.height);
    const { rdegrade, rdblur, rdnoise } = this.app.state;
    $("degraded-caption").prepend(
      this.photographs ? `Degraded: blur ${rdblur} px, noise ${rdnoise} of the range. ` : `Level ${rdegrade}. `);
  }

  progress({ text, done, of }) {
    this.app.numbers({ "": of ? `${text} ${Math.round((100 * done) / of)} %` : text });
  }

  warn({ warning }) {
    if (warning) $("warnings").append(Object.assign(document.createElement("p"), { textContent: warning }));
  }

  estimate(found) {
    if (this.photographs) return this.found(found);
    this.warn(found);
    const near = (level) => level >= found.low - 40 && level <= found.high + 40;
    const [x, y] = [found.at, found.probability].map((values) => values.filter((_, i) => near(found.at[i])));
    $("levels-figure").hidden = false;
    plot($("levels"), [{ x, y, colour: "--accent" }], { xLabel: "level", linear: true, marks: [found.level] });
    $("levels-caption").textContent = found.level
      ? `looks like level ${found.level} of ${this.about.levels} (90 %: ${found.low} to ${found.high}): ` +
        `blur ${found.sigma[0].toFixed(2)} px, noise ${found.noise[0].toFixed(3)}`
      : `its guess: clean (probability ${found.clean.toFixed(2)})`;
  }

  // What a visitor told has no spread.
  found({ sigma, noise }) {
    const said = ([value, spread], digits) => `${value.toFixed(digits)}${spread ? ` ± ${spread.toFixed(digits)}` : " (told)"}`;
    $("restored-caption").textContent =
      `restored, as if blurred by ${said(sigma, 2)} px, with noise of ${said(noise, 3)} of the range`;
    const guess = ["rblur", "rnoise"].map((key) => document.querySelector(`[data-key=${key}]`));
    [guess[0].placeholder, guess[1].placeholder] = [sigma[0].toFixed(2), noise[0].toFixed(3)];
    if (sigma[0] < 0.3 && noise[0] < 0.01 && sigma[1] + noise[1])
      this.warn({ warning: "Hardly any blur or noise is found, so hardly anything changes. That is a guess: the model knows " +
        "Gaussian blur and white noise, and would not see wider blur or other damage." });
  }

  tile({ body, left, top, width, height }) {
    const one = 3 * width * height, whole = this.about.width * this.about.height;
    putPixels($("restored"), body.subarray(0, one), width, height, left, top);
    putPixels($("spread"), body.subarray(one), width, height, left, top);
    this.done += width * height;
    const seconds = ((performance.now() - this.since) * (whole / this.done - 1)) / 1000;
    this.app.numbers({ done: `${Math.round((100 * this.done) / whole)} %`, "left, about": `${seconds.toFixed(0)} s` });
  }

  frame(frame) {
    this.frames.push(frame);
    this.app.player.frames = Math.max(2, this.frames.length);
    this.show(this.app.player.number);
  }

  // Of a picture that stays as it is there are no samples.
  result({ body, spread, half_width, white }) {
    const { width, height } = this.about;
    if (half_width !== undefined)
      $("spread-caption").textContent =
        `what is not known: 90 % of the pixels lie within ± ${half_width.toFixed(3)} on average; white is ± ${white}`;
    if (this.photographs) return this.app.numbers({});
    if (half_width !== undefined) {
      $("spread-figure").hidden = false;
      showPixels($("spread"), body.subarray(3 * width * height), width, height);
    }
    showPixels($("restored"), body.subarray(0, 3 * width * height), width, height);
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
