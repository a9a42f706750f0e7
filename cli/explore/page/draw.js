// Pictures, fields and curves on canvases.

// matplotlib's colour map magma (CC0), every sixteenth colour.
const MAGMA = (
  "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
).split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function magma(share) {
  const place = Math.min(Math.max(share, 0), 1) * (MAGMA.length - 1), low = Math.min(Math.floor(place), MAGMA.length - 2);
  return MAGMA[low].map((value, i) => value + (place - low) * (MAGMA[low + 1][i] - value));
}

// uint8 RGB pixels, row by row, at their own resolution.
export function showPixels(canvas, rgb, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  putPixels(canvas, rgb, width, height);
}

// The same in a part of a canvas.
export function putPixels(canvas, rgb, width, height, left = 0, top = 0) {
  const image = new ImageData(width, height), data = image.data;
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    data[to] = rgb[from];
    data[to + 1] = rgb[from + 1];
    data[to + 2] = rgb[from + 2];
    data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, left, top);
}

// Several pictures of one size as a sheet with gaps of a pixel.
export function showSheet(canvas, rgb, width, height, count, columns) {
  const rows = Math.ceil(count / columns), one = width * height * 3;
  Object.assign(canvas, { width: columns * (width + 1) - 1, height: rows * (height + 1) - 1 });
  const cell = document.createElement("canvas");
  for (let i = 0; i < count; i++) {
    showPixels(cell, rgb.subarray(i * one, (i + 1) * one), width, height);
    canvas.getContext("2d").drawImage(cell, (i % columns) * (width + 1), Math.floor(i / columns) * (height + 1));
  }
}

// The same on a canvas of its own.
export function pictureCanvas(rgb, width, height) {
  const canvas = document.createElement("canvas");
  showPixels(canvas, rgb.subarray(0, 3 * width * height), width, height);
  return canvas;
}

// A canvas enlarged by a whole factor, to a longer side of at least so many pixels.
export function enlarged(canvas, smooth, least = 1024) {
  const factor = Math.ceil(least / Math.max(canvas.width, canvas.height)), large = document.createElement("canvas");
  Object.assign(large, { width: factor * canvas.width, height: factor * canvas.height });
  const pen = large.getContext("2d");
  Object.assign(pen, { imageSmoothingEnabled: smooth, imageSmoothingQuality: "high" });
  pen.drawImage(canvas, 0, 0, large.width, large.height);
  return large;
}

// The speed of a velocity field [2, height, width] as colours.
export function showSpeed(canvas, velocity, height, width) {
  const cells = height * width, rgb = new Uint8Array(3 * cells);
  let largest = 1e-9;
  for (let i = 0; i < cells; i++) largest = Math.max(largest, Math.hypot(velocity[i], velocity[cells + i]));
  for (let i = 0; i < cells; i++) rgb.set(magma(Math.hypot(velocity[i], velocity[cells + i]) / largest), 3 * i);
  showPixels(canvas, rgb, width, height);
}

// Particles that a velocity field carries.
export class Streaks {
  constructor(canvas) {
    this.canvas = canvas;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.particles = Float32Array.from({ length: 1800 }, Math.random);
    this.ages = Float32Array.from({ length: 900 }, () => 60 * Math.random());
    requestAnimationFrame(() => this.move());
  }

  show(velocity, height, width) {
    this.velocity = velocity;
    [this.height, this.width] = [height, width];
    if (velocity && !this.still.matches) return;
    this.clear();
    for (let step = 0; velocity && step < 40; step++) this.advance(0.8);
  }

