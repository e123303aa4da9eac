"use strict";
/* What the page shows. All of it follows from `state`, which is also what stands behind # in the address. */

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
data.questions.unshift({
  set: "README",
  question:
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. Ben has 7 apples. Ben buys 9 more. " +
    "How many have Ava and Ben together?",
  chain: "<<12*3=36>> <<36%8=4>> <<7+9=16>> <<4+16=20>>",
  answer: "20",
});

// "" means: the run's own, or all of it. sel: L3 is the lower row's third step, W5 the upper row's fifth.
const DEFAULTS = {
  q: data.questions[0].question, model: "", k: "", c: "", cut: "", shown: "", sel: "L1", e: "", all: "", seed: "1", rest: "anew",
  donor: "", view: "think", layer: "1", head: "0", at: "", chain: "", r: "2", mask: "induction", tour: "", stop: "1",
};
let state = { ...DEFAULTS }, runs = [], words = null, now = null;
const memory = new Map(); // results of unchanged chains

const safe = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const percent = (p) => (p >= 0.995 ? "1.0" : p.toFixed(2).slice(1));
const clamp = (value, low, high, other) => (/^\d+$/.test(value) ? Math.min(Math.max(+value, low), high) : other);
const norm = (z) => Math.sqrt(z.reduce((sum, v) => sum + v * v, 0));

// ---------------------------------------------------------------- state <-> address

function readAddress() {
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const known = Object.entries(asked).filter(([key]) => key in DEFAULTS);
  state = { ...DEFAULTS, ...Object.fromEntries(known) };
}

function writeAddress() {
  const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  const hash = "#" + new URLSearchParams(changed);
  if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
}

/* Changes of single steps: "3-noise-1_5-mix-267x50-283x50" and back. */
function edits() {
  const found = {}, vocabulary = Math.min(...runs.map((run) => run.model.config.vocab_size));
  for (const part of state.e.split("_")) {
    const [n, kind, ...rest] = part.split("-");
    if (!/^\d+$/.test(n) || !["noise", "top", "swap", "mix"].includes(kind)) continue;
    const parts = rest.map((r) => r.split("x").map(Number)).filter(([id, w]) => id >= 0 && id < vocabulary && w >= 0);
    if (kind !== "mix" || parts.length) found[n] = { kind, seed: +rest[0] || 1, parts };
  }
  return found;
}

function setEdit(n, kind, rest = "") {
  const parts = state.e.split("_").filter((part) => part && part.split("-")[0] !== String(n));
  if (kind) parts.push(`${n}-${kind}${rest && "-" + rest}`);
  state.e = parts.join("_");
}

// ---------------------------------------------------------------- thinking

function settings() {
  const run = runs.find((r) => r.id === state.model) || runs.find((r) => r !== words) || runs[0];
  const k = clamp(state.k, 1, 40, run.k), speed = clamp(state.c, 1, run.c_max || 1, run.speed);
  return { run, k, speed, cut: clamp(state.cut, 0, run.max_chain, run.max_chain), edits: edits() };
}

/* As sample.py says it. */
function fault(run, question) {
  if (!strip(question)) return "the question is empty";
  const n = run.prompt(question).length, { context } = run.model.config;
  if (n <= run.room) return "";
  return `a question of ${n} tokens leaves no room to think: at most ${run.room} fit in a context of ${context}`;
}

function unchanged(run, question, k, speed) {
  const key = JSON.stringify([run.id, question, k, speed]);
  if (!memory.has(key)) {
    if (memory.size > 60) memory.clear();
    const start = performance.now();
    memory.set(key, (run.last = run.solve(question, { k, speed })));
    run.last.time = performance.now() - start;
  }
  return memory.get(key);
}

