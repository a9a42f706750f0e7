// The page: its state, which is kept in the address, and what all views share.

import { Compare } from "./compare.js";
import { Corrupt } from "./corrupt.js";
import { enlarged } from "./draw.js";
import { Generate } from "./generate.js";
import { Player } from "./player.js";
import { Restore } from "./restore.js";
import { LIVE, Stir } from "./stir.js";
import { keep, kept } from "./store.js";
import { Story } from "./story.js";
import { messages, send } from "./stream.js";

const USUAL = {
  view: "story", step: "1", picture: "chelsea", size: "256", process: "", peclet: "400", sigma: "4", octaves: "4",
  turbulence: "curl-noise", time: "0", seed: "0", strokes: "", brush: "6", strokes_on: "turbulence", flow: "", speclet: "600",
  sprocess: "beyond-blur", model: "fashion", num: "36", gseed: "0", steps: "0", label: "", guidance: "1", mode: "new",
  rpicture: "chelsea", rmodel: "photographs", rclean: "", rdegrade: "300", rlevel: "", rsamples: "4", rseed: "0",
  rblur: "", rnoise: "", rdblur: "1.5", rdnoise: "0.08",
  st: "0.7000", t: "0.3000", ct: "0.3000", gt: "1.0000", rt: "1.0000",
  ...LIVE,
};
// What a visitor says of one picture is not of another.
const UNTOLD = { rblur: "", rnoise: "", rlevel: "" };
const TOY = 64; // largest shorter side of what is no photograph [pixels]
const TIME = { story: "st", corrupt: "t", compare: "ct", generate: "gt", restore: "rt", live: "t" };
const SEED = { corrupt: "seed", compare: "seed", generate: "gseed", restore: "rseed" };
// With a change of these the browser's Back comes back to what was before.
const PLACES = ["view", "step", "picture", "rpicture", "process", "sprocess", "model", "rmodel", "rclean"];
// Addresses name what they like, "constructor" too: tables of such names have no prototype.
const NAMES = { __proto__: null, chelsea: "the cat", astronaut: "an astronaut", degraded: "two emoji", emoji: "an emoji" };
// Files that are no pictures of pixels that Pillow reads: how they begin, or what their names end with.
const OTHERS = [
  [/^.{4}ftyp(hei|hev|mif1|msf1)|\.(heic|heif)$/is, "HEIC pictures are not read here: save it as JPEG or PNG, and drop that."],
  [/^[^\0]*<svg\b|\.svgz?$/i, "An SVG is a drawing, without pixels: export it as PNG, and drop that."],
  [/^%PDF|\.pdf$/i, "A PDF is a document: save its picture as PNG, and drop that."],
  [/^.{4}ftyp(isom|iso2|mp4|qt|M4V|avc1)|^\x1aE\xdf\xa3|^RIFF.{4}AVI|\.(mp4|mov|webm|mkv|avi)$/is, "This is a film. The command beyond-blur corrupt takes films; the page takes pictures."],
];
const anotherSeed = () => String(Math.floor(1e6 * Math.random()));
const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);
const still = matchMedia("(prefers-reduced-motion: reduce)");

class App {
  constructor() {
    this.state = this.read();
    this.files = { __proto__: null };
    this.waiting = [];
    this.player = new Player((number, share) => {
      this.state[TIME[this.state.view]] = share.toFixed(4);
      this.keepAddress();
      this.stage.show(number);
    });
    this.views = {
      __proto__: null,
      story: new Story(this), corrupt: new Corrupt(this), compare: new Compare(this), generate: new Generate(this),
      restore: new Restore(this), live: new Stir(this),
    };
    this.dragAndDrop();
    this.begun = this.start();
    this.begun.catch((error) => this.fail(error));
  }

  // The state that the address says; an empty value is the usual one.
  read() {
    const known = [...new URLSearchParams(location.search)].filter(([key, value]) => value && Object.hasOwn(USUAL, key));
    return { ...USUAL, ...Object.fromEntries(known) };
  }

  // The view whose stage is seen, and its name.
  get stageName() {
    return this.state.view === "story" ? this.views.story.step.stage : this.state.view;
  }

  get stage() {
    return this.views[this.stageName];
  }

  // What the stage shows: the state, and over it what a step of the story says.
  get values() {
    return this.state.view === "story" ? { ...this.state, ...this.views.story.values() } : this.state;
  }

