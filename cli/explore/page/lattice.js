// The scheme of lbm_warp on the graphics card: D2Q9, relaxation time 1, one float per cell and channel (WebGL 2, float textures).

// lbm_warp.planner.Scheme: lattice temperatures, where the second one begins, largest velocity in cells per iteration and in V.
const SHARP = 1 / 3, SMOOTH = 1 / 2, SMOOTH_FROM_PX = 3, MAX_VELOCITY = 0.5;
export const PEAK_TO_RMS = 6;

// Every pass is a fragment shader that draws all cells; the one vertex shader makes a triangle that covers them.
const VERTEX = `#version 300 es
  void main() { gl_Position = vec4(vec2(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1), 0, 1); }`;
// A neighbour; beyond a wall lies the ghost cell, the mirror image: the cell itself with its normal velocity negated.
const FRAGMENT = `#version 300 es
  precision highp float;
  precision highp sampler2D;
  uniform ivec2 size;
  uniform bool periodic;
  ivec2 cell(ivec2 at, out vec2 mirrored) {
    ivec2 inside = clamp(at, ivec2(0), size - 1);
    if (periodic) inside = at - size * (ivec2(greaterThanEqual(at, size)) - ivec2(lessThan(at, ivec2(0))));
    mirrored = vec2(periodic || inside.x == at.x ? 1 : -1, periodic || inside.y == at.y ? 1 : -1);
    return inside;
  }`;
// v_x = mean_x (psi[y + 1] - psi[y]), v_y = -mean_y (psi[x + 1] - psi[x]), psi on the corners of the cells: no divergence.
const CURL = `${FRAGMENT}
  uniform sampler2D turbulence, strokes;
  uniform vec2 strength;
  out vec2 velocity;
  float psi(ivec2 corner) {
    return dot(strength, vec2(texelFetch(turbulence, corner, 0).x, texelFetch(strokes, corner, 0).x));
  }
  void main() {
    ivec2 here = ivec2(gl_FragCoord.xy);
    float a = psi(here), b = psi(here + ivec2(1, 0)), c = psi(here + ivec2(0, 1)), d = psi(here + 1);
    velocity = 0.5 * vec2((c - a) + (d - b), (a - b) + (c - d));
  }`;
// Nine numbers of a cell are in three textures, a row each: what it sends, and the weights of what it gets.
const SENT = ["above", "beside", "below"], WEIGHTS = ["upper", "middle", "lower"];
const PLACES = ["low", "here", "high"], AXIS = [0, 1, 2];
const outputs = (names) => names.map((name, i) => `layout(location = ${i}) out vec3 ${name};`).join(" ");
// The fractions f_c of a cell's density that stream by c: lbm_warp.kernels.rules, moments and fractions. Around the cells lies a
// ring of ghost cells, which send the mirror image of what the cell at the wall sends.
const SEND = `${FRAGMENT}
  uniform sampler2D field;
  uniform float scale, theta;
  ${outputs(SENT)}
  vec2 flow(ivec2 at) {
    vec2 mirrored;
    return scale * texelFetch(field, cell(at, mirrored), 0).xy * mirrored;
  }
  void main() {
    vec2 mirrored;
    ivec2 at = cell(ivec2(gl_FragCoord.xy) - 1, mirrored);
    vec2 u = flow(at), l = flow(at + ivec2(-1, 0)), r = flow(at + ivec2(1, 0));
    vec2 a = flow(at + ivec2(0, -1)), b = flow(at + ivec2(0, 1));
    vec2 al = flow(at - 1), ar = flow(at + ivec2(1, -1)), bl = flow(at + ivec2(-1, 1)), br = flow(at + 1);
    // (A_y u_x, A_x u_y), (Q_x, Q_y), (A_y Q_x, A_x Q_y), S and (c_x, c_y).
    vec2 mean = 0.25 * (vec2(a.x, l.y) + 2.0 * u + vec2(b.x, r.y));
    vec2 q = 0.25 * (vec2(l.x * l.x, a.y * a.y) + 2.0 * u * u + vec2(r.x * r.x, b.y * b.y));
    vec2 corners = al * al + ar * ar + bl * bl + br * br;
    vec2 mean_q = 0.5 * q + 0.0625 * (corners + 2.0 * vec2(a.x * a.x + b.x * b.x, l.y * l.y + r.y * r.y));
    float s = 0.5 * u.x * u.y + 0.125 * (l.x * l.y + r.x * r.y + a.x * a.y + b.x * b.y);
    float divergence = 0.125 * (2.0 * (r.x - l.x + b.y - a.y) + ar.x + br.x - al.x - bl.x + bl.y + br.y - al.y - ar.y);
    vec2 along = vec2(r.x * r.x - l.x * l.x, b.y * b.y - a.y * a.y), across = vec2(b.x * b.y - a.x * a.y, r.x * r.y - l.x * l.y);
    vec2 curved = 0.5 * (along + across) - u * divergence;

    float spread = 0.5 * theta, middle = 1.0 - theta, straight = 1.0 - theta - theta;
    vec2 even = 0.5 * straight * mean_q + spread * (q - q.yx), odd = 0.5 * straight * mean + spread * u + 0.125 * curved;
    vec2 sides = spread * middle + even, diagonal = 0.5 * (spread * u + 0.125 * curved);
    float corner = spread * spread + 0.5 * spread * (q.x + q.y), product = 0.25 * s;
    vec3 up = vec3(corner - diagonal.x - diagonal.y + product, sides.y - odd.y, corner + diagonal.x - diagonal.y - product);
    vec3 down = vec3(corner - diagonal.x + diagonal.y - product, sides.y + odd.y, corner + diagonal.x + diagonal.y + product);
    // What stays is what is left, so that rounding takes nothing from the sum.
    float stays = 1.0 - 2.0 * sides.x - dot(up + down, vec3(1));
    above = mirrored.y < 0.0 ? down : up;
    beside = vec3(sides.x - odd.x, stays, sides.x + odd.x);
    below = mirrored.y < 0.0 ? up : down;
    if (mirrored.x < 0.0) (above = above.zyx, beside = beside.zyx, below = below.zyx);
  }`;
