// The live view: the flow runs on, and the pointer stirs it. It needs no server.

import { CurlNoise, Strokes, measured, velocity } from "./flow.js";
import { Lattice, PEAK_TO_RMS } from "./lattice.js";
import { PATTERNS, drawn } from "./patterns.js";

export const KNOBS = { peclet: 1000, speed: 240, boundary: "wall", brush: 7, turbulence: 15, unrest: 0.5, seed: 0 };
const LARGEST = 384, SMALLEST = 192; // shorter side of the picture [cells]
const ITERATION_MS = 6; // a picture is made smaller until an iteration takes at most so long
const LASTING = 180; // iterations after which a stroke has lost all but 1 / e of its speed
const STIRRED = 5; // speed of a long stroke [V]
const NARROWEST = 0.03; // brush [shorter sides]
const SPACING = 0.25; // points along a stroke [brushes]
const UPDATES = 64; // of a flow that changes, per turnover time
const MOST_KEPT = 64 * 2 ** 20; // bytes of recorded frames
const PARTICLES = 500, LIFE = 120, TRAIL = 22; // of each [frames]

const TEMPLATE = `
  <div class="live-stage">
    <canvas class="live-picture" role="img" aria-label="The picture in its flow"></canvas>
    <canvas class="live-past" role="img" aria-label="The picture as it was" hidden></canvas>
    <canvas class="live-ink" aria-hidden="true"></canvas>
    <div class="live-brush" hidden></div>
    <p class="live-hint">Drag to stir</p>
  </div>
  <div class="live-bar">
    <button data-do="toggle" title="Run or pause (space)"></button>
    <input type="range" class="live-time" min="0" max="0" value="0" aria-label="What was recorded" />
    <button data-do="stir" title="A stroke at random (S)">Stir</button>
    <button data-do="again" title="The clean picture once more (A)">Again</button>
    <button data-do="save" class="more" title="What you see, as a picture file">PNG</button>
  </div>
  <p class="live-numbers"></p>
  <div class="live-knobs">
    <fieldset>
      <legend>Flow and blur</legend>
      <label>Peclet number <output></output><input type="range" data-knob="peclet" min="0" max="1500" step="10" /></label>
      <label>Brush, % of the side <output></output><input type="range" data-knob="brush" min="3" max="20" step="1" /></label>
      <label class="more">
        Iterations a second <output></output><input type="range" data-knob="speed" min="60" max="1920" step="60" />
      </label>
      <label class="more">
        Border
        <select data-knob="boundary"><option value="wall">walls</option><option value="periodic">periodic</option></select>
      </label>
    </fieldset>
    <fieldset class="more">
      <legend>Turbulence</legend>
      <label>Strength, % <output></output><input type="range" data-knob="turbulence" min="0" max="100" step="5" /></label>
      <label>Turbulence time <output></output><input type="range" data-knob="unrest" min="0" max="2" step="0.1" /></label>
      <label class="row">
        Seed <input type="number" data-knob="seed" min="0" max="999999999" step="1" />
        <button data-do="reseed" title="Another flow (R)">Another</button>
      </label>
    </fieldset>
    <fieldset class="more live-own" hidden>
      <legend>Picture</legend>
      <div class="live-pictures"></div>
      <label class="drop"><input type="file" accept="image/*" /><span>Drop a picture here, or choose one</span></label>
    </fieldset>
  </div>
  <p class="live-words" role="status"></p>`;

// Show the live view of a picture in an element. The picture is an address, a file or anything that a canvas draws; none is a
// painted one. The object that comes back shows another picture by show(picture), and ends by destroy().
export function mount(element, picture, options) {
  const live = new Live(element, options);
  live.show(picture);
  return live;
}

class Live {
  // Options: knobs by name; size, the shorter side [cells], by default what the machine can do; pictures, addresses by name, to
  // choose from beside files; paused, by default where motion is not wanted; settings, another element for the knobs; changed,
  // called with the knobs that were turned, and with the name of another picture ("" for a file).
  constructor(element, { knobs, size, pictures, paused, settings, changed } = {}) {
    this.knobs = { ...KNOBS, ...knobs };
    this.size = size && Math.min(Math.max(size, 64), 1024);
    Object.assign(this, { element, changed, record: [], playing: false, due: 0, allowed: 4, particles: [] });
    element.innerHTML = TEMPLATE;
    element.classList.add("live");
    this.canvases = Object.fromEntries(["picture", "past", "ink"].map((name) => [name, this.find(`.live-${name}`)]));
    this.slider = this.find(".live-time");
    this.controls = element.querySelectorAll("[data-knob]");
    this.ending = new AbortController();
    this.begins = !(paused ?? matchMedia("(prefers-reduced-motion: reduce)").matches);
    this.listen();
    if (pictures) this.offer({ ...pictures, ...PATTERNS });
    this.arrange();
    this.settings = this.find(".live-knobs");
    settings?.append(this.settings);
  }

