// Flows without divergence as stream functions on the corners of the cells, [height + 1, width + 1], row by row, in units of V.

const MASK = (1n << 64n) - 1n;

// lbm_warp.kernels.hashing: a counter hashed into a state (SplitMix64), and a number in (0, 1) from a state.
function absorb(state, counter) {
  let z = ((state ^ BigInt.asUintN(32, BigInt(counter))) + 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}
const symmetric = (state, counter) => 2 * (Number(absorb(state, counter) >> 41n) + 0.5) * 2 ** -23 - 1;
const fade = (t) => t * t * t * (t * (t * 6 - 15) + 10);
const halfToEven = (value) => Math.round(value) - (value % 1 === 0.5 && Math.round(value) % 2);

// lbm_warp.CurlNoise: the flow that the commands make of the same seed, at any time of a flow that changes.
export class CurlNoise {
  constructor(seed, width, height, periodic, { octaves = 4, cells = 2 } = {}) {
    Object.assign(this, { width, height, periodic, octaves: [] });
    const length = Math.min(width, height), start = absorb(BigInt(seed), 0);
    for (let octave = 0; octave < octaves; octave++) {
      const count = cells * 2 ** octave;
      if (octave && 4 * count > length) break;
      const [ny, nx] = [height, width].map((side) => halfToEven((count * side) / length));
      const state = absorb(start, octave);
      this.octaves.push({ ny, nx, state, rate: count ** (2 / 3), amplitude: 2 ** ((-4 / 3) * octave), slabs: new Map() });
    }
  }

  // Random value and slopes (x, y, time) of an octave at its nodes, at a whole time.
  slab({ ny, nx, state, slabs }, time) {
    if (slabs.has(time)) return slabs.get(time);
    const nodes = [];
    for (let j = 0; j <= ny; j++)
      for (let i = 0; i <= nx; i++) {
        const [row, column] = this.periodic ? [j % ny, i % nx] : [j, i];
        const node = absorb(absorb(absorb(state, row), column), time);
        nodes.push([0, 1, 2, 3].map((part) => symmetric(node, part) * (part ? Math.sqrt(6) : 1)));
      }
    slabs.delete(time - 2);
    slabs.set(time, nodes);
    return nodes;
  }

  // Value and slopes (x, y) at the nodes at a time; on a wall the value is zero and the slope is normal to it.
  nodes(octave, time) {
    const moment = time * octave.rate, before = Math.floor(moment), phase = moment - before, { ny, nx } = octave;
    const [first, second] = [this.slab(octave, before), this.slab(octave, before + 1)], late = fade(phase);
    return first.map((a, place) => {
      const b = second[place], mix = (p, q) => (1 - late) * p + late * q;
      const node = [mix(a[0] + a[3] * phase, b[0] + b[3] * (phase - 1)), mix(a[1], b[1]), mix(a[2], b[2])];
      const [i, j] = [place % (nx + 1), Math.floor(place / (nx + 1))];
      if (!this.periodic && (i === 0 || i === nx)) node[0] = node[2] = 0;
      if (!this.periodic && (j === 0 || j === ny)) node[0] = node[1] = 0;
      return node;
    });
  }

  // The stream function of unit rms: along a row the nodes above and below are blended first.
  psi(time = 0) {
    const { width, height } = this, psi = new Float32Array((width + 1) * (height + 1));
    for (const octave of this.octaves) {
      const { ny, nx, amplitude } = octave, nodes = this.nodes(octave, time);
      for (let y = 0; y <= height; y++) {
        const py = (y / height) * ny, j = Math.min(Math.floor(py), ny - 1), fy = py - j, wy = fade(fy);
        const blended = Array.from({ length: nx + 1 }, (_, i) => {
          const above = nodes[j * (nx + 1) + i], below = nodes[(j + 1) * (nx + 1) + i];
          return [
            (1 - wy) * (above[0] + above[2] * fy) + wy * (below[0] + below[2] * (fy - 1)),
            (1 - wy) * above[1] + wy * below[1],
          ];
        });
        for (let x = 0; x <= width; x++) {
          const px = (x / width) * nx, i = Math.min(Math.floor(px), nx - 1), fx = px - i, wx = fade(fx);
          const [a, slopeA] = blended[i], [b, slopeB] = blended[i + 1];
          psi[y * (width + 1) + x] += amplitude * ((1 - wx) * (a + slopeA * fx) + wx * (b + slopeB * (fx - 1)));
        }
      }
    }
    const { rms } = measured(psi, width, height);
    return psi.map((value) => value / rms);
  }
}

// Velocity (v_x, v_y) of a cell.
export function velocity(psi, width, x, y) {
  const at = y * (width + 1) + x, a = psi[at], b = psi[at + 1], c = psi[at + width + 1], d = psi[at + width + 2];
  return [0.5 * (c - a + (d - b)), 0.5 * (a - b + (c - d))];
}

// Rms of a component, and the largest one.
export function measured(psi, width, height) {
  let total = 0, peak = 0;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [vx, vy] = velocity(psi, width, x, y);
      total += vx * vx + vy * vy;
      peak = Math.max(peak, Math.abs(vx), Math.abs(vy));
    }
  return { rms: Math.sqrt(total / (2 * width * height)), peak };
}

