// What is chosen, and what happens when a person chooses something else.

const story = new Story(JSON.parse(byId("data").textContent));
const picture = new Picture(byId("drawing"), story);
// layer: -1 is before the first one. pinned: by click, tap or keyboard; pointed: under the mouse.
const chosen = { method: 0, ratio: 0, layer: story.layers.length - 1, pinned: story.selected, pointed: null };
const cells = [];

const run = () => story.runs[chosen.method][chosen.ratio];
const selected = () => chosen.pointed ?? chosen.pinned;

function render() {
  const now = run();
  const state = now.stateAfter(chosen.layer);
  const ratio = story.ratios[chosen.ratio];
  showControls(now, state, ratio);
  picture.draw(now, state, now.removedBy(chosen.layer));
  showAnswers(story, now, story.methods[chosen.method], ratio);
  cells.forEach((cell, patch) => {
    const words = inWords(story, now, state, patch, chosen.layer);
    cell.setAttribute("aria-label", `Row ${Math.floor(patch / story.width)}, column ${patch % story.width}. ${words}`);
  });
  renderSelection();
}

function renderSelection() {
  const state = run().stateAfter(chosen.layer);
  const trace = showPatch(story, run(), state, selected(), chosen.layer);
  picture.select(selected(), trace, state);
  const stop = chosen.pinned ?? 0; // the one cell that Tab reaches
  cells.forEach((cell, patch) => {
    cell.tabIndex = patch === stop ? 0 : -1;
    cell.setAttribute("aria-selected", String(patch === chosen.pinned));
  });
}

function showControls(now, state, ratio) {
  const left = now.states.at(-1).left;
  const kept = now.refused ? "not possible" : `${left} of ${counted(story.patches, "patch")} in the end`;
  describeRange("ratio", chosen.ratio, `${ratio}: ${kept}`);
  const where = chosen.layer < 0 ? "before the first layer" : story.layerName(chosen.layer);
  describeRange("layer", chosen.layer + 1, now.refused ? where : `${where}: ${state.left} left`);
  drawStairs(byId("stairs"), story, chosen.method, chosen.ratio, chosen.layer);
  const merged = story.patches - state.left - state.dropped;
  const here = now.removedBy(chosen.layer).size;
  const parts = [`${state.left} left`, `${merged} merged`, `${state.dropped} dropped`];
  byId("counts").textContent = `${where}: ${parts.join(", ")}${here ? `; ${here} removed in this layer` : ""}`;
  byId("counts").hidden = Boolean(now.refused);
  byId("refusal").hidden = !now.refused;
  byId("refusal").textContent = now.refused
    ? `${story.methods[chosen.method]} cannot be run at keep ratio ${ratio}: ${now.refused}`
    : "";
}

function describeRange(id, value, words) {
  byId(id).value = value;
  byId(id).setAttribute("aria-valuetext", words);
  byId(`${id}-value`).textContent = words;
}

function pin(patch) {
  chosen.pinned = patch;
  chosen.pointed = null;
  renderSelection();
}

function makeControls() {
  story.methods.forEach((name, at) => {
    const label = html("label");
    const radio = html("input", "", { type: "radio", name: "method", value: at });
    radio.checked = at === chosen.method;
    radio.addEventListener("change", () => change({ method: at }));
    label.append(radio, html("span", name));
    byId("methods").append(label);
  });
  setUpRange("ratio", story.ratios.length - 1, (value) => change({ ratio: value }));
  setUpRange("layer", story.layers.length, (value) => change({ layer: value - 1 }));
  byId("ratio-first").textContent = `${story.ratios[0]}, most kept`;
  byId("ratio-last").textContent = story.ratios.length > 1 ? `${story.ratios.at(-1)}, fewest kept` : "";
  byId("clear").addEventListener("click", () => pin(null));
}

function setUpRange(id, most, use) {
  const range = byId(id);
  range.max = most;
  range.disabled = most === 0;
  range.addEventListener("input", () => use(Number(range.value)));
}

function change(what) {
  Object.assign(chosen, what);
  render();
}

// A grid of buttons lies over the drawing: they take the mouse, the finger, the keyboard and the screen reader.
function makePatches() {
  const grid = byId("patches");
  grid.setAttribute("aria-rowcount", story.height);
  grid.setAttribute("aria-colcount", story.width);
  byId("frame").style.aspectRatio = `${story.image.width} / ${story.image.height}`;
  for (let row = 0; row < story.height; row++) {
    const line = html("div", "", { role: "row" });
    for (let column = 0; column < story.width; column++) {
      const patch = row * story.width + column;
      const cell = html("button", "", { type: "button", role: "gridcell", "data-patch": patch });
      cell.addEventListener("focus", () => pin(patch));
      cell.addEventListener("click", () => pin(patch));
      cell.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "touch") return; // a finger taps
        chosen.pointed = patch;
        renderSelection();
      });
      cells.push(cell);
      line.append(cell);
    }
    grid.append(line);
  }
  grid.addEventListener("pointerleave", () => {
    chosen.pointed = null;
    renderSelection();
  });
  grid.addEventListener("keydown", moveFocus);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pin(null);
  });
}

function moveFocus(event) {
  const at = cells.indexOf(document.activeElement);
  const row = Math.floor(at / story.width);
  const column = at % story.width;
  const ends = event.ctrlKey ? [0, story.patches - 1] : [row * story.width, (row + 1) * story.width - 1];
  const target = {
    ArrowLeft: column > 0 ? at - 1 : at,
    ArrowRight: column < story.width - 1 ? at + 1 : at,
    ArrowUp: row > 0 ? at - story.width : at,
    ArrowDown: row < story.height - 1 ? at + story.width : at,
    Home: ends[0],
    End: ends[1],
  }[event.key];
  if (at < 0 || target === undefined) return;
  event.preventDefault();
  cells[target].focus();
}

byId("about").textContent = story.about;
if (story.question) {
  byId("question").hidden = false;
  byId("question").querySelector("q").textContent = story.question;
}
makeControls();
makePatches();
showSides(byId("sides"), story);
showLegend(byId("legend"));
render();
