"use strict";
/* minilatent in plain JavaScript: read it beside tokenizer.py, model.py, latent.py, methods/colar.py and decode.py,
   in this order. It needs no browser: tests run it in a bare engine and compare it with PyTorch.

   Symbols: T positions, S positions in the cache, C width, H heads, G key/value heads, D head size, V vocabulary.
   A matrix is a flat array, row after row. Weights are 16-bit numbers (bfloat16), sums are in double precision. */

// ---------------------------------------------------------------- weights: text -> bytes -> numbers

/* 7 bits a character. (The three characters that HTML would change have another bit on top.) */
function bytesOf(text) {
  const bytes = new Uint8Array(Math.floor((text.length * 7) / 8));
  for (let i = 0, bits = 0, value = 0, n = 0; i < text.length; i++) {
    value = ((value << 7) | (text.charCodeAt(i) & 127)) & 0x7fff;
    bits += 7;
    if (bits >= 8) bytes[n++] = value >> (bits -= 8);
  }
  return bytes;
}

/* All exponents come first, then all signs with their mantissas: so they compress best. */
function weightsOf(bytes, shapes) {
  const count = bytes.length / 2, all = new Float32Array(count), bits = new Uint32Array(all.buffer);
  for (let i = 0; i < count; i++) {
    const exponent = bytes[i], rest = bytes[count + i];
    bits[i] = ((rest & 128) << 24) | (exponent << 23) | ((rest & 127) << 16);
  }
  const weights = {};
  let at = 0;
  for (const [name, size] of shapes) weights[name] = all.subarray(at, (at += size));
  return weights;
}

// ---------------------------------------------------------------- tokenizer.py

/* Text as a string of bytes, one character each, and back; what is no UTF-8 becomes U+FFFD. */
const toBytes = (text) => unescape(encodeURIComponent(text.replace(/\p{Surrogate}/gu, "\ufffd")));
const SEQUENCE = new RegExp(
  "[\x00-\x7f]+|[\xc2-\xdf][\x80-\xbf]|(?:\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f])[\x80-\xbf]?" +
  "|(?:\xf0[\x90-\xbf]|[\xf1-\xf3][\x80-\xbf]|\xf4[\x80-\x8f])[\x80-\xbf]{0,2}|[\x80-\xff]", "g");
const toText = (bytes) => bytes.replace(SEQUENCE, (s) => {
  try { return decodeURIComponent(escape(s)); } catch { return "\ufffd"; }
});

const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+"; // Python's
const strip = (text) => text.replace(new RegExp(`^${SPACE}|${SPACE}$`, "g"), "");

class Tokenizer {
  constructor({ pattern, ranks, markers, opening }) {
    Object.assign(this, { pattern, ranks, markers, opening });
    this.ids = new Map(ranks.map((bytes, i) => [bytes, i])); // an id is the rank of its merge
    this.names = Object.fromEntries(Object.entries(markers).map(([name, i]) => [i, name]));
    this.think = markers["<think>"];
    this.endThink = markers["</think>"];
    this.eos = markers["<eos>"];
    this.never = [markers["<latent>"], markers["<pad>"]];
  }

  /* Cut into pieces; inside each, merge the neighbours of the lowest rank until none is left. */
  encode(text) {
    const ids = [];
    for (const [piece] of text.matchAll(new RegExp(this.pattern, "gu"))) {
      let parts = this.ids.has(toBytes(piece)) ? [toBytes(piece)] : toBytes(piece).split("");
      for (;;) {
        let best = Infinity, at = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = this.ids.get(parts[i] + parts[i + 1]) ?? Infinity;
          if (rank < best) [best, at] = [rank, i];
        }
        if (at < 0) break;
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
      ids.push(...parts.map((part) => this.ids.get(part)));
    }
    return ids;
  }

  encodeChain(text) {
    return this.encode(text.startsWith(this.opening) ? text.slice(this.opening.length) : text);
  }

  decode(ids) {
    return toText(ids.map((i) => (i in this.names ? "" : this.ranks[i])).join(""));
  }