  async start() {
    const answer = await fetch("/api/choices");
    this.choices = await answer.json();
    Object.setPrototypeOf(this.choices.processes, null);
    const option = (name) => new Option(name, name);
    document.querySelector("[data-key=process]")
      .append(new Option("flow and blur", ""), ...Object.keys(this.choices.processes).map(option));
    for (const select of all(".models")) select.append(...this.choices.models.map(option));
    document.querySelector("[data-key=rmodel]").prepend(new Option("photographs: any size", "photographs"));
    this.listen();
    this.links();
    const first = !location.search && !still.matches;
    await this.enter();
    if (first) {
      this.player.go(0);
      this.player.play(1);
    }
  }

  listen() {
    for (const control of all("[data-key]"))
      control.addEventListener("input", () => {
        const value = control.type === "checkbox" ? (control.checked ? "1" : control.dataset.off ?? "") : control.value;
        this.set(this.following(control.dataset.key, value));
      });
    for (const button of all("[data-random]"))
      button.addEventListener("click", () => this.set({ [button.dataset.random]: anotherSeed() }));
    const tabs = [...all("[role=tab]")];
    for (const tab of tabs) tab.addEventListener("click", () => this.set({ view: tab.dataset.view }));
    document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
      const at = tabs.indexOf(event.target), last = tabs.length - 1;
      const to = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at > 0 ? at - 1 : last }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      this.set({ view: tabs[to].dataset.view });
      tabs[to].focus();
    });
    for (const button of all("[data-picture], [data-rpicture]"))
      button.addEventListener("click", () => this.set({ ...button.dataset }));
    $("share").addEventListener("click", () => {
      this.writeAddress();
      this.copy(location.href, "The address is in the clipboard.");
    });
    $("copy").addEventListener("click", () => this.copy($("command").textContent, "The command is in the clipboard."));
    $("help").addEventListener("click", () => $("keys").showModal());
    $("png").addEventListener("click", () => this.picture());
    $("mp4").addEventListener("click", () => this.film());
    $("cancel").addEventListener("click", () => this.filming?.abort());
    $("drawer").addEventListener("click", () => {
      const closed = document.body.classList.toggle("closed");
      $("drawer").setAttribute("aria-expanded", !closed);
    });
    $("file").addEventListener("change", (event) => this.add(event.target.files));
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("popstate", () => {
      this.stage.stop?.();
      this.player.stop();
      this.state = this.read();
      this.enter();
    });
    addEventListener("pagehide", () => this.writeAddress());
    const again = () => (this.stage.redraw ?? this.stage.show).call(this.stage, this.player.number);
    new ResizeObserver(again).observe(document.querySelector(".stage"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  }

  links() {
    for (const place of all(".links"))
      for (const [name, address] of Object.entries(this.choices.links ?? {})) {
        const link = { href: address, textContent: name, target: "_blank", rel: "noopener" };
        place.append(Object.assign(document.createElement("a"), link));
      }
  }

  // Show what the state says.
  async enter() {
    const { state } = this;
    if (!(state.view in this.views)) state.view = USUAL.view;
    if (!(state.sprocess in this.choices.processes)) state.sprocess = USUAL.sprocess;
    if (state.view === "story" && !new URLSearchParams(location.search).has("st")) state.st = this.views.story.step.at.toFixed(4);
    this.arrange();
    this.player.go(Number(state[TIME[state.view]]) || 0);
    await this.bring();
    if (state === this.state) this.load();
  }

  load() {
    this.stage.load();
  }

  // A change, and what follows from it: another process has a Peclet number of its own, another model other classes.
  following(key, value) {
    if (key === "process") return { process: value, peclet: value ? String(this.choices.processes[value].peclet) : USUAL.peclet };
    return key === "model" ? { model: value, label: "" } : { [key]: value };
  }

  // Change the state; what depends on it follows.
  set(changes) {
    if ("rpicture" in changes) changes = { ...UNTOLD, ...changes };
    const changed = Object.keys(changes).filter((key) => this.state[key] !== changes[key]);
    if (!changed.length) return;
    const place = changed.some((key) => PLACES.includes(key)), view = this.state.view;
    if (place) {
      this.writeAddress();
      this.stage.stop?.();
    }
    Object.assign(this.state, changes);
    if (place) history.pushState(null, "", this.address);
    else this.keepAddress();
    this.arrange();
    const time = TIME[this.state.view];
    if (view !== this.state.view) this.player.stop();
    if (view !== this.state.view || time in changes) this.player.go(Number(this.state[time]) || 0);
    if (view !== this.state.view || changed.some((key) => this.views[this.state.view].keys.includes(key))) this.load();
  }

  // Controls and views as the state says.
  arrange() {
    const { state } = this, idle = this.stage.idle?.(this.values) ?? {};
    Object.assign(document.body.dataset, { view: state.view, stage: this.stageName });
    for (const element of all("[data-views]")) element.hidden = !element.dataset.views.split(" ").includes(state.view);
    for (const element of all("[data-stages]")) element.hidden = !element.dataset.stages.split(" ").includes(this.stageName);
    for (const tab of all("[role=tab]")) {
      const chosen = tab.dataset.view === state.view;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    $("panel").setAttribute("aria-labelledby", `tab-${state.view}`);
    for (const view of new Set([this.stage, this.views[state.view]])) view.arrange?.(idle);
    for (const control of all("[data-key]")) {
      const { key } = control.dataset, value = control.closest("label")?.querySelector(".value");
      if (control.type === "checkbox") control.checked = key === "rclean" ? this.views.restore.degrades : Boolean(state[key]);
      else control.value = state[key];
      if (value) value.textContent = Number(Number(state[key]).toPrecision(4)) || state[key]; // a slider may stand at the nearest it has
      control.disabled = key in idle;
      control.title = idle[key] ?? "";
    }
    for (const button of all("[data-random]")) button.disabled = button.dataset.random in idle;
    for (const reason of all(".reason")) {
      const keys = [...reason.closest("fieldset").querySelectorAll("[data-key]")].map((control) => control.dataset.key);
      reason.textContent = [...new Set(keys.map((key) => idle[key]).filter(Boolean))].join(" ");
    }
    $("drawer").querySelector("b").textContent = state.view === "story" ? "Story" : "Settings";
    $("picture-name").textContent = this.nameOf(state.picture);
    $("restored-name").textContent = this.nameOf(state.rpicture);
  }

  nameOf(picture) {
    return this.files[picture] ?? NAMES[picture] ?? "a picture that is not here: drop it again";
  }

  get pictureName() {
    return this.nameOf(this.state.picture);
  }

  get address() {
    const differing = Object.entries(this.state).filter(([key, value]) => value !== USUAL[key]);
    return differing.length ? `?${new URLSearchParams(differing)}` : location.pathname;
  }

  // Seldom enough for browsers that count how often this is done.
  keepAddress() {
    this.pending ??= setTimeout(() => this.writeAddress(), 350);
  }

  writeAddress() {
    clearTimeout(this.pending);
    this.pending = undefined;
    history.replaceState(null, "", this.address);
  }

  // Names of the pictures that were dropped in this browser before.
  async bring() {
    for (const name of new Set([this.state.picture, this.state.rpicture])) {
      if (name in NAMES || name in this.files) continue;
      const found = await kept(name);
      if (found) this.files[name] = found.title;
    }
    this.arrange();
  }

  async add([file, ...others]) {
    if (!file) return this.say("That is no file. Save the picture first, and drop the file.");
    const head = await file.slice(0, 1024).arrayBuffer().catch(() => null);
    if (!head) return this.say("That cannot be read. A folder is no picture: drop one of its files.");
    const parts = [new TextDecoder("latin1").decode(head), file.name];
    const other = OTHERS.find(([pattern]) => parts.some((part) => pattern.test(part)));
    if (other) return this.say(other[1]);
    const sign = $("drop").querySelector("span"), usual = sign.textContent;
    try {
      sign.textContent = `Reading ${file.name} …`;
      $("drop").classList.add("reading");
      await this.begun;
      const { name, height, width } = await send(file), key = this.state.view === "restore" ? "rpicture" : "picture";
      this.files[name] = file.name;
      await keep(name, file);
      if (others.length) this.say(`The first of ${others.length + 1} files is taken.`);
      const view = this.state.view === "generate" ? "corrupt" : this.state.view;
      const model = key === "rpicture" && Math.min(height, width) > TOY && { rmodel: "photographs" };
      if (this.state[key] !== name || this.state.view !== view) this.set({ view, [key]: name, ...model });
      else {
        this.arrange();
        this.load();
      }
    } catch (error) {
      this.say(words(error));
    } finally {
      sign.textContent = usual;
      $("drop").classList.remove("reading");
      $("file").value = "";
    }
  }

  dragAndDrop() {
    addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dragging");
    });
    for (const end of ["dragleave", "drop"]) addEventListener(end, () => document.body.classList.remove("dragging"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
    addEventListener("paste", (event) => event.clipboardData.files.length && this.add(event.clipboardData.files));
    $("drop").addEventListener("keydown", (event) => event.key === "Enter" && $("file").click());
  }

  key(event) {
    const { target } = event, { paint } = this.views.corrupt, corrupt = this.state.view === "corrupt";
    if ($("keys").open || target.matches?.("input:not([type=range], [type=checkbox]), select")) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && corrupt && !$("undo").disabled) {
      event.preventDefault();
      return paint.undo();
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && paint.escape()) return event.preventDefault();
    if (event.key === " " && target.matches?.("button, input")) return;
    const range = target.matches?.("input[type=range]") && !("time" in target.dataset);
    const seed = document.querySelector(`[data-random=${SEED[this.state.view]}]`);
    const actions = {
      r: () => seed?.disabled || this.set({ [SEED[this.state.view]]: anotherSeed() }),
      p: () => corrupt && !$("painting").hidden && !$("paint").disabled && $("paint").click(),
      "?": () => $("keys").showModal(),
    };
    if (!(this.stage instanceof Stir)) {
      actions[" "] = () => this.player.toggle();
      if (!range) {
        actions.ArrowLeft = () => this.player.step(-1);
        actions.ArrowRight = () => this.player.step(1);
        actions.Home = () => this.player.go(0);
        actions.End = () => this.player.go(1);
      }
    }
    Object.keys(this.views).forEach((view, number) => (actions[number + 1] = () => this.set({ view })));
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // What is seen as a file, as soon as it is as fine as it gets.
  async picture() {
    const { stage } = this;
    if (stage.redraw || stage.whole) await this.quiet();
    enlarged(stage.png(), !stage.pixelated, stage.least).toBlob((blob) => this.save(blob, "png"));
  }

  async film() {
    const { stage } = this, { signal } = (this.filming = new AbortController());
    $("film").hidden = false;
    $("film").querySelector("progress").removeAttribute("value");
    $("mp4").disabled = true;
    try {
      for await (const message of messages(stage.filmPath, { ...stage.query(), progress: 1, slot: "film" }, signal)) {
        if (message.kind === "film") this.save(new Blob([message.body], { type: "video/mp4" }), "mp4");
        else if (message.of) $("film").querySelector("progress").value = message.done / message.of;
      }
    } catch (error) {
      if (!signal.aborted) this.say(words(error));
    } finally {
      $("film").hidden = true;
      $("mp4").disabled = false;
    }
  }

  // Files are named by picture, process and time.
  save(blob, type) {
    const { view } = this.state, picture = view === "restore" ? this.state.rpicture : this.state.picture;
    const name = view === "generate" ? [] : [(this.files[picture] ?? picture).replace(/\.[^.]*$/, "")];
    const time = type === "png" && view !== "restore" ? [`t${this.player.share.toFixed(2)}`] : [];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${[...name, this.stage.title, ...time].join("-")}.${type}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // A command names a picture that was added by its checksum; the visitor knows it by its file.
  command(text) {
    $("command").textContent = text.replace(/\b[0-9a-f]{24}\b/, (name) => {
      const file = (this.files[name] ?? "picture.png").replace(/^-/, "./-");
      return /^[\w./-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`;
    });
  }

  numbers(values) {
    const parts = Object.entries(values).map(([name, value]) => {
      const part = document.createElement("span"), bold = document.createElement("b");
      bold.textContent = value;
      part.append(name ? `${name} ` : "", bold);
      return part;
    });
    $("numbers").replaceChildren(...parts);
    for (const slider of this.player.sliders) slider.setAttribute("aria-valuetext", $("numbers").textContent || "not yet");
  }

  // Only the last thing that was asked for is worked on.
  async work(task) {
    this.stop();
    const { signal } = (this.under = new AbortController());
    this.busy(true);
    try {
      await task(signal);
      if (!signal.aborted) this.busy(false);
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    }
  }

  stop() {
    this.under?.abort();
  }

  busy(is) {
    document.body.classList.toggle("busy", is);
    document.querySelector(".stage").setAttribute("aria-busy", is);
    if (!is) for (const resolve of this.waiting.splice(0)) resolve();
  }

  quiet() {
    return document.body.classList.contains("busy") ? new Promise((resolve) => this.waiting.push(resolve)) : Promise.resolve();
  }

  // What was asked for is not there, and stays so until something else is asked for.
  fail(error) {
    this.busy(false);
    $("notice").textContent = words(error);
    $("notice").hidden = false;
  }

  welcome() {
    $("notice").hidden = true;
  }

  say(text) {
    $("toast").textContent = text;
    $("toast").classList.add("shown");
    clearTimeout(this.fading);
    this.fading = setTimeout(() => $("toast").classList.remove("shown"), 6000);
  }

  async copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      this.say(done);
    } catch {
      this.say("This browser does not let the page use the clipboard; select the text and copy it.");
    }
  }
}

// What browsers say of a server that is gone; any other TypeError is a fault of this page.
function words(error) {
  if (!(error instanceof TypeError)) return error.message;
  if (/fetch|network|load failed/i.test(error.message)) return "The server does not answer; is it still running?";
  reportError(error);
  return `This page failed: ${error.message}`;
}

window.explorer = new App();
