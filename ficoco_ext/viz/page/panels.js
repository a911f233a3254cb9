// Beside the picture: the staircase of the layers, answers, one patch in words and tables, and the legend.

const byId = (id) => document.getElementById(id);

function html(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text; // never markup: questions, answers and names of files are text
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Patches left after each layer as a line; one unit of the drawing is one layer.
function drawStairs(svg, story, method, ratio, layer) {
  const last = story.layers.length;
  const runs = story.runs.map((ofMethod) => ofMethod[ratio]);
  const top = story.patches * 1.06;
  const line = (run) => {
    let path = "";
    for (let at = 0; at <= last; at++) {
      const y = top - run.stateAfter(at - 1).left;
      path += `${at ? "L" : "M"}${Math.max(at - 0.5, 0)} ${y}H${Math.min(at + 0.5, last)}`;
    }
    return path;
  };
  svg.setAttribute("viewBox", `0 0 ${last} ${top}`);
  const marks = [];
  let from = 0;
  for (const [, count] of story.sides.slice(0, -1)) {
    from += count;
    marks.push(element("line", { x1: from + 0.5, x2: from + 0.5, y1: 0, y2: top, class: "border" }));
  }
  const others = runs.filter((run, at) => at !== method && !run.refused);
  const own = runs[method];
  const ground = own.refused ? [] : [element("path", { d: `${line(own)}V${top}H0Z`, class: "ground" })];
  const here = element("line", { x1: layer + 1, x2: layer + 1, y1: 0, y2: top, class: "here" });
  svg.replaceChildren(
    ...ground,
    ...marks,
    ...others.map((run) => element("path", { d: line(run), class: "other-line" })),
    ...(own.refused ? [] : [element("path", { d: line(own), class: "own-line" })]),
    here,
  );
  svg.setAttribute("aria-label", own.refused ? "Not possible" : stairsInWords(story, own));
}

function stairsInWords(story, run) {
  const parts = run.steps.map((step, at) => `${run.states[at + 1].left} after ${story.layerName(step.layer)}`);
  return `Patches left: ${story.patches} at the start, ${parts.join(", ")}`;
}

function showSides(box, story) {
  for (const [side, count] of story.sides) {
    const name = { vision: "vision tower", text: "language model" }[side] ?? side;
    const made = html("span", side === "projector" ? name : `${name}, ${counted(count, "layer")}`);
    made.style.flexGrow = count;
    box.append(made);
  }
}

function showAnswers(story, run, method, ratio) {
  const shown = story.answer !== null && story.answer !== undefined;
  byId("answers").hidden = !shown;
  if (!shown) return;
  for (const id of ["truth", "truth-name"]) byId(id).hidden = !story.truth;
  byId("truth").textContent = story.truth ?? "";
  byId("answer-name").textContent = `With ${method}, keep ratio ${ratio}`;
  fillAnswer(byId("answer-all"), story.answer);
  fillAnswer(byId("answer-reduced"), run.answer);
}

function fillAnswer(box, answer) {
  box.replaceChildren(html("span", answer === null ? "not possible, see above" : answer.text || "(nothing)"));
  if (typeof answer?.right !== "boolean") return;
  const mark = html("span", answer.right ? "✓ right" : "✗ wrong", { class: answer.right ? "right" : "wrong" });
  box.append(" ", mark);
}

// One sentence about a patch, also the name of its cell for screen readers.
function inWords(story, run, state, patch, layer) {
  const holder = state.held[patch];
  if (holder === patch) {
    const members = state.members.get(patch).length;
    return members > 1 ? `Left; holds ${counted(members, "patch")}, itself included.` : "Left, alone.";
  }
  const trace = run.trace(patch, layer);
  const when = story.layerName(run.removedIn.get(patch));
  if (!trace.shares.length) return `Dropped: no token holds it. It left in ${when}.`;
  const [[most, share]] = trace.shares;
  const many = trace.shares.length - 1;
  const more = many ? ` and in ${counted(many, "other token")}` : "";
  const lost = trace.dropped > 0 ? `; ${percent(trace.dropped)} was dropped` : "";
  const gone = holder < 0 ? " Its largest part was dropped." : "";
  return `Merged: left in ${when}; ${percent(share)} of it is in ${story.patchName(most)}${more}${lost}.${gone}`;
}

function showPatch(story, run, state, patch, layer) {
  byId("tables").hidden = patch === null;
  byId("patch-name").textContent = patch === null ? "No patch selected" : `Patch ${story.patchName(patch)}`;
  if (patch === null) {
    byId("story").textContent = "Point at a patch of the picture.";
    return null;
  }
  byId("story").textContent = inWords(story, run, state, patch, layer);
  const trace = run.trace(patch, layer);
  byId("shares").tBodies[0].replaceChildren(
    ...trace.shares.map(([at, share]) => shareRow(story.patchName(at), at, share)),
    ...(trace.dropped > 0 ? [shareRow("dropped", -1, trace.dropped)] : []),
  );
  const rows = trace.moves.map(({ layer: at, source, target, share }) => {
    const made = document.createElement("tr");
    const to = target < 0 ? "dropped" : story.patchName(target);
    const texts = [story.layerName(at), story.patchName(source), to, percent(share)];
    made.append(...texts.map((text) => html("td", text)));
    if (at === layer) made.className = "now";
    return made;
  });
  const none = html("td", "It has not moved.", { colspan: 4 });
  byId("moves").tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
  return trace;
}

function shareRow(name, at, share) {
  const made = document.createElement("tr");
  made.dataset.patch = at;
  made.dataset.share = share;
  const bar = html("td", "", { class: "bar" });
  const fill = html("span");
  fill.style.width = `${100 * share}%`;
  fill.className = at < 0 ? "dropped-bar" : "";
  bar.append(fill);
  made.append(html("td", name), html("td", percent(share)), bar);
  return made;
}

function showLegend(list) {
  const swatch = (...shapes) =>
    element("svg", { viewBox: "0 0 20 20", "aria-hidden": "true", class: "swatch" }, ...shapes);
  const box = (name) => element("rect", { x: 1, y: 1, width: 18, height: 18, class: name });
  const dot = (name, r) => element("circle", { cx: 10, cy: 10, r, class: name });
  const entries = [
    [swatch(box("sky alone")), "Picture visible: the patch is left, alone."],
    [
      swatch(box("group g0"), box("outline"), dot("holder g0", 4)),
      "One colour within one border: patches merged into one token. The dot is the patch that holds them.",
    ],
    [swatch(box("dropped")), "Dark and hatched: dropped, no token holds it."],
    [swatch(box("group g0"), box("removed")), "Dashed frame: removed in this very layer."],
    [swatch(box("sky"), box("casing"), box("selected")), "The selected patch."],
    [
      swatch(element("path", { d: "M1 12V8H11V4L19 10L11 16V12Z", class: "way" })),
      "A part of the selected patch moved there; the wider, the more of it.",
    ],
    [swatch(box("sky"), dot("share", 6)), "A token that holds a part of it; the larger, the more of it."],
  ];
  for (const [drawing, text] of entries) {
    const made = document.createElement("li");
    made.append(drawing, html("span", text));
    list.append(made);
  }
}
