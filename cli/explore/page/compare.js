// All processes on one picture, at one time.

import { showPixels } from "./draw.js";
import { messages } from "./stream.js";

const FRAMES = 48;

export class Compare {
  constructor(app) {
    this.app = app;
    this.keys = ["picture", "seed"];
    this.place = document.getElementById("compare");
    this.cards = [];
  }

  load() {
    const { picture, seed } = this.app.state;
    const options = [picture === "chelsea" ? "" : ` ${picture}`, seed === "0" ? "" : ` --seed ${seed}`];
    this.app.welcome();
    this.app.player.frames = FRAMES;
    this.app.command(`beyond-blur compare${options[0]} --size 128 --levels ${FRAMES - 1}${options[1]} --video`);
    const processes = Object.entries(this.app.choices.processes).filter(([, { control }]) => !control);
    this.cards = processes.map(([name, { about }]) => this.card(name, about));
    this.place.replaceChildren(...this.cards.map((card) => card.figure));
    this.show(this.app.player.number);
    return this.app.work(async (signal) => {
      for (const card of this.cards) {
        const query = { picture, seed, process: card.name, size: 128, frames: FRAMES };
        for await (const message of messages("/api/trajectory", query, signal)) {
          if (message.kind === "scene") card.about = message;
          else if (message.kind === "frame")
            card.frames[message.number] = message.body.subarray(0, 3 * card.about.height * card.about.width);
          if (message.number === this.app.player.number || message.number === 0) this.draw(card);
        }
        this.draw(card);
      }
    });
  }

  card(name, about) {
    const figure = document.createElement("figure"),
      canvas = document.createElement("canvas"),
      caption = document.createElement("figcaption");
    const title = document.createElement("strong");
    title.textContent = name;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${this.app.pictureName} by the process ${name}`);
    caption.append(title, about);
    figure.append(canvas, caption);
    return { name, figure, canvas, frames: [] };
  }

  stop() {
    this.cards = [];
    this.place.replaceChildren();
  }

  draw(card) {
    const frame = card.frames[this.app.player.number] ?? card.frames.at(-1);
    if (frame) showPixels(card.canvas, frame, card.about.width, card.about.height);
  }

  show(number) {
    for (const card of this.cards) this.draw(card);
    this.app.numbers({ "k / K": (number / (FRAMES - 1)).toFixed(2) });
  }

  // All pictures side by side, as they are seen.
  png() {
    const sheet = document.createElement("canvas"), columns = 4, [first] = this.cards;
    const wide = first.canvas.width + 8, high = first.canvas.height + 24;
    Object.assign(sheet, { width: columns * wide, height: Math.ceil(this.cards.length / columns) * high });
    const pen = sheet.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.fillStyle = "#1d1a26";
    pen.font = "12px system-ui, sans-serif";
    this.cards.forEach((card, i) => {
      const [x, y] = [(i % columns) * wide + 4, Math.floor(i / columns) * high];
      pen.fillText(card.name, x, y + 14);
      pen.drawImage(card.canvas, x, y + 19);
    });
    return sheet;
  }

  get title() {
    return "compared";
  }
}
