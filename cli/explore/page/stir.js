// The place of the live mode, which live.js fills: mount(element, picture) begins it, destroy() ends it.

import { pictureCanvas } from "./draw.js";
import { KNOBS, mount } from "./live.js";
import { messages } from "./stream.js";

const SIZE = 256;

// The knobs of the live view as the address of the page names them.
export const inAddress = (knobs) =>
  Object.fromEntries(Object.entries(knobs).map(([name, value]) => [`l${name}`, String(value)]));
export const LIVE = inAddress(KNOBS);

export class Stir {
  constructor(app) {
    this.app = app;
    this.keys = ["picture"];
    this.place = document.getElementById("live");
  }

  load() {
    this.stop();
    return this.app.work(async (signal) => {
      const picture = await this.picture(signal), { app } = this;
      if (signal.aborted) return;
      const knobs = Object.fromEntries(Object.keys(KNOBS).map((name) => [name, app.state[`l${name}`]]));
      const changed = (turned) => app.set(inAddress(turned));
      this.mounted = mount(this.place, picture, { settings: document.getElementById("live-settings"), knobs, changed });
    });
  }

  // The clean picture, a canvas of the size that is stirred.
  async picture(signal) {
    const query = { picture: this.app.state.picture, size: SIZE, peclet: 0, frames: 2, slot: "picture" };
    let about;
    for await (const message of messages("/api/trajectory", query, signal)) {
      if (message.kind === "frame") return pictureCanvas(message.body, about.width, about.height);
      if (message.kind === "scene") about = message;
    }
  }

  stop() {
    this.mounted?.destroy();
    this.mounted = undefined;
    this.place.replaceChildren();
  }

  show() {}
}
