// What the paper does, in five steps. A step lays its values over the state, and shows another view's stage.

const STILL = { process: "", size: "256", octaves: "4", turbulence: "curl-noise", time: "0", seed: "5", strokes: "", flow: "" };
const STEPS = [
  { stage: "corrupt", at: 0.7, values: () => ({ peclet: "2000", sigma: "1.2", octaves: "3" }) },
  { stage: "corrupt", at: 0.4, values: () => ({ peclet: "0", sigma: "16" }) },
  { stage: "corrupt", at: 0.6, values: ({ speclet }) => ({ peclet: speclet, sigma: "3", flow: "1" }) },
  {
    stage: "corrupt", at: 0.35,
    values: ({ sprocess }, processes) => ({ size: "128", process: sprocess, peclet: String(processes[sprocess].peclet) }),
  },
  { stage: "generate", at: 1, values: () => ({ model: "fashion", num: "28", gseed: "4", steps: "0", label: "", mode: "new" }) },
];
const $ = (id) => document.getElementById(id);

export class Story {
  constructor(app) {
    this.app = app;
    this.keys = ["picture", "step", "speclet", "sprocess"];
    this.articles = [...document.querySelectorAll("[data-step]")];
    this.dots = STEPS.map((_, number) => {
      const dot = document.createElement("button");
      dot.setAttribute("aria-label", `Step ${number + 1}: ${this.articles[number].querySelector("h2").textContent}`);
      dot.addEventListener("click", () => this.go(number + 1));
      return dot;
    });
    $("dots").append(...this.dots.map((dot) => {
      const item = document.createElement("li");
      item.append(dot);
      return item;
    }));
    $("back").addEventListener("click", () => this.go(this.number - 1));
    $("next").addEventListener("click", () => this.go(this.number + 1));
    for (const button of document.querySelectorAll("[data-process]"))
      button.addEventListener("click", () => app.set({ sprocess: button.dataset.process }));
    const degraded = () => ({ rpicture: app.state.picture, rclean: "1", rmodel: "photographs" });
    for (const button of document.querySelectorAll("[data-go]"))
      button.addEventListener("click", () =>
        app.set({ view: button.dataset.go, ...(button.dataset.go === "restore" && degraded()) }));
  }

  get number() {
    return Math.min(Math.max(Math.round(Number(this.app.state.step)) || 1, 1), STEPS.length);
  }

  get step() {
    return STEPS[this.number - 1];
  }

  values() {
    return { ...STILL, ...this.step.values(this.app.state, this.app.choices.processes) };
  }

  go(number) {
    const step = STEPS[number - 1];
    if (!step) return;
    this.app.player.stop();
    this.app.set({ step: String(number), st: step.at.toFixed(4) });
    $("story").parentElement.scrollTop = 0;
  }

  arrange() {
    this.articles.forEach((article, number) => (article.hidden = number + 1 !== this.number));
    this.dots.forEach((dot, number) => {
      if (number + 1 === this.number) dot.setAttribute("aria-current", "step");
      else dot.removeAttribute("aria-current");
    });
    $("back").disabled = this.number === 1;
    $("next").disabled = this.number === STEPS.length;
    for (const button of document.querySelectorAll("[data-process]"))
      button.setAttribute("aria-pressed", button.dataset.process === this.app.state.sprocess);
  }
}
