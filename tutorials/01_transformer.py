# %% [markdown]
# # 1 · A transformer in one file
#
# *30 minutes. Needs: PyTorch, and a first acquaintance with the words "attention" and "residual stream".*
#
# Every method of this course is a small change to one loop: a transformer reads vectors and predicts what
# comes next. So we first write that transformer ourselves, in about thirty lines, and check that it computes
# exactly what the package computes. Then we look at the fact that all latent reasoning rests on: **the model
# reads vectors, not tokens**.
#
# ```
#   ids (T,) ──embedding──> x (T, C) ──> block ──> block ── .. ──> norm ──> h (T, C) ──· Eᵀ──> logits (T, V)
#
#   block:   x = x + attention(norm(x))        positions exchange information
#            x = x + mlp(norm(x))              each position is processed on its own
# ```
#
# In the *shapes* of all lessons and of the code: B rows, T positions, C width, V vocabulary, H heads, D head
# size.

# %%
import math

import torch
import torch.nn.functional as F
from lesson import BASE, BLUE, ORANGE, plt, show

from minilatent.cache import KVCache
from minilatent.model import naive_attention
from minilatent.run import load_run

method = load_run(BASE, torch.device("cpu"))  # mini-base: trained on word problems and their solutions
model, tok = method.model, method.tok
print(model.config)

# %% [markdown]
# ## Attention on three positions
#
# Each position computes a query q, a key k and a value v. Position i compares its query with the keys of all
# positions up to its own. Its output is the mean of their values, weighted by how well query and key match:
#
# $$ y_i = \sum_{j \le i} a_{ij} v_j, \qquad a_{ij} = \mathrm{softmax}_j\,(q_i \cdot k_j / \sqrt{D}) $$
#
# Written out for one head:


# %%
def my_attention(q, k, v):  # (T, D) each
    T, D = q.shape
    scores = q @ k.T / math.sqrt(D)  # (T, T)  row i: how well query i matches each key j
    future = torch.ones(T, T, dtype=torch.bool).triu(1)  # above the diagonal: j > i
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)  # rows sum to 1
    return weights @ v, weights  # (T, D)


q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
y, weights = my_attention(q, k, v)
print("weights\n", weights, "\ny\n", y)

# %% [markdown]
# Row 1 sees only itself, so its output is its own value. Row 3 sees all three positions, and the third key
# matches its query best. Now the package's version. It takes a batch and many heads, (B, H, T, D), and any
# mask; `None` means causal.

# %%
theirs = naive_attention(q[None, None], k[None, None], v[None, None], None)[0, 0]
assert torch.allclose(y, theirs)
print(theirs)

# %% [markdown]
# ## The whole model
#
# Three more parts are needed. A **norm** brings each position's vector to the same size (RMSNorm: divide by
# the root of the mean square). A **gated MLP** (multi-layer perceptron) works on each position alone. And
# **rotary positions**: before q and k are multiplied, each pair of their dimensions is rotated by an angle
# that grows with the position. Their product then depends on how far apart the two positions are. Before the
# rotation, each head's q and k go through a norm of their own, so that no product becomes too large.


# %%
def rms_norm(x, weight, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x, theta=10_000.0):  # (H, T, D)
    T, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(T)[:, None] * theta ** (-torch.arange(half) / half)  # (T, D/2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def my_block(x, block, heads):  # (T, C)
    n, at, mlp = rms_norm(x, block.norm1.weight), block.attn, block.mlp
    split = lambda y: y.view(len(x), heads, -1).transpose(0, 1)  # (T, C) -> (H, T, D)
    q, k, v = rms_norm(split(at.q(n)), at.q_norm.weight), rms_norm(split(at.k(n)), at.k_norm.weight), at.v(n)
    heads_of = zip(rotate(q), rotate(k), split(v))
    y = torch.stack([my_attention(*head)[0] for head in heads_of], dim=1)  # (T, H, D)
    x = x + at.o(y.flatten(1))
    n = rms_norm(x, block.norm2.weight)
    return x + mlp.down(F.silu(mlp.gate(n)) * mlp.up(n))


