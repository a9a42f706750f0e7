// The page: its state, which is kept in the address, and what all views share.

import { Compare } from "./compare.js";
import { Corrupt } from "./corrupt.js";
import { Generate } from "./generate.js";
import { Player } from "./player.js";
import { Restore } from "./restore.js";

const USUAL = {
  view: "corrupt", picture: "chelsea", size: "256", process: "", peclet: "400", sigma: "4", octaves: "4", turbulence: "curl-noise",
  time: "0", seed: "0", strokes: "", t: "0.3", model: "fashion", num: "36", gseed: "0", steps: "0", label: "", guidance: "1",
  mode: "new", rpicture: "degraded", rmodel: "emoji", rlevel: "", rsamples: "4", rseed: "0",
};
const NAMES = { chelsea: "the cat", degraded: "two emoji" };
const anotherSeed = () => String(Math.floor(1e6 * Math.random()));
const $ = (id) => document.getElementById(id);
const all = (selector) => document.querySelectorAll(selector);

class App {
  constructor() {
    this.state = { ...USUAL, ...Object.fromEntries(new URLSearchParams(location.search)) };
    this.files = {};
    this.player = new Player((number, share) => {
      this.state.t = share.toFixed(4);
      this.keepAddress();
      this.views[this.state.view].show(number);
    });
    this.views = { corrupt: new Corrupt(this), compare: new Compare(this), generate: new Generate(this), restore: new Restore(this) };
  }

