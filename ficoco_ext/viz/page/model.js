// What the data says: where every patch is after each layer, and where one patch went. Nothing is drawn here.

const MILLION = 1e6;

// One method at one keep ratio. A move is [source, target] if all of the source went to the target, or
// [source, target, millionths, target, millionths, ...]; the first target holds the source from then on.
// Target -1: dropped.
class Run {
  constructor(record, patches) {
    this.refused = record.refused ?? null;
    this.answer = record.answer ?? null;
    this.steps = record.steps ?? [];
    this.colours = record.colours ?? "";
    this.states = [start(patches)];
    for (const step of this.steps) this.states.push(after(this.states.at(-1), step));
    this.removedIn = new Map();
    for (const step of this.steps) for (const [source] of step.moves) this.removedIn.set(source, step.layer);
  }

  // How many steps have been made after a layer; -1 is before the first layer.
  stepsUntil(layer) {
    return this.steps.filter((step) => step.layer <= layer).length;
  }

  stateAfter(layer) {
    return this.states[this.stepsUntil(layer)];
  }

  // What the step of exactly this layer removed.
  removedBy(layer) {
    return new Set(this.steps.find((step) => step.layer === layer)?.moves.map(([source]) => source));
  }

  // The colour group of a token, or null if it never holds another patch.
  colourOf(token) {
    const letter = this.colours[token];
    return letter === undefined || letter === "." ? null : parseInt(letter, 36);
  }

  // The patch begins as one token's worth of mass in its own position; a source gives each target its weight times all
  // that it holds.
  trace(patch, layer) {
    const mass = new Map([[patch, 1]]);
    const moves = [];
    let dropped = 0;
    for (const step of this.steps.slice(0, this.stepsUntil(layer))) {
      for (const move of step.moves) {
        const held = mass.get(move[0]);
        if (!held) continue;
        mass.delete(move[0]);
        for (const [target, weight] of targetsOf(move)) {
          const share = held * weight;
          moves.push({ layer: step.layer, source: move[0], target, share });
          if (target < 0) dropped += share;
          else mass.set(target, (mass.get(target) ?? 0) + share);
        }
      }
    }
    const shares = [...mass].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    return { shares, moves, dropped };
  }
}

function targetsOf(move) {
  if (move.length === 2) return [[move[1], 1]];
  const found = [];
  for (let at = 1; at < move.length; at += 2) found.push([move[at], move[at + 1] / MILLION]);
  return found;
}

function start(patches) {
  return describe(Array.from({ length: patches }, (_, patch) => patch));
}

function after(state, step) {
  const holder = new Map(step.moves.map((move) => [move[0], move[1]]));
  return describe(state.held.map((at) => (holder.has(at) ? holder.get(at) : at)));
}

// held: for each patch the token that holds it, -1 if none does.
function describe(held) {
  const members = new Map();
  held.forEach((holder, patch) => {
    if (holder < 0) return;
    if (!members.has(holder)) members.set(holder, []);
    members.get(holder).push(patch);
  });
  return { held, members, left: members.size, dropped: held.filter((holder) => holder < 0).length };
}

// All of the page's data: runs[method][ratio], the layers by name, and the grid.
class Story {
  constructor(document_) {
    Object.assign(this, document_);
    [this.height, this.width] = this.grid;
    this.patches = this.height * this.width;
    this.layers = this.sides.flatMap(([side, count]) =>
      Array.from({ length: count }, (_, layer) => (side === "projector" ? side : `${side} layer ${layer}`)),
    );
    this.runs = document_.runs.map((ofMethod) => ofMethod.map((record) => new Run(record, this.patches)));
  }

  layerName(layer) {
    return layer < 0 ? "the start" : this.layers[layer];
  }

  patchName(patch) {
    return `${Math.floor(patch / this.width)},${patch % this.width}`;
  }
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : noun.endsWith("ch") ? "es" : "s"}`;
}