// The weights of a cell's nine neighbours, f_c(x - c), made once for many iterations:
// rho'(x) = sum_c f_c(x - c) rho(x - c). The sum is written out, as a loop takes a graphics card in software much longer.
const WEIGH = `${FRAGMENT}
  uniform sampler2D above, beside, below;
  ${outputs(WEIGHTS)}
  void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    ${WEIGHTS.map((row, y) =>
      `${row} = vec3(${AXIS.map((x) => `texelFetch(${SENT[2 - y]}, at + ivec2(${x}, ${y}), 0)[${2 - x}]`)});`).join(" ")}
  }`;
const ITERATE = `${FRAGMENT}
  uniform sampler2D density, upper, middle, lower;
  out vec4 next;
  void main() {
    vec2 mirrored;
    ivec2 here = ivec2(gl_FragCoord.xy), low = cell(here - 1, mirrored), high = cell(here + 1, mirrored);
    vec3 ${WEIGHTS.map((row, y) => `w${y} = texelFetch(${row}, here, 0).xyz`)};
    next = ${AXIS.flatMap((y) => AXIS.map((x) =>
      `w${y}[${x}] * texelFetch(density, ivec2(${PLACES[x]}.x, ${PLACES[y]}.y), 0)`)).join(" + ")};
  }`;
const ROW_SUMS = `${FRAGMENT}
  uniform sampler2D density;
  out vec4 total;
  void main() {
    total = vec4(0);
    for (int x = 0; x < size.x; x++) total += texelFetch(density, ivec2(x, int(gl_FragCoord.y)), 0);
  }`;
// The first row of a picture is its top, that of a canvas its bottom.
const SHOW = `${FRAGMENT}
  uniform sampler2D density;
  out vec4 colour;
  void main() { colour = vec4(texelFetch(density, ivec2(gl_FragCoord.x, size.y - 1 - int(gl_FragCoord.y)), 0).rgb, 1); }`;