/* A random direction; the seed decides which. */
function noise(z, seed) {
  let a = seed * 0x9e3779b1;
  const uniform = () => { // mulberry32
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const x = z.map(() => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
  const scale = norm(z) / norm(x);
  return x.map((v) => v * scale);
}

/* The tokens whose embeddings are nearest to z, by cosine: [id, cosine], the nearest first. */
function nearest(run, z, count) {
  const C = z.length, { table } = run.model, found = [];
  for (let id = 0; id < table.length / C; id++) {
    const e = table.subarray(id * C, (id + 1) * C);
    if (!run.tok.never.includes(id)) found.push([id, e.reduce((sum, v, i) => sum + v * z[i], 0) / (norm(e) * norm(z))]);
  }
  return found.sort((a, b) => b[1] - a[1]).slice(0, count);
}

function likeliest(run, step) {
  return run.method === "colar" ? nearest(run, step.own, 1)[0][0] : argmax(step.logits);
}

/* What is fed instead of a step's own latent. */
function replacement(run, edit, n, step, donor) {
  const model = run.model;
  if (edit.kind === "noise") return noise(step.own, edit.seed * 1000 + n);
  if (edit.kind === "top") return model.embed([likeliest(run, step)]);
  if (edit.kind === "swap") return donor.steps.length ? donor.steps[Math.min(n, donor.steps.length - 1)].feed : null;
  const total = edit.parts.reduce((sum, p) => sum + p[1], 0) || 1;
  return mix(model, edit.parts.map((p) => p[0]), edit.parts.map((p) => p[1] / total));
}

/* Another question, with a chain as long where there is one. */
function donorIndex(length, run) {
  if (/^\d+$/.test(state.donor) && data.questions[state.donor]) return +state.donor;
  const off = (e) => Math.abs(run.tok.encodeChain(e.chain).length - length);
  const gold = data.questions.find((e) => e.question === state.q)?.answer;
  const others = data.questions.map((e, i) => [off(e), i]).filter(([, i]) => {
    return data.questions[i].question !== state.q && data.questions[i].answer !== gold;
  });
  return others.sort((a, b) => a[0] - b[0] || a[1] - b[1])[0][1];
}

function compute() {
  const { run, k, speed, cut, edits } = settings();
  const wrong = fault(run, state.q) || (words ? fault(words, state.q) : "");
  $("error").textContent = wrong && `error: ${wrong}`;
  if (wrong) return (now = null);
  const own = unchanged(run, state.q, k, speed);
  const upper = words && unchanged(words, state.q, words.k, words.speed);
  const index = donorIndex(upper ? upper.steps.length : own.steps.length * run.ratio, run);
  const edited = Object.keys(edits).length > 0;
  const swaps = state.all === "swap" || Object.values(edits).some((e) => e.kind === "swap");
  const donor = swaps ? unchanged(run, data.questions[index].question, k, speed) : null;
  const changes = { k, speed, cut }, fed = {}; // fed: how the changed steps were changed
  if (["noise", "top", "swap"].includes(state.all)) {
    const whole = { kind: state.all, seed: +state.seed || 1 };
    const from = state.all === "swap" ? donor.steps : own.steps;
    changes.given = from.slice(0, cut).map((step, n) => replacement(run, whole, n, step, donor));
    from.forEach((step, n) => (fed[n] = whole));
  } else if (edited && state.rest === "kept") {
    changes.given = own.steps.slice(0, cut).map((step, n) => {
      if (edits[n + 1]) fed[n] = edits[n + 1];
      return edits[n + 1] ? replacement(run, edits[n + 1], n, step, donor) || step.own : step.own;
    });
  } else if (edited) {
    changes.replace = (n, own, logits) => {
      if (!edits[n + 1]) return null;
      fed[n] = edits[n + 1];
      return replacement(run, edits[n + 1], n, { own, logits }, donor);
    };
  }
  const changed = edited || state.all || cut < own.steps.length;
  // Attention is read from the cache, where the last chain stands: it may be that of an earlier change.
  const lower = !changed && run.last === own ? own : (run.last = run.solve(state.q, changes));
  now = { run, k, speed, cut, upper, own, lower, donor, index, edits, fed, changed };
}

// ---------------------------------------------------------------- the rows of steps

/* What a column shows: the model's distribution, or what was fed instead. */
function content(run, step, n, fed, donor, count) {
  const names = (ids, values) => ids.map((id, i) => [run.tok.name(id), values[i]]);
  const best = (probs) => {
    const ids = topK(probs, count).ids.filter((id, i) => !i || probs[id] >= 0.005);
    return names(ids, ids.map((id) => probs[id]));
  };
  if (!fed) return { label: "", bars: best(step.probs) };
  if (fed.kind === "noise") return { label: "✎ noise", bars: [] };
  if (fed.kind === "top") return { label: "✎ token", bars: names([likeliest(run, step)], [1]) };
  if (fed.kind === "swap") {
    return { label: "✎ other", bars: best(donor.steps[Math.min(n, donor.steps.length - 1)].probs) };
  }
  const total = fed.parts.reduce((sum, p) => sum + p[1], 0) || 1;
  const parts = [...fed.parts].sort((a, b) => b[1] - a[1]).slice(0, count);
  return { label: "✎ mixed", bars: names(parts.map((p) => p[0]), parts.map((p) => p[1] / total)) };
}

const bar = ([name, p], numbers = true) => {
  const number = numbers ? `<span class="n">${percent(p)}</span>` : "";
  return `<span class="bar" style="--p:${(100 * p).toFixed(1)}%"><span class="t">${safe(name)}</span>${number}</span>`;
};

/* The answer of a question that is in the list is known. */
function verdict(answer) {
  const gold = data.questions.find((e) => e.question === strip(state.q))?.answer;
  if (gold === undefined) return "";
  return answer.trim() === gold ? " ✓ right" : ` ✗ wrong, it is ${gold}`;
}

const ending = (result, forced) => (result.closed && !forced ? "collapse" : "closed by force");

function entropyLine(points, width, full) {
  if (!points.length) return `<svg width="${width}" height="46" aria-hidden="true"></svg>`;
  const at = points.map((h, i) => [(i + 0.5) * width, 40 - (32 * h) / full]);
  const path = at.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const dots = at.map(([x, y]) => `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="2.6"/>`).join("");
  return `<svg width="${width * points.length}" height="46" aria-hidden="true"><path d="${path}"/>${dots}</svg>`;
}

/* One row. width: of a step, in pixels; count: tokens in it; shown: how many steps are. */
function lane(letter, run, result, { width, count, shown, fed = {}, donor, forced }) {
  const n = result.steps.length, visible = result.steps.slice(0, shown), ended = shown > n;
  const all = ended && result.end ? [...visible, result.end] : visible;
  const full = Math.max(1, ...result.steps.map((s) => s.entropy));
  const what = run.method === "cot_sft" ? "tokens" : "latents";
  const items = visible.map((step, i) => {
    const { label, bars } = content(run, step, i, fed[i], donor, count), id = `${letter}${i + 1}`;
    const spoken = `${what === "tokens" ? "Token" : "Latent"} ${i + 1}${label && ", replaced by " + label.slice(2)}: ` +
      bars.map(([name, p]) => `${name} ${Math.round(100 * p)} %`).join(", ") + `; entropy ${step.entropy.toFixed(2)}`;
    return `<li><button type="button" id="${id}" class="step${label ? " changed" : ""}${width > 60 ? "" : " narrow"}" style="width:${width}px"
      aria-pressed="${state.sel === id}" aria-label="${safe(spoken)}" title="${safe(spoken)}"><span class="no">${i + 1}
      ${width > 60 ? label || step.entropy.toFixed(2) : label && "✎"}</span>${bars.map((b) => bar(b, width > 60)).join("")}</button></li>`;
  });
  const answer = visibleText(result.answer);
  if (ended) {
    items.push(`<li class="end"><span class="no">${ending(result, forced)}</span>
      ${bar(["</think>", result.end.probs[run.tok.endThink]])}<span class="result">${safe(answer)}</span></li>`);
  }
  const told = ended ? `answer <b>${safe(answer)}</b>${safe(verdict(result.answer))}` : "…";
  const was = ended && fed && letter === "L" && now.changed && now.own.answer !== result.answer
    ? `<span class="quiet">before the change: ${safe(visibleText(now.own.answer))}</span>` : "";
  return `<div class="lanehead"><h2>${safe(run.title)}</h2><span>#L ${Math.min(shown, n)} ${what}${ended ? "" : " so far"}</span>
    <span class="answer">${told}</span>${was}<span class="quiet">line: entropy, 0 to ${full.toFixed(1)} nats</span></div>
    <div class="stave">${entropyLine(all.map((s) => s.entropy), width, full)}<ol class="steps">${items.join("")}</ol></div>`;
}

const visibleText = (text) => strip(text).replace(/[\x00-\x1f\x7f-\x9f]/g, "�") || "(none)";

function showLanes() {
  if (!now) return ($("lanes").innerHTML = "");
  const { run, upper, lower, fed, donor, cut } = now, r = run.method === "colar" ? now.speed : run.ratio;
  const unit = run.method === "cot_sft" ? 40 : Math.max(40, 80 / r), most = 1 + Math.max(upper ? upper.steps.length : 0, lower.steps.length);
  const shown = clamp(state.shown, 0, most, most), forced = lower.steps.length >= cut || state.all !== "" || state.rest === "kept";
  const rows = upper ? lane("W", words, upper, { width: unit, count: 3, shown }) : "";
  const below = { width: unit * r, count: 5, shown, fed, donor, forced: forced && now.changed };
  keepFocus(() => {
    const left = $("lanes").querySelector(".scroll")?.scrollLeft || 0;
    $("lanes").innerHTML = `<div class="lanes scroll"><div class="score">${rows}${lane("L", run, lower, below)}</div></div>`;
    $("lanes").querySelector(".scroll").scrollLeft = left;
  });
  $("shown-out").textContent = shown === most ? "all steps" : `${shown} of ${most} steps`;
  $("first").disabled = $("back").disabled = shown === 0;
  $("next").disabled = $("last").disabled = shown === most;
  now.shown = shown;
  now.most = most;
}

function keepFocus(change) {
  const id = document.activeElement?.id;
  change();
  if (id && document.activeElement?.id !== id) $(id)?.focus({ preventScroll: true });
}

// ---------------------------------------------------------------- the chosen step

function chosen() {
  const [, letter, n] = /^([LW])(\d+)$/.exec(state.sel) || [0, "L", 1];
  const result = letter === "W" ? now.upper : now.lower, run = letter === "W" ? words : now.run;
  if (!result || !result.steps.length) return null;
  const at = Math.min(Math.max(+n, 1), result.steps.length);
  return { letter, n: at, run, result, step: result.steps[at - 1] };
}

function showDetail() {
  const c = now && chosen();
  $("detail").hidden = !c;
  if (!c) return;
  const { letter, n, run, result, step } = c, { ids } = topK(step.probs, 8), word = run.method === "cot_sft";
  const edit = letter === "L" ? now.edits[n] : null, fed = letter === "L" ? now.fed[n - 1] : null;
  const bars = ids.map((id) => bar([run.tok.name(id), step.probs[id]])).join("");
  const near = nearest(run, step.feed, 4).map(([id, cos]) => `<code>${safe(run.tok.name(id))}</code> ${cos.toFixed(2)}`).join(", ");
  const what = word ? "Token" : "Latent";
  let side = `<h3>Interfere</h3><p>The upper row is there to compare with. To change words, let the lower row think as
    ${safe(run.title)}.</p>`;
  if (letter === "L") {
    const button = (kind, text) =>
      `<button type="button" id="do-${kind}" data-kind="${kind}" aria-pressed="${(state.all ? "" : edit?.kind || "keep") === kind}">${text}</button>`;
    side = `<h3>Feed instead of ${what.toLowerCase()} ${n}</h3><div class="buttons">${button("keep", "what it thought")}
      ${button("noise", edit?.kind === "noise" ? "other noise" : "noise of the same norm")}
      ${button("top", run.method === "colar" ? "its nearest token" : "its most likely token")}${button("swap", "another question's")}
      ${button("mix", "a mixture")}</div>${edit?.kind === "mix" ? mixture(run, edit) : ""}
      <div class="buttons"><button type="button" id="do-cut">End the chain after this one</button></div>
      ${state.all ? "<p class='quiet'>All latents are replaced at once: see below.</p>" : ""}`;
  }
  keepFocus(() => {
    $("detail").innerHTML = `<div><h2>${what} ${n} of ${result.steps.length}</h2>
      <p class="quiet">${fed ? "What the model would have thought here:" : "The most likely next tokens:"} entropy
      ${step.entropy.toFixed(2)} nats</p>${bars}</div><div>${side}<p class="quiet">What is fed has the norm
      ${norm(step.feed).toFixed(2)}; nearest embeddings, by cosine: ${near}.</p></div>`;
  });
}

function mixture(run, edit) {
  const rows = edit.parts.map(([id, w], i) => `<div class="mixrow"><label class="token" for="mix-${i}">${safe(run.tok.name(id))}</label>
    <input type="range" min="0" max="100" value="${Math.min(w, 100)}" id="mix-${i}" data-part="${i}"><output id="mixout-${i}"></output></div>`);
  return `${rows.join("")}<div class="mixadd"><input type="text" id="mix-token" aria-label="A token to add"
    placeholder="a token, as 7"><button type="button" id="mix-add">Add</button></div><p id="mix-error" class="error" role="alert"></p>`;
}

function showShares() {
  const parts = now?.edits[chosen()?.n]?.parts || [], total = parts.reduce((sum, p) => sum + p[1], 0) || 1;
  parts.forEach(([, w], i) => { if ($(`mixout-${i}`)) $(`mixout-${i}`).textContent = percent(w / total); });
}

function setParts(n, parts) {
  setEdit(n, "mix", parts.map(([id, w]) => `${id}x${Math.round(w)}`).join("-"));
}

function interfere(kind) {
  const { n, run, step } = chosen(), edit = now.edits[n];
  state.all = "";
  state.sel = `L${n}`;
  if (kind === "keep") setEdit(n, "");
  else if (kind === "noise") setEdit(n, "noise", String(edit?.kind === "noise" ? edit.seed + 1 : 1));
  else if (kind === "mix" && edit?.kind !== "mix") {
    const { ids } = topK(step.logits, 4);
    setParts(n, ids.map((id) => [id, Math.max(1, 100 * step.probs[id])]));
  } else if (kind !== "mix") setEdit(n, kind);
  update();
}

// ---------------------------------------------------------------- attention

function showAttention() {
  const { run, lower } = now, { n_layer, n_head } = run.model.config, { tok } = run;
  const N = lower.steps.length, P = lower.prompt.length, length = lower.cache.length;
  const places = [
    ...lower.prompt.map((id) => tok.name(id)),
    ...lower.steps.map((s, i) => (run.method === "cot_sft" ? tok.name(s.token) : `z${i + 1}`)),
    "</think>", ...lower.tokens.map((id) => tok.name(id)),
  ].slice(0, length);
  const layer = clamp(state.layer, 1, n_layer, 1), head = clamp(state.head, 0, n_head, 0);
  const at = clamp(state.at, 0, length - 1, P + N);
  const seen = lower.cache.attention[layer - 1][at], S = at + 1, weight = new Float64Array(length);
  for (let h = 0; h < n_head; h++) {
    if (!head || head === h + 1) for (let s = 0; s < S; s++) weight[s] += seen[h * S + s] / (head ? 1 : n_head);
  }
  options("layer", Array.from({ length: n_layer }, (_, i) => [i + 1, i + 1]), layer);
  options("head", [[0, "all, on average"], ...Array.from({ length: n_head }, (_, i) => [i + 1, i + 1])], head);
  const best = [...weight.keys()].sort((a, b) => weight[b] - weight[a]).slice(0, 4), most = weight[best[0]];
  const name = (i) => `<code>${safe(places[i])}</code>`;
  $("looks").innerHTML = `${head ? `Head ${head}` : "The heads"} of layer ${layer}, at ${name(at)} (position ${at}): ` +
    best.filter((i) => weight[i] > 0.01).map((i) => `${name(i)} ${Math.round(100 * weight[i])} %`).join(", ") + ".";
  keepFocus(() => {
    $("sequence").innerHTML = places.map((text, i) => {
      const thought = i >= P && i < P + N, p = (100 * weight[i]) / most, told = i > at ? "later" : `${Math.round(100 * weight[i])} %`;
      const hint = thought && run.method !== "cot_sft" ? ` (${tok.name(lower.steps[i - P].token)})` : "";
      return `<button type="button" id="at-${i}" class="place${i > at ? " unread" : ""}${thought ? " thought" : ""}"
        aria-pressed="${i === at}" aria-label="${safe(`${text}${hint}, position ${i}: ${told}`)}"
        title="${safe(text + hint)}"><i style="--p:${p.toFixed(1)}%"></i>${safe(text)}<small>${i > at ? "" : `${Math.round(100 * weight[i])}%`}</small></button>`;
    }).join("");
  });
}

// ---------------------------------------------------------------- masks

const WHY = {
  induction: [
    "The question is read as usual.",
    "A latent is computed from text alone: it sees no earlier latent.",
    "The chain's text sees all text before it, and no latent.",
    "What closes the chain sees no latent of the encoder either.",
  ],
  supervision: [
    "The question is read as usual.",
    "A latent sees question and latents: the text of the chain does not exist for it, as at inference.",
    "A segment sees its latent alone: what the latent lacks cannot be predicted.",
    "The answer sees question and latents, and no text of the chain.",
  ],
};

function showMasks() {
  const tok = (words || runs[0]).tok, r = clamp(state.r, 1, 6, 2), encoder = state.mask !== "supervision";
  const known = data.questions.find((e) => e.question === strip(state.q))?.chain;
  const text = state.chain || known || (now?.upper ? visibleText(tok.decode(now.upper.steps.map((s) => s.token))) : "");
  if (document.activeElement !== $("chain")) $("chain").value = text;
  $("r").value = r;
  $("r-out").textContent = r;
  $("mask").value = encoder ? "induction" : "supervision";
  const chain = tok.encodeChain(strip(text)), wrong =
    chain.length > 40 ? `a chain of ${chain.length} tokens: at most 40 can be drawn` : chain.length ? "" : "the chain is empty";
  $("mask-error").textContent = wrong && `error: ${wrong}`;
  $("may").textContent = "";
  if (wrong) return ($("grid").innerHTML = "");
  const rows = layout(chain.map((id) => tok.name(id)), r, encoder), may = (encoder ? induction : supervision)(rows);
  const places = encoder ? rows.map((_, i) => i) : dualTrack(rows), mark = ([, kind]) => (kind === LATENT ? " class='latent'" : "");
  const head = rows.map((row) => `<th scope="col"${mark(row)}>${safe(row[0])}</th>`).join("");
  const body = rows.map((row, i) => {
    const cells = rows.map((_, j) => (may(i, j) ? "<td class='may'>×</td>" : `<td>${j < i ? "·" : ""}</td>`)).join("");
    return `<tr data-row="${i}"><th>${places[i]}</th><th scope="row"${mark(row)}><button type="button" id="row-${i}">${safe(row[0])}</button></th>${cells}</tr>`;
  });
  keepFocus(() => {
    $("grid").innerHTML = `<table class="mask" aria-label="Who may attend to whom"><thead><tr><th scope="col">position</th><th></th>${head}</tr></thead><tbody>${body.join("")}</tbody></table>`;
  });
  const point = (i) => {
    document.querySelectorAll(".mask tr.now").forEach((tr) => tr.classList.remove("now"));
    document.querySelector(`.mask tr[data-row="${i}"]`).classList.add("now");
    const list = (ok) => rows.flatMap((row, j) => (j < i && may(i, j) === ok ? [`<code>${safe(row[0])}</code>`] : [])).join(" ");
    const hidden = list(false);
    $("may").innerHTML = `<code>${safe(rows[i][0])}</code>, at position ${places[i]}, may attend to ${list(true) || "nothing before it"}
      and to itself${hidden && `; not to ${hidden}`}. ${WHY[encoder ? "induction" : "supervision"][rows[i][1]]}`;
  };
  $("grid").onmouseover = $("grid").onfocusin = $("grid").onclick = (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row) point(+row.dataset.row);
  };
  if (!$("grid").dataset.listens) $("grid").addEventListener("focusin", (event) => $("grid").onfocusin(event));
  $("grid").dataset.listens = "yes";
  point(rows.findLastIndex((row) => row[1] === LATENT));
}

// ---------------------------------------------------------------- controls

function options(id, list, value) {
  const html = list.map(([v, text]) => `<option value="${safe(v)}">${safe(text)}</option>`).join("");
  if ($(id).dataset.html !== html) $(id).innerHTML = $(id).dataset.html = html;
  $(id).value = value;
}

const short = (text) => (text.length > 88 ? text.slice(0, 86) + "…" : text);

function showControls() {
  const { run, k, speed } = settings();
  if (document.activeElement !== $("question")) $("question").value = state.q;
  const index = data.questions.findIndex((e) => e.question === state.q);
  options("examples", [["", "your own question"], ...data.questions.map((e, i) => [i, `${e.set}: ${short(e.question)}`])],
    index < 0 ? "" : index);
  options("model", runs.map((r) => [r.id, r.title]), run.id);
  $("k-field").hidden = run.method !== "latent_sft";
  $("c-field").hidden = run.method !== "colar";
  $("k").value = k;
  $("k-out").textContent = k === run.k ? `${k} (its own)` : k;
  options("c", Array.from({ length: run.c_max || 1 }, (_, i) => [i + 1, i + 1]), speed);
  const own = now ? now.own.steps.length : run.max_chain, cut = Math.min(now ? now.cut : run.max_chain, own);
  $("cut").max = own;
  $("cut").value = cut;
  $("cut-out").textContent = cut < own ? `${cut} of ${own}` : "its own";
  $("all").value = state.all;
  $("rest").value = state.rest === "kept" ? "kept" : "anew";
  options("donor", data.questions.map((e, i) => [i, `${short(e.question)} (${e.answer})`]), now ? now.index : 0);
  const m = (run.parameters / 1e6).toFixed(2);
  $("size").textContent = `${m} million`;
  const took = (result, what) => (result ? [`in ${what} ${Math.round(result.time)} ms`] : []);
  const latents = now && run !== words ? now.own : null, inWords = now && (now.upper || (run === words ? now.own : null));
  $("time").textContent = [...took(latents, "latents"), ...took(inWords, "words")].join(", ");
  $("announce").textContent = now ? `${run.title}: answer ${visibleText(now.lower.answer)}, ${now.lower.steps.length} steps` : "";
  const views = ["think", "attention", "masks"], view = views.includes(state.view) ? state.view : "think";
  for (const name of views) {
    $(name).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", name === view);
    $(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  return view;
}

/* From the state to the page. */
function update() {
  compute();
  const view = showControls();
  showLanes();
  showDetail();
  showShares();
  if (view === "attention") now ? showAttention() : ($("sequence").innerHTML = $("looks").textContent = "");
  if (view === "masks") showMasks();
  showTour();
  writeAddress();
}

function set(changes) {
  Object.assign(state, changes);
  update();
}

// ---------------------------------------------------------------- guided tours

const at = (n) => now.own.steps[Math.min(n, now.own.steps.length) - 1];
const top2 = (step) => topK(step.probs, 2).ids.map((id) => `<code>${safe(now.run.tok.name(id))}</code>`).join(" and ");
const said = () => `<b>${safe(visibleText(now.lower.answer))}</b>`;
const LONG = data.questions.find((e) => e.set === "mini_long")?.question || data.questions[0].question;
const lesson = (file, title) => `<a href="../notebooks/${file}.ipynb">${title}</a>`;
const TOURS = [
  {
    title: "What a latent is",
    stops: [
      [{ sel: "W1", shown: "6" }, () => `The upper row thinks in words: one token a step, the most likely one, and what else was likely is
        forgotten. The lower row thinks in latents. Both have made six steps. Look at how far they are.`],
      [{ sel: "L1" }, () => `A latent is not one token. It is the average of the embeddings of the most likely tokens, weighted by
        their probabilities, the bars. The first holds ${top2(at(1))}: the two tokens of the chain that stand above it.`],
      [{ sel: "L1", k: "1" }, () => `Now k is 1: each latent is one token only, as a word is. Half of every segment is lost, and the answer is ${said()}.`],
      [{ sel: "L1", e: "mix" }, () => `Or mix a latent yourself. The sliders set the weights of the first latent's tokens,
        and all that follows is thought anew. The answer is ${said()}.`],
      [{ sel: "L1" }, () => `Back to its own: ${now.own.steps.length} latents for ${now.upper ? now.upper.steps.length : "twice as many"} tokens.
        <b>Why can a model read an average of embeddings, which is no token's?</b> ${lesson("04_superposition", "Lesson 4 · One-hot against superposition")} answers.`],
    ],
  },
  {
    title: "The collapse",
    stops: [
      [{ sel: "L99" }, () => `At the dashed line <code>&lt;/think&gt;</code> has become the most likely token: the model closes its
        chain by itself and writes the answer, ${said()}, in ordinary tokens. That is the collapse.`],
      [{ sel: "L99" }, () => `One step before, <code>&lt;/think&gt;</code> had a probability of
        ${(100 * at(99).probs[now.run.tok.endThink]).toFixed(2)} %. The chosen latent is the last, and holds ${top2(at(99))}: the result is in it.`],
      [{ sel: "L99", cut: "-1" }, () => `Here the chain is closed one latent too early. The answer is ${said()}.`],
      [{ sel: "L99", cut: "-3" }, () => `And here three too early, a whole step of the calculation. The answer is ${said()}. Move the
        slider of the chain's length yourself.`],
      [{ sel: "L99", q: LONG }, () => `A longer question has a longer chain: ${now.own.steps.length} latents. Nobody said how many.
        <b>Is the model ever in doubt whether to go on, and what does ending too early cost?</b>
        ${lesson("08_collapse", "Lesson 8 · Decoding and the collapse")} answers.`],
    ],
  },
  {
    title: "Is it used? The swap",
    stops: [
      [{ sel: "L2" }, () => `The chain reads like a calculation. That does not prove that the answer, ${said()}, comes from it: the
        model might have computed it elsewhere. So we interfere.`],
      [{ sel: "L2", all: "noise" }, () => `All latents are now noise, as long as they were. The answer is ${said()}. Weak evidence: the model has
        never read noise, and may break for that reason alone.`],
      [{ sel: "L2", all: "swap" }, () => `Now the latents are those of another question, the one named below the rows, whose answer
        is <b>${safe(visibleText(now.donor.answer))}</b>. The question has stayed as it was. The answer is ${said()}.`],
      [{ sel: "L2", all: "top" }, () => `Each latent is now its most likely token alone. The answer is ${said()}: is the mixture used, or would
        one token do?`],
      [{ sel: "L2", all: "swap", model: words ? words.id : "" }, () => `The control whose result we know: words, swapped in the same way. The answer is ${said()}.
        <b>What do all questions together say?</b> ${lesson("13_interventions", "Lesson 13 · Does the answer come from the latents?")} answers.`],
    ],
  },
];

function visit(tour, stop) {
  const { q, ...changes } = TOURS[tour - 1].stops[stop - 1][0];
  state = { ...DEFAULTS, q: q || DEFAULTS.q, ...changes, tour: String(tour), stop: String(stop) };
  const { run } = settings(), own = unchanged(run, state.q, run.k, run.speed), n = own.steps.length;
  if (state.cut) state.cut = String(Math.max(0, n + +state.cut)); // in steps from the end
  if (state.sel === "L99") state.sel = `L${Math.max(1, state.cut ? +state.cut : n)}`;
  if (state.e) {
    const { ids } = topK(own.steps[0].probs, 3);
    setParts(1, ids.map((id, i) => [id, [60, 30, 10][i]]));
  }
  update();
}

function showTour() {
  const tour = TOURS[state.tour - 1], stop = clamp(state.stop, 1, 5, 1);
  $("tour").hidden = !tour || !now;
  document.querySelectorAll("#tours button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.tour === state.tour));
  if (!tour || !now) return;
  keepFocus(() => {
    $("tour").innerHTML = `<h2>${tour.title} · ${stop} of 5</h2><p>${tour.stops[stop - 1][1]()}</p><div class="buttons">
      <button type="button" id="tour-back"${stop === 1 ? " disabled" : ""}>Back</button>
      ${stop < 5 ? '<button type="button" id="tour-next" class="main">Next</button>' : ""}
      <button type="button" id="tour-end">${stop < 5 ? "Leave the tour" : "Done"}</button></div>`;
  });
}

// ---------------------------------------------------------------- what the reader does

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  const fresh = (q) => set({ q, e: "", cut: "", sel: "L1", at: "", chain: "", donor: "", tour: "" });
  on("ask", "submit", (event) => {
    event.preventDefault();
    fresh($("question").value);
  });
  on("question", "keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), fresh($("question").value);
  });
  on("examples", "change", (event) => {
    if (event.target.value === "") return $("question").focus();
    $("question").value = data.questions[event.target.value].question;
    fresh($("question").value);
  });
  on("model", "change", (event) => set({ model: event.target.value, e: "", cut: "", k: "", c: "", at: "" }));
  for (const id of ["c", "all", "rest", "donor", "layer", "head", "mask"]) {
    on(id, "change", (event) => set({ [id]: event.target.value, ...(id === "all" ? { e: "" } : {}) }));
  }
  for (const id of ["k", "r"]) on(id, "input", (event) => set({ [id]: event.target.value }));
  on("cut", "input", (event) => set({ cut: event.target.value === event.target.max ? "" : event.target.value }));
  on("chain", "input", (event) => set({ chain: event.target.value || " " }));
  on("first", "click", () => set({ shown: "0" }));
  on("back", "click", () => set({ shown: String(Math.max(0, now.shown - 1)) }));
  on("next", "click", () => set({ shown: now.shown + 1 >= now.most ? "" : String(now.shown + 1) }));
  on("last", "click", () => set({ shown: "" }));
  on("reset", "click", () => set({ e: "", all: "", cut: "", k: "", c: "", rest: "anew" }));

  on("lanes", "click", (event) => {
    const step = event.target.closest(".step");
    if (step) set({ sel: step.id });
  });
  on("sequence", "click", (event) => {
    const place = event.target.closest(".place");
    if (place) set({ at: place.id.slice(3) });
  });
  document.addEventListener("keydown", (event) => { // left and right go along a row, up and down through a table
    const [, kind, n] = /^(L|W|at-|row-)(\d+)$/.exec(document.activeElement?.id || "") || [];
    const by = { [kind === "row-" ? "ArrowUp" : "ArrowLeft"]: -1, [kind === "row-" ? "ArrowDown" : "ArrowRight"]: 1 }[event.key];
    if (!by || !kind || !$(kind + (+n + by))) return;
    event.preventDefault();
    $(kind + (+n + by)).focus();
  });
  on("detail", "click", (event) => {
    const { id, dataset } = event.target;
    if (dataset.kind) interfere(dataset.kind);
    if (id === "do-cut") set({ cut: String(chosen().n), all: "" });
    if (id === "mix-add") addToken();
  });
  on("detail", "keydown", (event) => {
    if (event.target.id === "mix-token" && event.key === "Enter") addToken();
  });
  on("detail", "input", (event) => {
    const part = event.target.dataset.part, c = chosen();
    if (part === undefined) return;
    const parts = now.edits[c.n].parts.map(([id, w], i) => [id, i === +part ? +event.target.value : w]);
    setParts(c.n, parts);
    compute(); // the sliders stay as they are, under the reader's finger
    showLanes();
    showShares();
    writeAddress();
  });
  on("detail", "change", (event) => { if (event.target.dataset.part !== undefined) update(); });

  document.querySelectorAll("[role=tab]").forEach((tab, i, tabs) => {
    tab.addEventListener("click", () => set({ view: tab.dataset.view }));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) tabs[(i + by + 3) % 3].focus(), tabs[(i + by + 3) % 3].click();
    });
  });
  $("tours").innerHTML = "<span>Guided tours:</span>" + TOURS.map((tour, i) => {
    return `<button type="button" data-tour="${i + 1}" aria-pressed="false">${tour.title}</button>`;
  }).join("");
  on("tours", "click", (event) => event.target.dataset.tour && visit(+event.target.dataset.tour, 1));
  on("tour", "click", (event) => {
    const by = { "tour-back": -1, "tour-next": 1 }[event.target.id];
    if (by) visit(+state.tour, +state.stop + by);
    if (event.target.id === "tour-end") set({ tour: "", stop: "1" });
  });
  addEventListener("hashchange", () => {
    readAddress();
    update();
  });
}

