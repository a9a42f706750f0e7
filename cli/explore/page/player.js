// The time: sliders over frames that may still be on their way, played there and back.

export class Player {
  // show(frame number, share of the way) is called whenever another frame is to be seen.
  constructor(show) {
    this.sliders = document.querySelectorAll("[data-time]");
    this.button = document.getElementById("play");
    this.show = show;
    this.share = 0;
    this.frames = 2;
    this.seconds = 6;
    this.direction = 1;
    for (const slider of this.sliders)
      slider.addEventListener("input", () => {
        this.stop();
        this.go(Number(slider.value));
      });
    this.button.addEventListener("click", () => this.toggle());
  }

  get number() {
    return Math.round(this.share * (this.frames - 1));
  }

  go(share) {
    this.share = Math.min(Math.max(share, 0), 1);
    this.place(this.share);
    this.show(this.number, this.share);
  }

  // Where the sliders stand, while frames come in.
  place(share) {
    for (const slider of this.sliders) slider.value = share;
  }

  step(count) {
    this.stop();
    this.go((this.number + count) / (this.frames - 1));
  }

  toggle() {
    if (this.playing) this.stop();
    else this.play(this.share >= 1 ? -1 : 1);
  }

  play(direction = 1, once = false) {
    this.direction = direction;
    this.once = once;
    this.last = performance.now();
    if (!this.playing) {
      this.playing = true;
      requestAnimationFrame((now) => this.tick(now));
    }
    this.label();
  }

  stop() {
    this.playing = false;
    this.label();
  }

  label() {
    this.button.textContent = this.playing ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", this.playing ? "Stop" : "Play");
  }

  tick(now) {
    if (!this.playing) return;
    const share = this.share + (this.direction * Math.min(now - this.last, 100)) / (1000 * this.seconds);
    this.last = now;
    this.go(share);
    if (share >= 1 || share <= 0) {
      if (this.once) return this.stop();
      this.direction = share >= 1 ? -1 : 1;
    }
    requestAnimationFrame((next) => this.tick(next));
  }
}
