// The picture: patches left, merge groups in colour, dropped ones dark, and the moves of one patch.

const SVG = "http://www.w3.org/2000/svg";
const GROUP_COLOURS = 12; // --group-0 ... in the style sheet
const LABELLED = 6; // largest shares whose percentage stands in the picture

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

class Picture {
  constructor(svg, story) {
    this.story = story;
    this.svg = svg;
    const { width, height } = story.image;
    this.across = width / story.width;
    this.down = height / story.height;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.append(
      patterns(Math.min(this.across, this.down)),
      element("image", { href: story.image.uri, width, height, preserveAspectRatio: "none" }),
    );
    this.covers = Array.from({ length: story.patches }, (_, patch) => element("rect", this.box(patch)));
    this.marks = element("g", { class: "marks" });
    this.ways = element("g");
    svg.append(element("g", {}, ...this.covers), element("path", { class: "lines", d: this.gridLines() }));
    svg.append(this.marks, this.ways);
  }

  corner(patch) {
    return [(patch % this.story.width) * this.across, Math.floor(patch / this.story.width) * this.down];
  }

  centre(patch) {
    const [x, y] = this.corner(patch);
    return [x + this.across / 2, y + this.down / 2];
  }

  box(patch) {
    const [x, y] = this.corner(patch);
    return { x, y, width: this.across, height: this.down };
  }

  gridLines() {
    const { width, height } = this.story.image;
    let path = "";
    for (let i = 1; i < this.story.width; i++) path += `M${i * this.across} 0V${height}`;
    for (let i = 1; i < this.story.height; i++) path += `M0 ${i * this.down}H${width}`;
    return path;
  }

  // state: of the run after the layer; removed: the patches that the layer removed.
  draw(run, state, removed) {
    const groups = new Map();
    this.covers.forEach((cover, patch) => {
      const holder = state.held[patch];
      const group = holder >= 0 && state.members.get(holder).length > 1;
      cover.setAttribute("class", holder < 0 ? "dropped" : group ? `group g${run.colourOf(holder)}` : "alone");
      if (group) groups.set(holder, state.members.get(holder));
    });
    const dots = [...groups.keys()].map((holder) => this.dot(holder, 0.2, `holder g${run.colourOf(holder)}`));
    const outlines = [...groups.keys()].map((holder) => this.outline(state.held, groups.get(holder), "outline"));
    const frames = [...removed].map((patch) => this.frame(patch, "removed", 0.12));
    this.marks.replaceChildren(...outlines, ...frames, ...dots);
  }

  // trace: of the selected patch, or null; holder: the token that holds it now.
  select(patch, trace, state) {
    this.ways.replaceChildren();
    this.svg.classList.toggle("following", patch !== null);
    if (patch === null) return;
    const holder = state.held[patch];
    if (holder >= 0) this.ways.append(this.outline(state.held, state.members.get(holder), "own-outline"));
    const moves = trace.moves.filter((move) => move.target >= 0);
    for (const move of moves.toSorted((a, b) => a.share - b.share)) this.ways.append(...this.arrow(move));
    for (const [at, share] of trace.shares.toReversed()) {
      if (at !== patch) this.ways.append(this.dot(at, 0.2 + 0.25 * Math.sqrt(share), "share"));
    }
    this.ways.append(this.frame(patch, "casing", -0.06), this.frame(patch, "selected", -0.06));
    for (const [at, share] of trace.shares.slice(0, LABELLED)) {
      if (at !== patch) this.ways.append(this.label(at, share));
    }
  }

  dot(patch, radius, name) {
    const [cx, cy] = this.centre(patch);
    return element("circle", { cx, cy, r: radius * Math.min(this.across, this.down), class: name });
  }

  frame(patch, name, inset) {
    const [x, y] = this.corner(patch);
    const [dx, dy] = [inset * this.across, inset * this.down];
    return element("rect", {
      x: x + dx, y: y + dy, width: this.across - 2 * dx, height: this.down - 2 * dy, class: name,
    });
  }

  // The border around all patches of one group.
  outline(held, members, name) {
    const { width, height } = this.story;
    let path = "";
    for (const patch of members) {
      const [x, y] = this.corner(patch);
      const [right, below] = [x + this.across, y + this.down];
      const column = patch % width;
      const row = Math.floor(patch / width);
      const other = (inside, step) => !inside || held[patch + step] !== held[patch];
      if (other(row > 0, -width)) path += `M${x} ${y}H${right}`;
      if (other(row < height - 1, width)) path += `M${x} ${below}H${right}`;
      if (other(column > 0, -1)) path += `M${x} ${y}V${below}`;
      if (other(column < width - 1, 1)) path += `M${right} ${y}V${below}`;
    }
    return element("path", { d: path, class: name });
  }

  // From source to target, as wide as the share that moved, with a casing that shows on every colour.
  arrow({ source, target, share }) {
    const unit = Math.min(this.across, this.down);
    const [x1, y1] = this.centre(source);
    const [x2, y2] = this.centre(target);
    const length = Math.hypot(x2 - x1, y2 - y1);
    const [ux, uy] = [(x2 - x1) / length, (y2 - y1) / length];
    const wide = unit * (0.05 + 0.13 * share);
    const head = unit * (0.2 + 0.14 * share);
    const [tx, ty] = [x2 - ux * unit * 0.14, y2 - uy * unit * 0.14];
    const [bx, by] = [tx - ux * head, ty - uy * head];
    const corners = [
      [x1 - uy * wide * 0.5, y1 + ux * wide * 0.5], [bx - uy * wide * 0.5, by + ux * wide * 0.5],
      [bx - uy * head * 0.55, by + ux * head * 0.55], [tx, ty],
      [bx + uy * head * 0.55, by - ux * head * 0.55], [bx + uy * wide * 0.5, by - ux * wide * 0.5],
      [x1 + uy * wide * 0.5, y1 - ux * wide * 0.5],
    ];
    const d = `M${corners.map((corner) => corner.map((value) => value.toFixed(2)).join(" ")).join("L")}Z`;
    return [element("path", { d, class: "way" })];
  }

  label(patch, share) {
    const [x, y] = this.centre(patch);
    const size = Math.max(0.32 * Math.min(this.across, this.down), this.story.image.width / 55);
    const made = element("text", { x, y: y + 0.36 * size, "font-size": size, class: "percent" });
    made.textContent = `${Math.round(100 * share)}%`;
    return made;
  }
}

function patterns(unit) {
  const step = unit / 3;
  const hatch = element("pattern", { id: "hatch", width: step, height: step, patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)" });
  hatch.append(
    element("rect", { width: step, height: step, class: "hatch-ground" }),
    element("rect", { width: step / 5, height: step, class: "hatch-line" }),
  );
  return element("defs", {}, hatch);
}
