// Strokes of a brush, drawn on the picture or on the flow. They are kept in the address: a word for each, x and y of its points
// in thousandths of the sides.

const MOST_STROKES = 64, MOST_POINTS = 500, STEP = 30;
const $ = (id) => document.getElementById(id);

export class Paint {
  constructor(app) {
    this.app = app;
    this.on = false;
    this.past = []; // strokes before each change
    this.places = [$("painted"), $("field")];
    for (const place of this.places) this.listen(place);
    $("paint").addEventListener("click", () => this.toggle());
    $("undo").addEventListener("click", () => this.undo());
    $("clear").addEventListener("click", () => this.change(""));
  }

  get strokes() {
    return this.app.state.strokes.split(" ").filter(Boolean);
  }

  change(strokes) {
    this.past.push(this.app.state.strokes);
    this.app.set({ strokes });
  }

  undo() {
    this.app.set({ strokes: this.past.pop() ?? this.strokes.slice(0, -1).join(" ") });
  }

  toggle(on = !this.on) {
    if (on === this.on) return;
    this.on = on;
    if (!on) this.end();
    $("paint").setAttribute("aria-pressed", on);
    $("panel").classList.toggle("painting", on);
    if (on) this.app.say("Draw on the picture or on the flow. Esc ends it.");
    this.app.arrange();
  }

  // Esc takes back a stroke that is under way, else it ends the painting. Returns whether there was something to end.
  escape() {
    if (!this.on) return false;
    if (this.pointer === undefined) this.toggle(false);
    else {
      const { before } = this;
      this.end();
      this.past.pop();
      this.app.set({ strokes: before });
    }
    return true;
  }

  listen(place) {
    const point = (event) => {
      const box = place.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((value) =>
        Math.round(1000 * Math.min(Math.max(value, 0), 1)));
    };
    place.addEventListener("pointerdown", (event) => {
      if (!this.on || event.button || this.pointer !== undefined) return; // a second finger draws nothing
      place.setPointerCapture(event.pointerId);
      [this.pointer, this.before, this.stroke] = [event.pointerId, this.app.state.strokes, [point(event)]];
      event.preventDefault();
    });
    place.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer) return;
      const next = point(event), last = this.stroke.at(-1);
      if (Math.hypot(next[0] - last[0], next[1] - last[1]) < STEP) return;
      const points = [this.before, ...this.stroke].join(" ").trim().split(/[ ,]/).length / 2;
      if (this.before.split(" ").length >= MOST_STROKES || points > MOST_POINTS)
        return this.app.say("The flow is full of strokes; clear it to paint on.");
      this.stroke.push(next);
      if (this.stroke.length === 2) this.past.push(this.before);
      this.app.set({ strokes: `${this.before} ${this.stroke.flat().join(",")}`.trim() });
    });
    for (const ended of ["pointerup", "pointercancel"])
      place.addEventListener(ended, (event) => {
        if (event.pointerId !== this.pointer) return;
        const drawn = this.stroke.length > 1, { player } = this.app;
        this.end();
        if (drawn && !matchMedia("(prefers-reduced-motion: reduce)").matches) (player.go(0), player.play(1, true));
      });
  }

  end() {
    this.pointer = this.stroke = undefined;
  }

  // The strokes as they were drawn: as wide as the brush, with an arrow at the end.
  ink() {
    for (const place of this.places) {
      const canvas = place.querySelector(".ink"), { offsetWidth: wide, offsetHeight: high } = canvas;
      canvas.hidden = !this.on;
      if (!this.on || !wide) continue;
      Object.assign(canvas, { width: wide * devicePixelRatio, height: high * devicePixelRatio });
      const pen = canvas.getContext("2d");
      pen.scale(devicePixelRatio, devicePixelRatio);
      Object.assign(pen, { lineCap: "round", lineJoin: "round" });
      for (const stroke of this.strokes) {
        const numbers = stroke.split(",").map(Number), points = [];
        for (let i = 0; i + 1 < numbers.length; i += 2) points.push([(numbers[i] * wide) / 1000, (numbers[i + 1] * high) / 1000]);
        const [[fromX, fromY], [x, y]] = points.slice(-2), angle = Math.atan2(y - fromY, x - fromX);
        const line = new Path2D(), head = new Path2D();
        points.forEach((point) => line.lineTo(...point));
        for (const side of [angle - 2.5, angle + 2.5]) {
          head.moveTo(x, y);
          head.lineTo(x + 11 * Math.cos(side), y + 11 * Math.sin(side));
        }
        pen.lineWidth = (2 * Number(this.app.state.brush) * Math.min(wide, high)) / 100;
        pen.strokeStyle = "rgb(255 255 255 / 22%)";
        pen.stroke(line);
        for (const [width, colour] of [[4.5, "rgb(0 0 0 / 55%)"], [2, "#ffd166"]]) {
          Object.assign(pen, { lineWidth: width, strokeStyle: colour });
          pen.stroke(line);
          pen.stroke(head);
        }
      }
    }
  }
}