// Modes along an axis, as functions of the place in shorter sides: sines, which vanish on walls, or all that repeat.
function modes(side, length, periodic, narrowest) {
  const long = side / length, count = Math.min(Math.ceil((3.5 * long) / (narrowest * Math.PI)), side >> 1);
  const order = Array.from({ length: count }, (_, m) => (periodic ? m >> 1 : m + 1) + (periodic && m % 2));
  return order.map((m, number) => {
    const k = ((periodic ? 2 : 1) * Math.PI * m) / long, even = periodic && number % 2 === 0;
    const value = even ? (x) => Math.cos(k * x) : (x) => Math.sin(k * x);
    const slope = even ? (x) => -k * Math.sin(k * x) : (x) => k * Math.cos(k * x);
    const corners = Float32Array.from({ length: side + 1 }, (_, i) => (i === side ? Number(even) : value((i / side) * long)));
    return { k, value, slope, corners, norm: (m ? 2 : 1) / long };
  });
}

// lbm_warp.StrokeFlow, stroke by stroke: a push p at a place gives the fluid p exp(-r^2 / (2 brush^2)), without its divergence.
// Of the curl of that, -laplace(psi), every mode A(x) B(y) is known: 2 pi b^2 exp(-k^2 b^2 / 2) (p_x A B' - p_y A' B).
export class Strokes {
  constructor(width, height, periodic, narrowest) {
    const length = Math.min(width, height);
    Object.assign(this, { width, height, length });
    [this.alongX, this.alongY] = [width, height].map((side) => modes(side, length, periodic, narrowest));
    this.amplitudes = new Float64Array(this.alongX.length * this.alongY.length);
  }

  // A part of a stroke, places [x, y] in shorter sides. Far along a straight stroke the fluid has the given speed.
  push([fromX, fromY], [toX, toY], brush, speed) {
    const { alongX, alongY, amplitudes, length } = this, [pushX, pushY] = [toX - fromX, toY - fromY];
    const [x, y] = [(fromX + toX) / 2, (fromY + toY) / 2], strength = (speed * length * Math.sqrt(2 * Math.PI)) * brush;
    const parts = alongX.map(({ value, slope }) => [value(x), slope(x)]);
    alongY.forEach(({ k: ky, value, slope, norm }, q) => {
      const [b, slopeB] = [value(y), slope(y)];
      alongX.forEach(({ k: kx, norm: normX }, p) => {
        const k2 = kx * kx + ky * ky, [a, slopeA] = parts[p];
        if (k2 > 0)
          amplitudes[q * alongX.length + p] +=
            ((strength * norm * normX) / k2) * Math.exp(-0.5 * k2 * brush * brush) * (pushX * a * slopeB - pushY * slopeA * b);
      });
    });
  }

  scale(factor) {
    this.amplitudes.forEach((value, i) => (this.amplitudes[i] = value * factor));
  }

  psi() {
    const { alongX, alongY, amplitudes, width, height } = this, psi = new Float32Array((width + 1) * (height + 1));
    const row = new Float32Array(width + 1);
    alongY.forEach((mode, q) => {
      row.fill(0);
      alongX.forEach(({ corners }, p) => {
        const amplitude = amplitudes[q * alongX.length + p];
        for (let x = 0; x <= width; x++) row[x] += amplitude * corners[x];
      });
      for (let y = 0; y <= height; y++) {
        const share = mode.corners[y], start = y * (width + 1);
        for (let x = 0; x <= width; x++) psi[start + x] += share * row[x];
      }
    });
    return psi;
  }
}