def my_transformer(x, model):  # input vectors (T, C) -> hidden states (T, C)
    for block in model.blocks:
        x = my_block(x, block, model.config.n_head)
    return rms_norm(x, model.norm.weight)


question = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. "
    "Ben has 7 apples. Ben buys 9 more. How many have Ava and Ben together?"
)
ids = torch.tensor(method.prompt(question))  # the question, then <think>
with torch.no_grad():
    mine, theirs = my_transformer(model.embed(ids), model), model(ids[None])[0]
assert torch.allclose(mine, theirs, atol=1e-4)
print("hidden states", tuple(mine.shape), "largest difference", f"{(mine - theirs).abs().max():.0e}")

# %% [markdown]
# This is nearly all of `minilatent/model.py`. What is missing here: the parts that other model families need
# (GPT-2's learned positions, grouped heads), the mask, and the **KV cache**. Keys and values of earlier
# positions never change, so they are stored, and a decoding step computes one position instead of all. With a
# cache the hidden states must be the same:

# %%
with torch.no_grad():
    cache = KVCache(model.config, rows=1, capacity=len(ids))
    steps = [model(ids[None, t : t + 1], cache=cache)[0] for t in range(len(ids))]  # one position at a time
assert torch.allclose(torch.cat(steps), theirs, atol=1e-4)

# %% [markdown]
# ## What the model writes
#
# The logits are products of the hidden state with the embedding table itself ("tied" weights): the most
# likely next token is the one whose embedding has the largest product with the hidden state. We let the model
# generate one token after another until it produces `<eos>`, the end of the sequence:

# %%
written = []
with torch.no_grad():
    while not written or written[-1] != tok.eos:
        h = my_transformer(model.embed(torch.cat([ids, torch.tensor(written, dtype=torch.long)])), model)
        written.append(int((h[-1] @ model.embed.weight.T).argmax()))
print(" ".join(tok.name(i) for i in written))
chain = written[: written.index(tok.end_think)]

# %% [markdown]
# The model reasons in words: `12*3=36`, `36%8=4` and so on, then `</think>`, then the answer. (`%` is the
# remainder: of 36 apples, 4 are left when all full boxes of 8 are sold.) This written reasoning is the
# **chain** (short for chain of thought). It has 24<!-- len(chain):d --> tokens, six for each step: `>> <<`
# between two steps is one token, and the first `<<` is left to `<think>`.
#
# Where does the model look when it is about to write `36`? Each row below is a head, each column a token that
# it can attend to.

# %%
at = chain.index(tok.encode("=")[0]) + 1  # tokens written up to the first "="
seen = torch.cat([ids, torch.tensor(chain[:at])])
rows = []
with torch.no_grad():
    x = model.embed(seen)
    for block in model.blocks:
        n = rms_norm(x, block.norm1.weight)
        split = lambda y: y.view(len(y), 4, -1).transpose(0, 1)  # (T, C) -> (H, T, D)
        q, k = rms_norm(split(block.attn.q(n)), block.attn.q_norm.weight), split(block.attn.k(n))
        for q_, k_ in zip(rotate(q), rotate(rms_norm(k, block.attn.k_norm.weight))):
            rows.append(my_attention(q_, k_, k_)[1][-1])  # the last position's weights
        x = my_block(x, block, 4)