  clear() {
    const { offsetWidth: width, offsetHeight: height } = this.canvas, scale = devicePixelRatio;
    Object.assign(this.canvas, { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
  }

  move() {
    requestAnimationFrame(() => this.move());
    if (!this.velocity || this.still.matches || !this.canvas.offsetParent) return;
    if (Math.abs(this.canvas.width - this.canvas.offsetWidth * devicePixelRatio) > 1) this.clear();
    const pen = this.canvas.getContext("2d");
    pen.globalCompositeOperation = "destination-out";
    pen.fillStyle = "rgb(0 0 0 / 8%)";
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    pen.globalCompositeOperation = "source-over";
    this.advance(0.55);
  }

  // Particles go on by the velocity at the nearest cell; a step is about so many thousandths of the shorter side times V.
  advance(thousandths) {
    const { velocity, height, width, particles, ages } = this, pen = this.canvas.getContext("2d"), cells = height * width;
    const [wide, high] = [this.canvas.width, this.canvas.height], shorter = Math.min(width, height);
    pen.strokeStyle = "rgb(255 255 255 / 45%)";
    pen.lineWidth = devicePixelRatio;
    pen.beginPath();
    for (let i = 0; i < ages.length; i++) {
      const x = particles[2 * i], y = particles[2 * i + 1];
      const cell = Math.min(Math.floor(y * height), height - 1) * width + Math.min(Math.floor(x * width), width - 1);
      const stepX = (velocity[cell] * thousandths * shorter) / (330 * width),
        stepY = (velocity[cells + cell] * thousandths * shorter) / (330 * height);
      const [nextX, nextY] = [x + stepX, y + stepY];
      if (--ages[i] < 0 || nextX < 0 || nextX >= 1 || nextY < 0 || nextY >= 1) {
        [particles[2 * i], particles[2 * i + 1], ages[i]] = [Math.random(), Math.random(), 40 + 60 * Math.random()];
        continue;
      }
      pen.moveTo(x * wide, y * high);
      pen.lineTo(nextX * wide, nextY * high);
      [particles[2 * i], particles[2 * i + 1]] = [nextX, nextY];
    }
    pen.stroke();
  }
}

// Curves in a frame. Each is {x, y, colour, dashed, width}; both axes are logarithmic unless told.
export function plot(canvas, curves, { xLabel = "", decades = 8, linear = false, marks = [] } = {}) {
  const scale = devicePixelRatio, wide = canvas.offsetWidth, high = canvas.offsetHeight;
  if (!wide) return;
  Object.assign(canvas, { width: wide * scale, height: high * scale });
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body), log = linear ? (value) => value : Math.log10;
  pen.scale(scale, scale);
  const shown = curves.filter((curve) => curve.x?.length);
  if (!shown.length) return;
  const xs = shown.flatMap((curve) => [curve.x[0], curve.x[curve.x.length - 1]]).map(log), ys = shown.flatMap((curve) => curve.y);
  const top = log(Math.max(...ys)) + (linear ? 0 : 0.3), bottom = linear ? 0 : top - decades;
  const [left, right] = [Math.min(...xs), Math.max(...xs)], [padLeft, padBottom] = [10, 20];
  const at = (x, y) => [
    padLeft + ((log(x) - left) / (right - left || 1)) * (wide - padLeft - 8),
    8 + ((top - Math.max(linear ? y : Math.log10(Math.max(y, 1e-30)), bottom)) / (top - bottom || 1)) *
        (high - padBottom - 10),
  ];
  pen.font = "10.5px system-ui, sans-serif";
  pen.fillStyle = style.getPropertyValue("--soft");
  pen.strokeStyle = style.getPropertyValue("--line");
  const inside = [1, 2, 4, 8, 16, 32, 64, 128, 256].filter((x) => log(x) >= left && log(x) <= right);
  for (const x of linear ? [xs[0], xs[1]] : inside) {
    const [place] = at(x, 1);
    pen.beginPath();
    pen.moveTo(place, 6);
    pen.lineTo(place, high - padBottom + 2);
    pen.stroke();
    pen.textAlign = place < 20 ? "left" : place > wide - 20 ? "right" : "center";
    pen.fillText(x, place, high - 7);
  }
  pen.textAlign = "right";
  pen.fillText(xLabel, wide - 10, 16);
  for (const { x, y, colour, dashed, width = 1.8 } of shown) {
    pen.strokeStyle = style.getPropertyValue(colour);
    pen.lineWidth = width;
    pen.setLineDash(dashed ? [5, 4] : []);
    pen.beginPath();
    x.forEach((value, i) => pen.lineTo(...at(value, y[i])));
    pen.stroke();
  }
  pen.setLineDash([]);
  for (const mark of marks) {
    pen.strokeStyle = style.getPropertyValue("--warm");
    pen.beginPath();
    pen.moveTo(at(mark, 1)[0], 8);
    pen.lineTo(at(mark, 1)[0], high - padBottom);
    pen.stroke();
  }
}