  /* How a token is shown: spaces as dots, control characters by their codes. */
  name(i) {
    const text = this.names[i] ?? toText(this.ranks[i]).replaceAll(" ", "·").replaceAll("\n", "⏎");
    return text.replace(/[\x00-\x1f\x7f-\xa0]/g, (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0"));
  }
}

// ---------------------------------------------------------------- model.py

/* x (T, I) times the transpose of W (O, I), as nn.Linear has it -> (T, O). Two rows and four outputs at a time:
   sums that do not wait for each other. At an edge the last row or output is done again. */
function linear(x, W, I, bias) {
  const T = x.length / I, O = W.length / I, y = new Float64Array(T * O);
  for (let o = 0; o < O; o += 4) {
    const o1 = Math.min(o + 1, O - 1), o2 = Math.min(o + 2, O - 1), o3 = Math.min(o + 3, O - 1);
    const w = o * I, w1 = o1 * I, w2 = o2 * I, w3 = o3 * I;
    for (let t = 0; t < T; t += 2) {
      const t1 = Math.min(t + 1, T - 1), p = t * I, p1 = t1 * I;
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      for (let i = 0; i < I; i++) {
        const m = x[p + i], n = x[p1 + i], j = W[w + i], k = W[w1 + i], l = W[w2 + i], r = W[w3 + i];
        a += j * m, b += k * m, c += l * m, d += r * m;
        e += j * n, f += k * n, g += l * n, h += r * n;
      }
      const at = t * O, at1 = t1 * O;
      y[at + o] = a, y[at + o1] = b, y[at + o2] = c, y[at + o3] = d;
      y[at1 + o] = e, y[at1 + o1] = f, y[at1 + o2] = g, y[at1 + o3] = h;
    }
  }
  if (bias) for (let i = 0; i < y.length; i++) y[i] += bias[i % O];
  return y;
}

/* x / √(mean x² + ε) · weight, for every run of as many numbers as there are weights. */
function rmsNorm(x, weight, eps) {
  const n = weight.length, y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += x[at + i] * x[at + i];
    const scale = 1 / Math.sqrt(sum / n + eps);
    for (let i = 0; i < n; i++) y[at + i] = x[at + i] * scale * weight[i];
  }
  return y;
}

/* Rotary positions: turn the pairs (x_i, x_{i+D/2}) of every head by position · θ^(-2i/D). x (T, heads, D) */
function rotate(x, first, heads, D, theta) {
  for (let i = 0; i < D / 2; i++) {
    const frequency = theta ** ((-2 * i) / D), T = x.length / (heads * D);
    for (let t = 0; t < T; t++) {
      const cos = Math.cos((first + t) * frequency), sin = Math.sin((first + t) * frequency);
      for (let h = 0, at = t * heads * D + i; h < heads; h++, at += D) {
        const a = x[at], b = x[at + D / 2];
        x[at] = a * cos - b * sin;
        x[at + D / 2] = b * cos + a * sin;
      }
    }
  }
}

const silu = (x) => x / (1 + Math.exp(-x));
const addTo = (x, y) => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };
const argmax = (x) => x.reduce((best, value, i) => (value > x[best] ? i : best), 0);

function softmax(x) {
  const most = x.reduce((a, b) => Math.max(a, b), -Infinity);
  const y = Float64Array.from(x, (v) => Math.exp(v - most)), sum = y.reduce((a, b) => a + b, 0);
  return y.map((v) => v / sum);
}

class Transformer {
  constructor(config, weights) {
    Object.assign(this, { config, weights });
    this.table = weights["embed.weight"]; // (V, C), the language head, too
  }

  embed(ids) {
    const C = this.config.width, x = new Float64Array(ids.length * C);
    ids.forEach((id, t) => x.set(this.table.subarray(id * C, (id + 1) * C), t * C));
    return x;
  }

  /* Keys and values of what was read, and who attended to whom: attention[layer][position] is (H, S). */
  newCache() {
    const { n_layer, n_kv_head, head_dim, context } = this.config;
    const empty = () => Array.from({ length: n_layer }, () => new Float64Array(context * n_kv_head * head_dim));
    return { length: 0, k: empty(), v: empty(), attention: Array.from({ length: n_layer }, () => []) };
  }