  // Pictures to choose from, and files.
  offer(pictures) {
    this.find(".live-own").hidden = false;
    this.find(".live-pictures").append(...Object.entries(pictures).map(([name, source]) => {
      const button = document.createElement("button");
      button.textContent = name;
      button.addEventListener("click", () => this.take(source, name));
      return button;
    }));
    this.on(this.find("[type=file]"), "change", ({ target }) => target.files[0] && this.take(target.files[0]));
    this.on(window, "dragover", (event) => event.preventDefault());
    this.on(window, "drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
    });
  }

  take(picture, name = "") {
    this.changed?.({ picture: name });
    this.show(picture);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  // Listen until the view ends.
  on(target, types, action, options) {
    for (const type of types.split(" ")) target.addEventListener(type, action, { signal: this.ending.signal, ...options });
  }

  listen() {
    for (const button of this.element.querySelectorAll("[data-do]"))
      this.on(button, "click", ({ detail }) => {
        if (detail) button.blur(); // after a click of the mouse the space bar pauses
        this[button.dataset.do]();
      });
    for (const control of this.controls)
      this.on(control, "input", () => this.turn({ [control.dataset.knob]: control.value }));
    this.on(this.slider, "input", () => this.look(Number(this.slider.value)));
    const { ink, picture } = this.canvases;
    this.on(ink, "pointerdown", (event) => this.begin(event));
    this.on(ink, "pointermove", (event) => this.follow(event));
    this.on(ink, "pointerup pointercancel pointerleave", (event) => this.leave(event));
    this.on(window, "keydown", (event) => this.key(event), { capture: true });
    this.on(picture, "webglcontextlost", (event) => {
      event.preventDefault();
      this.pause();
      this.say("The graphics card was taken away; the picture begins anew when it is back.");
    });
    this.on(picture, "webglcontextrestored", () => {
      this.lattice = new Lattice(picture);
      this.fit(this.side);
    });
    this.seen = new IntersectionObserver(([entry]) => {
      this.hidden = !entry.isIntersecting;
      this.wake();
    });
    this.seen.observe(this.element);
  }

  destroy() {
    this.ended = true;
    this.ending.abort();
    this.seen.disconnect();
    this.forget(0);
    this.lattice?.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.settings.remove();
    this.element.replaceChildren();
    this.element.classList.remove("live");
  }

  // Another picture, from its clean state on.
  async show(picture = Object.values(PATTERNS)[0]) {
    try {
      this.source = await drawable(picture);
      if (this.ended) return;
      this.say("");
      if (this.lattice) this.fit(this.side);
      else this.choose();
      this.begins ? this.play() : this.pause();
    } catch (error) {
      if (!this.lattice) this.element.classList.add("live-impossible");
      this.say(error.message);
    }
  }

  // The largest size at which an iteration takes no longer than it may, in steps of 32 cells.
  choose() {
    this.lattice = new Lattice(this.canvases.picture);
    this.fit(this.size ?? LARGEST);
    if (this.size) return;
    this.lattice.advance(1, 0);
    this.lattice.mean();
    const started = performance.now();
    this.lattice.advance(3, 0);
    this.lattice.mean();
    const share = Math.sqrt((3 * ITERATION_MS) / (performance.now() - started));
    this.fit(share < 1 ? Math.max(SMALLEST, 32 * Math.floor((share * LARGEST) / 32)) : LARGEST);
  }

  // The picture with a shorter side of so many cells, or its own size if that is less.
  fit(side) {
    const { ink, past } = this.canvases;
    this.side = side;
    this.clean = cells(this.source, side);
    const { width, height } = this.clean;
    this.lattice.resize(width, height);
    Object.assign(past, { width, height });
    const scale = Math.min(2, Math.max(1, 1200 / width));
    Object.assign(ink, { width: Math.round(scale * width), height: Math.round(scale * height) });
    this.element.style.setProperty("--aspect", width / height);
    this.again();
  }

  again() {
    this.load(this.clean.rgba, 0);
    this.forget(0);
    Object.assign(this, { time: 0, every: 12, iterations: 0, strength: 1 });
    this.start = this.lattice.mean();
    this.still();
    this.advance(0);
    this.keep();
  }

  load(rgba, variance) {
    this.lattice.load(rgba, variance);
    this.at = null;
    this.canvases.past.hidden = true;
    this.wake();
  }

  // No strokes, and the turbulence anew.
  still() {
    const { width, height } = this.lattice, periodic = this.knobs.boundary === "periodic";
    this.lattice.periodic = periodic;
    this.noise = new CurlNoise(Math.floor(Number(this.knobs.seed)) || 0, width, height, periodic);
    this.strokes = new Strokes(width, height, periodic, NARROWEST);
    this.particles = [];
    this.turbulent();
    this.stirred();
  }

  // The turbulence as it is at this time, and the strokes as they are, go to the graphics card.
  turbulent() {
    this.made = this.time;
    this.lattice.upload(this.lattice.turbulence, (this.background = this.noise.psi(this.time)));
    this.peak = measured(this.background, this.lattice.width, this.lattice.height).peak;
  }

  stirred() {
    const { width, height } = this.lattice, most = PEAK_TO_RMS - this.peak * this.share;
    let psi = this.strokes.psi();
    const { peak } = measured(psi, width, height);
    // Stirred on and on, a flow gets no faster than the iterations are planned for.
    if (peak > most) {
      this.strokes.scale(most / peak);
      psi = psi.map((value) => (value * most) / peak);
    }
    this.lattice.upload(this.lattice.strokes, (this.foreground = psi));
    this.fresh = false;
  }

  get share() {
    return this.knobs.turbulence / 100;
  }

  get peclet() {
    return Number(this.knobs.peclet);
  }

  // Turn knobs.
  turn(changes) {
    Object.assign(this.knobs, changes);
    this.arrange();
    this.changed?.(Object.fromEntries(Object.keys(changes).map((name) => [name, String(this.knobs[name])])));
    if (!this.lattice) return;
    if ("seed" in changes || "boundary" in changes) this.still();
    this.fresh = true; // strokes have what the turbulence leaves of the largest velocity
  }

  arrange() {
    for (const control of this.controls) {
      const name = control.dataset.knob, output = control.closest("label").querySelector("output");
      if (control.value !== String(this.knobs[name])) control.value = this.knobs[name];
      this.knobs[name] = control.value ||= KNOBS[name]; // what an address may say that is no value
      if (output) output.textContent = control.value;
    }
    this.element.style.setProperty("--brush", this.knobs.brush / 100);
    const button = this.find("[data-do=toggle]");
    button.textContent = this.playing ? "❚❚" : "▶";
    button.setAttribute("aria-label", this.playing ? "Pause" : "Run");
    const hint = this.find(".live-hint");
    hint.textContent = this.peclet ? "Drag to stir" : "Pe = 0: it blurs, and nothing flows";
    hint.hidden = Boolean(this.touched && this.peclet);
  }

  // Run on from what is seen: frames that were recorded after it are forgotten.
  play() {
    if (this.at !== null) {
      const { picture, variance, time, iterations } = this.record[this.at];
      this.canvases.past.getContext("2d").drawImage(picture, 0, 0);
      this.forget(this.at + 1);
      Object.assign(this, { time, iterations, next: iterations + this.every });
      this.load(floats(this.canvases.past), variance);
    }
    this.playing = this.begins = true;
    this.last = performance.now();
    this.arrange();
    this.wake();
  }

  pause() {
    this.playing = this.begins = false;
    this.arrange();
  }

  toggle() {
    this.playing ? this.pause() : this.play();
  }

  reseed() {
    this.turn({ seed: Math.floor(1e6 * Math.random()) });
  }

  wake() {
    if (!this.ticking && !this.ended) this.ticking = requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.ticking = null;
    if (this.hidden || !this.lattice) return;
    const took = Math.max(0, now - this.last); // a frame's time may lie before the call that asked for it
    this.last = now;
    if (this.playing) {
      // Fewer iterations if the last frame came late, more if it was in time; what is lost is not made up for.
      this.allowed = took > 40 ? Math.max(1, 0.7 * this.allowed) : took < 28 ? this.allowed + 0.5 : this.allowed;
      this.due = Math.min(this.due + (this.knobs.speed * Math.min(took, 50)) / 1000, Math.max(this.allowed, 1));
      this.allowed = Math.min(this.allowed, this.due + 2);
      const count = Math.floor(this.due);
      this.due -= count;
      this.advance(count);
      this.lattice.show();
      if (this.iterations >= this.next) this.keep();
    }
    if (this.playing || this.fresh) this.drawInk();
    if (this.playing) this.wake();
  }

  // So many iterations in the flow as it is now.
  advance(count) {
    const { lattice } = this;
    if (this.fresh) this.stirred();
    if (Math.abs(this.time - this.made) * UPDATES >= 1) this.turbulent();
    lattice.flow(this.share, this.strength);
    const gained = lattice.advance(count, this.peclet);
    this.strength *= Math.exp(-count / LASTING);
    this.iterations += count;
    this.time += (this.knobs.unrest * this.peclet * gained) / (2 * lattice.length ** 2);
    this.moved = count * lattice.step;
  }

  // Record what is seen. When the memory is full, every other frame goes, and from then on half as many are kept.
  async keep() {
    const { width, height, variance } = this.lattice, { time, iterations } = this;
    this.lattice.show();
    const kept = { variance, time, iterations, mean: this.lattice.mean() };
    this.record.push(kept);
    this.next = iterations + this.every;
    if (this.record.length * width * height * 4 > MOST_KEPT) {
      this.record.forEach(({ picture }, i) => i % 2 && picture?.close());
      this.record = this.record.filter((_, i) => i % 2 === 0);
      this.every *= 2;
    }
    this.slider.value = this.slider.max = this.record.length - 1;
    this.tell(kept);
    kept.picture = await createImageBitmap(this.canvases.picture);
    if (!this.record.includes(kept)) kept.picture.close();
  }

  forget(from) {
    for (const { picture } of this.record.splice(from)) picture?.close();
  }

  // A frame that was recorded.
  look(number) {
    number = Math.min(Math.max(number, 0), this.record.length - 1);
    const { picture } = this.record[number];
    if (!picture) return;
    this.pause();
    this.at = number;
    this.slider.value = number;
    const { past } = this.canvases;
    past.getContext("2d").drawImage(picture, 0, 0);
    past.hidden = false;
    this.tell(this.record[number]);
  }

  tell({ variance, iterations, mean }) {
    const { length } = this.lattice, fourier = variance / (2 * length ** 2);
    const values = {
      Fo: fourier.toPrecision(3),
      "blurred by": `${((100 * Math.sqrt(variance)) / length).toFixed(1)} % of the side`,
      "carried about": `${Math.round(100 * this.peclet * fourier)} %`,
      mean: `${mean.toFixed(5)}, at first ${this.start.toFixed(5)}`,
      iterations: String(iterations),
    };
    this.slider.setAttribute("aria-valuetext", `Fo = ${values.Fo}`);
    this.find(".live-numbers").replaceChildren(...Object.entries(values).map(([name, value]) => {
      const part = document.createElement("span"), bold = document.createElement("b");
      bold.textContent = value;
      part.append(`${name} `, bold);
      return part;
    }));
  }

  // Stirring: one pointer at a time; two fingers scroll the page.
  place(event) {
    const box = this.canvases.ink.getBoundingClientRect(), scale = this.lattice.width / box.width / this.lattice.length;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  begin(event) {
    this.from = null; // a second finger ends the stroke of the first
    if (!this.lattice || event.button || !event.isPrimary) return;
    this.canvases.ink.setPointerCapture(event.pointerId);
    this.from = this.place(event);
    if (!this.touched && !this.iterations) this.play();
    this.touched = true;
    this.arrange();
  }

  follow(event) {
    const brush = this.find(".live-brush"), box = this.canvases.ink.getBoundingClientRect();
    brush.hidden = event.pointerType === "touch";
    brush.style.transform = `translate(${event.clientX - box.left}px, ${event.clientY - box.top}px) translate(-50%, -50%)`;
    if (!this.from || !event.isPrimary) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.stroke(this.from, (this.from = this.place(part)));
  }

  leave(event) {
    if (event.type === "pointerleave") this.find(".live-brush").hidden = true;
    if (event.isPrimary) this.from = null;
  }

  // A bent stroke at random.
  stir() {
    const { width, height, length } = this.lattice, turn = 2 * Math.PI * Math.random(), bend = 4 * (Math.random() - 0.5);
    const [x, y] = [width, height].map((side) => ((0.3 + 0.4 * Math.random()) * side) / length);
    const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
    const points = Array.from({ length: 13 }, (_, i) => {
      const along = 0.5 * (i / 12 - 0.5), across = bend * (along * along - 0.03);
      return [x + along * cos - across * sin, y + along * sin + across * cos];
    });
    points.slice(1).forEach((point, i) => this.stroke(points[i], point));
  }

  // A part of a stroke.
  stroke(from, to) {
    const brush = this.knobs.brush / 100, way = Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (!way || !this.peclet) return;
    this.strokes.scale(this.strength);
    this.strength = 1;
    const parts = Math.floor(way / (SPACING * brush)) + 1;
    const between = (share) => from.map((value, i) => value + share * (to[i] - value));
    for (let part = 0; part < parts; part++) {
      this.strokes.push(between(part / parts), between((part + 1) / parts), brush, STIRRED);
      for (let i = 0; i < 3; i++) this.release(between((part + Math.random()) / parts), brush);
    }
    this.fresh = true;
    this.wake();
  }

  // A particle that shows the flow of a stroke, near a place.
  release(place, brush) {
    const around = () => brush * (Math.random() + Math.random() - 1);
    this.particles.push({ age: 0, path: [place.map((value) => (value + around()) * this.lattice.length)] });
    if (this.particles.length > PARTICLES) this.particles.shift();
  }

  // Paths of the particles, newest places first, which fade; while the time stands still, where they would go next.
  drawInk() {
    const { ink } = this.canvases, pen = ink.getContext("2d"), { width, height } = this.lattice, scale = ink.width / width;
    const way = this.playing ? this.moved : 12 * this.lattice.step;
    if (this.fresh) this.stirred();
    const inside = ([x, y]) => x >= 0 && y >= 0 && x < width && y < height;
    this.particles = this.particles.filter(({ age, path }) => age < LIFE && inside(path[0]));
    for (const particle of this.particles) {
      const at = particle.path[0].map(Math.floor);
      const [a, b] = [this.background, this.foreground].map((psi) => velocity(psi, width, ...at));
      const next = particle.path[0].map((value, i) => value + way * (a[i] * this.share + b[i] * this.strength));
      particle.path = [next, ...particle.path.slice(0, TRAIL)];
      particle.age++;
    }
    pen.clearRect(0, 0, ink.width, ink.height);
    Object.assign(pen, { lineWidth: 1.1 * scale, lineCap: "round" });
    for (let part = TRAIL; part > 0; part--) {
      pen.strokeStyle = `rgb(255 255 255 / ${Math.round(80 * (1 - (part - 1) / TRAIL))}%)`;
      pen.beginPath();
      for (const { age, path } of this.particles) {
        if (part >= path.length || part > LIFE - age) continue;
        pen.moveTo(path[part][0] * scale, path[part][1] * scale);
        pen.lineTo(path[part - 1][0] * scale + 0.01, path[part - 1][1] * scale);
      }
      pen.stroke();
    }
  }

  key(event) {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || !this.lattice) return;
    if (target.matches?.("select, input:not([type=range])") || (event.key === " " && target.matches?.("button"))) return;
    const actions = { " ": () => this.toggle(), s: () => this.stir(), a: () => this.again(), r: () => this.reseed() };
    if (target === this.slider || !target.matches?.("input, [role=tab]")) {
      const now = this.at ?? this.record.length - 1;
      actions.ArrowLeft = () => this.look(now - 1);
      actions.ArrowRight = () => this.look(now + 1);
      actions.Home = () => this.look(0);
      actions.End = () => this.look(this.record.length - 1);
    }
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    action();
  }

  save() {
    const { past, picture } = this.canvases;
    this.lattice.show();
    (this.at === null ? picture : past).toBlob((blob) => {
      const link = document.createElement("a");
      Object.assign(link, { href: URL.createObjectURL(blob), download: `stirred-pe-${this.peclet}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  say(words) {
    this.find(".live-words").textContent = words;
  }
}

// What a canvas can draw, of an address, a file or a painting.
async function drawable(picture) {
  if (typeof picture === "function") return drawn(picture);
  try {
    if (picture instanceof Blob) picture = await createImageBitmap(picture);
    else if (typeof picture === "string") {
      const image = Object.assign(new Image(), { src: picture });
      await image.decode();
      picture = image;
    }
  } catch {
    throw new Error("This browser cannot read this picture; try a PNG, JPEG or WebP file.");
  }
  if (Math.max(picture.width, picture.height) > 4 * Math.min(picture.width, picture.height))
    throw new Error(`This picture has ${picture.width} x ${picture.height} pixels; sides of at most 4 : 1 are taken; crop it.`);
  return picture;
}

// A picture as numbers, with a shorter side of so many pixels or, if it is small, its own.
function cells(source, side) {
  const shorter = Math.min(source.width, source.height), scale = Math.min(side, Math.max(shorter, 128)) / shorter;
  const [width, height] = [source.width, source.height].map((length) => Math.round(scale * length));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // behind what is transparent
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, width, height);
  return { width, height, rgba: floats(canvas) };
}

function floats(canvas) {
  return Float32Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, (value) => value / 255);
}