  async start() {
    if (!(this.state.view in this.views)) this.state.view = USUAL.view;
    const answer = await fetch("/api/choices");
    this.choices = await answer.json();
    const option = (name) => new Option(name, name);
    document.querySelector("[data-key=process]")
      .append(new Option("flow and blur", ""), ...Object.keys(this.choices.processes).map(option));
    for (const select of all(".models")) select.append(...this.choices.models.map(option));
    for (const control of all("[data-key]"))
      control.addEventListener("input", () => this.set(this.following(control.dataset.key, control.value)));
    for (const button of all("[data-random]"))
      button.addEventListener("click", () => this.set({ [button.dataset.random]: anotherSeed() }));
    for (const tab of all("[data-view]")) tab.addEventListener("click", () => this.set({ view: tab.dataset.view }));
    $("cat").addEventListener("click", () => this.set({ picture: "chelsea" }));
    $("example").addEventListener("click", () => this.set({ rpicture: "degraded" }));
    $("share").addEventListener("click", () => this.copy(location.href, "The address is in the clipboard."));
    $("copy").addEventListener("click", () => this.copy($("command").textContent, "The command is in the clipboard."));
    $("help").addEventListener("click", () => $("keys").showModal());
    $("png").addEventListener("click", () => this.views[this.state.view].png().toBlob((blob) => this.save(blob, "png")));
    $("mp4").addEventListener("click", () => this.film());
    $("file").addEventListener("change", (event) => this.add(event.target.files[0]));
    this.dragAndDrop();
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("resize", () => this.views[this.state.view].show(this.player.number));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.views[this.state.view].show(this.player.number));
    const share = Number(this.state.t) || 0;
    this.arrange();
    this.player.go(share);
    this.views[this.state.view].load();
    if (!location.search && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.player.go(0);
      this.player.play(1);
    }
  }

  // A change, and what follows from it: another process has a Peclet number of its own, another model other classes.
  following(key, value) {
    if (key === "process") return { process: value, peclet: value ? String(this.choices.processes[value].peclet) : USUAL.peclet };
    return key === "model" ? { model: value, label: "" } : { [key]: value };
  }

  // Change the state; what depends on it follows.
  set(changes) {
    const changed = Object.keys(changes).filter((key) => this.state[key] !== changes[key]);
    Object.assign(this.state, changes);
    this.arrange();
    this.keepAddress();
    if (changed.includes("view") || changed.some((key) => this.views[this.state.view].keys.includes(key)))
      this.views[this.state.view].load();
  }

  // Controls and views as the state says.
  arrange() {
    const { state } = this, process = this.choices?.processes[state.process];
    // Four times the process's own number, which may be a tenth.
    const peclet = document.querySelector("[data-key=peclet]"), most = process ? 4 * process.peclet : 1000;
    Object.assign(peclet, { max: most, step: most / 1000 || 1 });
    for (const element of all("[data-views]")) element.hidden = !element.dataset.views.split(" ").includes(state.view);
    for (const tab of all("[data-view]")) tab.setAttribute("aria-selected", tab.dataset.view === state.view);
    for (const control of all("[data-key]")) {
      control.value = state[control.dataset.key];
      const output = control.closest("label")?.querySelector("output");
      if (output) output.textContent = Number(control.value).toPrecision(4).replace(/\.?0+$/, "");
    }
    $("process-about").textContent = process?.about ?? "The flow and the blur of your choice";
    $("own-flow").hidden = Boolean(process);
    $("painting").hidden = Boolean(process);
    peclet.closest("label").hidden = process?.peclet === 0;
    $("undo").disabled = $("clear").disabled = !state.strokes;
    $("picture-name").textContent = this.files[state.picture] ?? NAMES[state.picture] ?? "a picture";
    $("restored-name").textContent = this.files[state.rpicture] ?? NAMES[state.rpicture] ?? "a picture";
  }

  // At most ten times a second, as browsers ask for.
  keepAddress() {
    if (this.pending) return;
    this.pending = setTimeout(() => {
      this.pending = null;
      const differing = Object.entries(this.state).filter(([key, value]) => value !== USUAL[key]);
      history.replaceState(null, "", differing.length ? `?${new URLSearchParams(differing)}` : location.pathname);
    }, 100);
  }

  async add(file) {
    if (!file) return;
    try {
      const answer = await fetch("/api/pictures", {
        method: "POST",
        body: file,
        headers: { "content-type": "application/octet-stream" },
      });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      this.files[found.name] = file.name;
      this.set(this.state.view === "restore" ? { rpicture: found.name } : { picture: found.name });
      if (this.state.view === "generate") this.set({ view: "corrupt" });
    } catch (error) {
      this.fail(error);
    }
    $("file").value = "";
  }

  dragAndDrop() {
    addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dragging");
    });
    for (const end of ["dragleave", "drop"]) addEventListener(end, () => document.body.classList.remove("dragging"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) this.add(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => this.add(event.clipboardData.files[0]));
    $("drop").addEventListener("keydown", (event) => event.key === "Enter" && $("file").click());
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const { target } = event;
    if (target.matches?.("input:not([type=range]), select")) return;
    if (event.key === " " && target.matches?.("button")) return;
    const range = target.matches?.("input[type=range]") && target !== this.player.slider;
    const seed = { corrupt: "seed", compare: "seed", generate: "gseed", restore: "rseed" }[this.state.view];
    const actions = {
      " ": () => this.player.toggle(),
      r: () => this.set({ [seed]: anotherSeed() }),
      p: () => this.state.view === "corrupt" && this.views.corrupt.togglePainting(),
      "?": () => $("keys").showModal(),
    };
    if (!range) {
      actions.ArrowLeft = () => this.player.step(-1);
      actions.ArrowRight = () => this.player.step(1);
      actions.Home = () => this.player.go(0);
      actions.End = () => this.player.go(1);
    }
    Object.keys(this.views).forEach((view, number) => (actions[number + 1] = () => this.set({ view })));
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  async film() {
    const view = this.views[this.state.view];
    this.say("The film is made; this takes some seconds.");
    try {
      const answer = await fetch(`${view.filmPath}?${new URLSearchParams(view.query())}`);
      if (!answer.ok) throw new Error((await answer.json()).error);
      this.save(await answer.blob(), "mp4");
    } catch (error) {
      this.fail(error);
    }
  }

  save(blob, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${(this.files[this.state.picture] ?? this.state.view).replace(/\.[^.]*$/, "")}-${this.state.view}.${type}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // A command names a picture that was added by its checksum; the visitor knows it by its file.
  commandOf(text) {
    for (const [name, file] of Object.entries(this.files))
      text = text.replace(name, /^[\w.-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`);
    return text;
  }

  command(text) {
    $("command").textContent = this.commandOf(text);
  }

  numbers(values) {
    const parts = Object.entries(values).map(([name, value]) => {
      const part = document.createElement("span"), bold = document.createElement("b");
      bold.textContent = value;
      part.append(name ? `${name} ` : "", bold);
      return part;
    });
    $("numbers").replaceChildren(...parts);
  }

  // Only the last thing that was asked for is worked on.
  async work(task) {
    this.stop();
    const { signal } = (this.under = new AbortController());
    this.busy(true);
    try {
      await task(signal);
      this.busy(false);
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    }
  }

  stop() {
    this.under?.abort();
  }

  busy(is) {
    document.body.classList.toggle("busy", is);
  }

  fail(error) {
    this.busy(false);
    this.say(error instanceof TypeError ? "The server does not answer; is it still running?" : error.message);
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

window.explorer = new App();
window.explorer.start().catch((error) => window.explorer.fail(error));