  /* Input embeddings (T, C), read behind what the cache holds -> hidden states (T, C). */
  forward(embeds, cache) {
    const { n_layer, n_head: H, n_kv_head: G, head_dim: D, width: C, hidden, rope_theta } = this.config;
    const norm = (x, name) => rmsNorm(x, this.weights[name + ".weight"], this.config.norm_eps);
    const x = Float64Array.from(embeds), first = cache.length;
    for (let layer = 0; layer < n_layer; layer++) {
      const block = `blocks.${layer}.`, W = (name) => this.weights[`${block}${name}.weight`];
      const n = norm(x, block + "norm1");
      let q = linear(n, W("attn.q"), C), k = linear(n, W("attn.k"), C); // (T, H, D), (T, G, D)
      if (this.config.qk_norm) [q, k] = [norm(q, block + "attn.q_norm"), norm(k, block + "attn.k_norm")];
      rotate(q, first, H, D, rope_theta);
      rotate(k, first, G, D, rope_theta);
      cache.k[layer].set(k, first * G * D);
      cache.v[layer].set(linear(n, W("attn.v"), C), first * G * D);
      addTo(x, linear(this.attend(q, cache, layer), W("attn.o"), H * D));
      const m = norm(x, block + "norm2"), gate = linear(m, W("mlp.gate"), C), up = linear(m, W("mlp.up"), C);
      addTo(x, linear(up.map((u, i) => silu(gate[i]) * u), W("mlp.down"), hidden));
    }
    cache.length += x.length / C;
    return norm(x, "norm");
  }

  /* softmax(q kᵀ / √D) v: each position sees itself and all before it. q (T, H, D) -> (T, H, D) */
  attend(q, cache, layer) {
    const { n_head: H, n_kv_head: G, head_dim: D } = this.config, k = cache.k[layer], v = cache.v[layer];
    const y = new Float64Array(q.length), scale = 1 / Math.sqrt(D), T = q.length / (H * D);
    for (let t = 0; t < T; t++) {
      const S = cache.length + t + 1, seen = new Float32Array(H * S);
      for (let h = 0; h < H; h++) {
        const at = (t * H + h) * D, g = Math.floor((h * G) / H), scores = new Float64Array(S); // G < H: shared
        for (let s = 0; s < S; s++) {
          let dot = 0;
          for (let i = 0, j = (s * G + g) * D; i < D; i++) dot += q[at + i] * k[j + i];
          scores[s] = dot * scale;
        }
        const weight = softmax(scores);
        for (let s = 0; s < S; s++) {
          for (let i = 0, j = (s * G + g) * D; i < D; i++) y[at + i] += weight[s] * v[j + i];
        }
        seen.set(weight, h * S);
      }
      cache.attention[layer][cache.length + t] = seen;
    }
    return y;
  }

  /* (C) -> (V) */
  logits(hidden) {
    return linear(hidden, this.table, this.config.width);
  }
}

// ---------------------------------------------------------------- latent.py

/* The k most likely tokens, their logits made probabilities by a softmax over these k: α and ids. */
function topK(logits, k) {
  const ids = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, k);
  return { ids, alpha: softmax(ids.map((i) => logits[i])) };
}

/* z = Σ_j α_j e_j */
function mix(model, ids, alpha) {
  const C = model.config.width, z = new Float64Array(C);
  ids.forEach((id, j) => { for (let i = 0; i < C; i++) z[i] += alpha[j] * model.table[id * C + i]; });
  return z;
}

const entropy = (probs) => -probs.reduce((sum, p) => (p > 0 ? sum + p * Math.log(p) : sum), 0); // in nats

// ---------------------------------------------------------------- methods/colar.py

/* Φ(x), the normal distribution's: GELU is x · Φ(x). (Abramowitz and Stegun 7.1.26, within 1e-7.) */
function normal(x) {
  const t = 1 / (1 + (0.3275911 * Math.abs(x)) / Math.SQRT2);
  const poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  const tail = (poly * Math.exp((-x * x) / 2)) / 2;
  return x < 0 ? tail : 1 - tail;
}

/* The latent head's μ: linear, GELU, linear, layer norm, linear. (C) -> (C) */
function latentHead(hidden, weights) {
  const layer = (x, name) => {
    return linear(x, weights[`latent_head.${name}.weight`], x.length, weights[`latent_head.${name}.bias`]);
  };
  const x = layer(layer(hidden, "body.0").map((v) => v * normal(v)), "body.2");
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const scale = 1 / Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length + 1e-5);
  const gain = weights["latent_head.body.3.weight"], bias = weights["latent_head.body.3.bias"];
  return layer(x.map((v, i) => (v - mean) * scale * gain[i] + bias[i]), "mu");
}

// ---------------------------------------------------------------- masks.py

const [PREFIX, LATENT, TEXT, TAIL] = [0, 1, 2, 3];

/* Stage 1's two sequences of a chain in segments of r tokens: names, kinds and blocks of their positions.
   encoder   Q <think> S_1 L1 S_2 L2 .. </think>        decoder   Q <think> Z1 S_2 Z2 S_3 .. </think> answer */