export class Lattice {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!gl?.getExtension("EXT_color_buffer_float"))
      throw new Error("This view needs WebGL 2 with float textures, which this browser or its graphics driver does not offer.");
    Object.assign(this, { gl, textures: [], periodic: false });
    const names = { curl: CURL, send: SEND, weigh: WEIGH, iterate: ITERATE, sums: ROW_SUMS, show: SHOW };
    this.programs = Object.fromEntries(Object.entries(names).map(([name, source]) => [name, this.program(source)]));
  }

  // Of another size [cells], with everything zero.
  resize(width, height) {
    const { gl } = this;
    for (const { texture, target } of this.textures.splice(0)) (gl.deleteTexture(texture), gl.deleteFramebuffer(target));
    Object.assign(gl.canvas, { width, height });
    Object.assign(this, { width, height });
    for (const name of ["now", "next"]) this[name] = this.texture(gl.RGBA32F, width, height);
    this.field = this.texture(gl.RG32F, width, height);
    for (const name of SENT) this[name] = this.texture(gl.RGBA32F, width + 2, height + 2);
    for (const name of WEIGHTS) this[name] = this.texture(gl.RGBA32F, width, height);
    [this.sent, this.weights] = [SENT, WEIGHTS].map((names) => this.together(names.map((name) => this[name])));
    for (const name of ["turbulence", "strokes"]) this[name] = this.texture(gl.R32F, width + 1, height + 1);
    this.sums = this.texture(gl.RGBA32F, 1, height);
  }

  // The shorter side.
  get length() {
    return Math.min(this.width, this.height);
  }

  program(source) {
    const { gl } = this, program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, source]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
    const count = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS);
    const uniforms = Array.from({ length: count }, (_, i) => gl.getActiveUniform(program, i));
    return { program, uniforms: uniforms.map(({ name, type }) => ({ name, type, place: gl.getUniformLocation(program, name) })) };
  }

  texture(format, width, height) {
    const { gl } = this, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    const target = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const layout = { [gl.R32F]: gl.RED, [gl.RG32F]: gl.RG, [gl.RGBA32F]: gl.RGBA }[format];
    this.textures.push({ texture, target, width, height, layout });
    return this.textures.at(-1);
  }

  // Several textures of one size as one target.
  together(textures) {
    const { gl } = this, target = gl.createFramebuffer(), places = textures.map((_, i) => gl.COLOR_ATTACHMENT0 + i);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    textures.forEach(({ texture }, i) => gl.framebufferTexture2D(gl.FRAMEBUFFER, places[i], gl.TEXTURE_2D, texture, 0));
    gl.drawBuffers(places);
    this.textures.push({ target });
    return { ...textures[0], target };
  }

  upload({ texture, width, height, layout }, values) {
    const { gl } = this;
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, layout, gl.FLOAT, values);
  }

  read({ target, width, height }) {
    const { gl } = this, values = new Float32Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.FLOAT, values);
    return values;
  }

  // Run a pass into a texture, or onto the canvas. What has the name of a property is that, if the values do not say otherwise.
  pass(name, target, values) {
    const { gl } = this, { program, uniforms } = this.programs[name];
    values = { size: [this.width, this.height], ...values };
    gl.useProgram(program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target?.target ?? null);
    gl.viewport(0, 0, target?.width ?? this.width, target?.height ?? this.height);
    let unit = 0;
    for (const { name, type, place } of uniforms) {
      if (type === gl.SAMPLER_2D) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(gl.TEXTURE_2D, (values[name] ?? this[name]).texture);
        gl.uniform1i(place, unit++);
      } else if (type === gl.INT_VEC2) gl.uniform2i(place, ...values[name]);
      else if (type === gl.FLOAT_VEC2) gl.uniform2f(place, ...values[name]);
      else if (type === gl.FLOAT) gl.uniform1f(place, values[name]);
      else gl.uniform1i(place, this[name]);
    }
    gl.activeTexture(gl.TEXTURE0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // A picture, RGBA of every cell, row by row, 0 to 1, and sigma^2 of its blur so far [square pixels].
  load(rgba, variance = 0) {
    this.upload(this.now, rgba);
    this.variance = variance;
  }

  // The field, in units of V, from stream functions on the corners of the cells and the strengths of both.
  flow(turbulence, strokes) {
    this.pass("curl", this.field, { strength: [turbulence, strokes] });
  }

  // Iterations at a Peclet number. Returns what they add to sigma^2 [square pixels].
  advance(iterations, peclet) {
    // u = Pe alpha / L v with alpha = theta / 2: lbm_warp.planner.Plan.
    const before = this.variance, perTheta = peclet / (2 * this.length);
    const [sharp, smooth] = [SHARP, SMOOTH].map((best) => Math.min(best, MAX_VELOCITY / (PEAK_TO_RMS * perTheta)));
    const smoothFrom = sharp * Math.ceil(SMOOTH_FROM_PX ** 2 / sharp);
    this.step = perTheta * smooth; // cells that V covers in an iteration
    for (let i = 0, weighed; i < iterations; i++) {
      const theta = this.variance < smoothFrom - 0.5 * sharp ? sharp : smooth;
      if (weighed !== theta) {
        this.pass("send", this.sent, { scale: perTheta * theta, theta });
        this.pass("weigh", this.weights);
        weighed = theta;
      }
      this.pass("iterate", this.next, { density: this.now });
      [this.now, this.next] = [this.next, this.now];
      this.variance += theta;
    }
    return this.variance - before;
  }

  show() {
    this.pass("show", null, { density: this.now });
  }

  // Mean of red, green and blue, which the flow and the blur keep.
  mean() {
    this.pass("sums", this.sums, { density: this.now });
    const rows = this.read(this.sums);
    return rows.reduce((total, value, i) => total + (i % 4 < 3 ? value : 0), 0) / (3 * this.width * this.height);
  }
}
