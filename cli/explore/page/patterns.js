// Pictures that are drawn here: colours as a marbler lays them.

const COLOURS = ["#1d1147", "#e8e2d0", "#d9432f", "#f2b134", "#0f7173", "#e8e2d0", "#7b2d8b", "#f58549"];
const [WIDTH, HEIGHT] = [576, 384];

export const PATTERNS = {
  Bands(pen) {
    const count = 24;
    for (let i = 0; i < count; i++) {
      pen.fillStyle = COLOURS[i % COLOURS.length];
      pen.fillRect((i * WIDTH) / count, 0, WIDTH / count, HEIGHT);
    }
  },
  Drops(pen) {
    pen.fillStyle = COLOURS[1];
    pen.fillRect(0, 0, WIDTH, HEIGHT);
    for (let y = 0; y < 4; y++)
      for (let x = 0; x < 6; x++)
        for (let ring = 3; ring >= 0; ring--) {
          pen.fillStyle = COLOURS[(3 * x + 5 * y + 2 * ring) % COLOURS.length];
          pen.beginPath();
          pen.arc((x + 0.5) * (WIDTH / 6), (y + 0.5) * (HEIGHT / 4), 11 * (ring + 1), 0, 2 * Math.PI);
          pen.fill();
        }
  },
};

// A canvas with one of them.
export function drawn(pattern) {
  const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
  pattern(canvas.getContext("2d"));
  return canvas;
}