function layout(chain, r, encoder) {
  const rows = [["Q", PREFIX, 0], ["<think>", PREFIX, 0]], text = (i) => {
    for (const token of chain.slice((i - 1) * r, i * r)) rows.push([token, TEXT, encoder ? i : i - 1]);
  };
  for (let i = 1; i <= Math.ceil(chain.length / r); i++) {
    if (encoder) text(i);
    rows.push([(encoder ? "L" : "Z") + i, LATENT, i]);
    if (!encoder) text(i + 1);
  }
  return [...rows, ["</think>", TAIL, 0], ...(encoder ? [] : [["answer", TAIL, 0]])];
}

/* May position i attend to j? Induction: to no earlier latent. Supervision: the text of a block to that block
   alone, everything else to no text of the chain. */
const induction = (rows) => (i, j) => j <= i && (rows[j][1] !== LATENT || i === j);
const supervision = (rows) => (i, j) => {
  const same = rows[i][2] === rows[j][2] && rows[j][1] !== PREFIX;
  return j <= i && (rows[i][1] === TEXT ? same : rows[j][1] !== TEXT);
};

/* The decoder's positions: text counts on from its latent, but takes no place on the main track. */
function dualTrack(rows) {
  let track = -1, beside = 0;
  return rows.map(([, kind]) => (kind === TEXT ? track + ++beside : ((beside = 0), ++track)));
}

// ---------------------------------------------------------------- decode.py

/* A run: what a run folder holds. about: method, label, settings, the model's configuration, the tokenizer. */
class Run {
  constructor(about, weights) {
    Object.assign(this, about, { weights });
    this.tok = new Tokenizer(about.tokenizer);
    this.model = new Transformer(about.model, weights);
    this.read = { prompt: "" }; // the question that was read last, with its cache
  }

  prompt(question, speed = this.speed) {
    const message = strip(question) + (this.method === "colar" ? ` Let's think ${speed} times faster:` : "");
    return [...this.tok.encode(message), this.tok.think];
  }

  /* The longest prompt that leaves room for a chain and an answer. */
  get room() {
    return this.model.config.context - this.max_chain - this.max_answer - 1;
  }

  /* What is fed next, (C), while it thinks: the three methods differ in this alone. */
  thought(logits, hidden, k) {
    if (this.method === "cot_sft") return this.model.embed([argmax(logits)]);
    if (this.method === "colar") return latentHead(hidden, this.weights).map((v) => v * this.scale);
    const { ids, alpha } = topK(logits, Math.min(k, logits.length - this.tok.never.length));
    return mix(this.model, ids, alpha);
  }

  /* Question -> thinking -> collapse -> answer. Changes, all optional:
       k, speed   instead of the run's own
       cut        the number of steps after which the chain is closed by force
       given      the chain, an array of (C): it is fed as it is, then closed
       replace    (step, z, logits) -> what is fed instead of z */
  solve(question, { k = this.k, speed = this.speed, cut = this.max_chain, given, replace } = {}) {
    const { model, tok } = this, prompt = this.prompt(question, speed);
    if (this.read.prompt !== String(prompt)) {
      const cache = model.newCache();
      this.read = { prompt: String(prompt), cache, hidden: model.forward(model.embed(prompt), cache) };
    }
    const { cache } = this.read, least = this.method === "colar" ? 1 : 0, C = model.config.width;
    cache.length = prompt.length; // what was thought before is forgotten
    let hidden = this.read.hidden.slice(-C), feed;
    const steps = [], answer = [], most = given ? given.length : Math.min(cut, this.max_chain);
    let thinking = true, closed = false, end;
    while (answer.length < this.max_answer && answer.at(-1) !== tok.eos) {
      const logits = model.logits(hidden);
      for (const id of tok.never) logits[id] = -Infinity;
      const token = argmax(logits), probs = thinking ? softmax(logits) : null;
      if (thinking) {
        const step = { token, probs, entropy: entropy(probs), logits };
        closed = token === tok.endThink && steps.length >= least;
        if (given ? steps.length < most : !closed && steps.length < most) {
          const z = given ? given[steps.length] : this.thought(logits, hidden, k);
          step.own = z;
          step.feed = feed = (replace && replace(steps.length, z, logits)) || z;
          steps.push(step);
        } else {
          [thinking, end, feed] = [false, step, model.embed([tok.endThink])]; // the collapse
        }
      } else {
        answer.push(token);
        feed = model.embed([token]);
      }
      if (answer.length < this.max_answer && answer.at(-1) !== tok.eos) hidden = model.forward(feed, cache);
    }
    return { prompt, steps, end, closed, tokens: answer, answer: tok.decode(answer), cache };
  }
}