looks = torch.stack(rows)  # (layers · heads, T)
figure, ax = plt.subplots(figsize=(12, 4.2))
image = ax.imshow(looks, cmap="Blues", vmin=0, vmax=1, aspect="auto")
figure.colorbar(image, label="attention", pad=0.01)
ax.set_xticks(range(len(seen)), [tok.name(int(i)).replace("·", "") for i in seen], rotation=70, fontsize=9)
ax.set_yticks(range(0, len(looks), 4), [f"layer {n}" for n in range(1, len(looks) // 4 + 1)])
ax.set_title("Where each head looks from “=”, before the model writes 36")
ax.grid(False)
show(figure, "01-attention")
first = tok.encode("12")[0]
on_operands = looks[:, (seen == first) | (seen == tok.encode("3")[0])].sum(1)
print(f"the head that attends most to 12 and 3 gives them {on_operands.max():.2f} of its attention")

# %% [markdown]
# In the first layer one head attends mostly to `*`, in the second layer all four attend almost only to the
# operands, `12` and `3`, and to those of the equation itself. The question has been read, its numbers have
# been brought here, and what is left is a multiplication.
#
# ## The model reads vectors
#
# Nothing in `my_transformer` asked for tokens: its input is vectors. Usually they are rows of the embedding
# table, but that is a habit, not a requirement. So let us feed something that is not a token. The question
# begins with "Ava has 12 apples". We replace the vector of `12` by a mixture of the vectors of two tokens,
#
# $$ z = (1 - \lambda)\, e_{12} + \lambda\, e_{20} $$
#
# and ask which number the model copies into its first equation, right after `<think>`.

# %%
place, second = (ids == first).nonzero()[0, 0], tok.encode("20")[0]
shares = torch.linspace(0, 1, 21)
probs = []
with torch.no_grad():
    for share in shares:
        x = model.embed(ids)
        x[place] = (1 - share) * model.embed.weight[first] + share * model.embed.weight[second]
        p = model.logits(model(embeds=x[None])[0, -1]).softmax(-1)
        probs.append([p[first], p[second]])
probs = torch.tensor(probs)  # (21, 2)
figure, ax = plt.subplots(figsize=(7, 3.6))
for column, name, colour, marker in ((0, "12", BLUE, "o"), (1, "20", ORANGE, "s")):
    ax.plot(shares, probs[:, column], color=colour, marker=marker, markersize=4, label=f"predicts {name}")
ax.plot(shares, 1 - probs.sum(1), color="0.6", linestyle="--", label="predicts something else")
ax.set(xlabel="λ: share of 20 in the vector that is fed", ylabel="probability", ylim=(-0.02, 1.02))
ax.set_title("Between two tokens")
ax.legend(loc="center left")
show(figure, "01-between")
assert probs[0, 0] > 0.9 and probs[-1, 1] > 0.9  # a pure token is read as that token
half = probs[10]
print(f"at λ = 0.5: 12 with {half[0]:.2f}, 20 with {half[1]:.2f}")

# %% [markdown]
# A pure token is copied faithfully: at the left end the model predicts 12 with probability
# 1.00<!-- probs[0, 0]:.2f -->. In the middle nothing breaks: together the two numbers get
# 1.00<!-- float(half.sum()):.2f ± 0.02 --> of the probability. The model has never seen such a vector in
# training, yet it reads it as one of the two numbers and not as noise. The switch from one to the other is
# sharp, because nobody has trained the model to keep both. So a single vector can lie between tokens and
# still mean something to the model. That is the subject of this course: what to feed instead of tokens, how
# to train a model to produce it, and what is gained.
#
# ## Exercises
# 1. Remove the division by $\sqrt{D}$ in `my_attention` and run again. Which assertion fails first? Why does
#    attention need the division?
# 2. In the last experiment mix `12` with a word, `tok.encode("Ben ")[0]`, instead of `20`. What does the
#    model predict at the right end? Why must the assertion fail?
# 3. With a KV cache, how much computation does the t-th token cost compared with the first? Which part of the
#    block no longer costs the same for every token?
#
# ## Next
# The model wrote 24 tokens to get one number right. **What does each of these tokens cost, and are all of
# them needed?** → [2 · Explicit chain-of-thought and what it costs](02_chain_of_thought.ipynb)