function addToken() {
  const c = chosen(), text = $("mix-token").value, ids = c.run.tok.encode(text), { parts } = now.edits[c.n];
  let wrong = ids.length === 1 ? "" : `“${text}” is ${ids.length} tokens of this vocabulary, not one`;
  if (parts.some(([id]) => id === ids[0])) wrong = wrong || "it is in the mixture already";
  if (parts.length >= 8) wrong = wrong || "eight tokens are enough";
  if (wrong) return ($("mix-error").textContent = `error: ${wrong}`);
  setParts(c.n, [...parts, [ids[0], 50]]);
  update();
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start() {
  const packed = document.querySelectorAll('script[type="text/plain"]');
  runs = await Promise.all(data.runs.map(async (about, i) => {
    const run = new Run(about, weightsOf(await inflate(bytesOf(packed[i].textContent)), about.shapes));
    const same = data.runs.slice(0, i).filter((r) => r.method === about.method).length;
    run.id = about.method + (same ? same + 1 : ""); // as in the address: latent_sft, latent_sft2
    return run;
  }));
  words = runs.find((r) => r.method === "cot_sft") || null;
  readAddress();
  listen();
  update();
}

start().catch((error) => {
  $("error").textContent = `error: this browser cannot show the page (${error.message}). A current Chrome, Firefox or Safari can.`;
  throw error;
});
