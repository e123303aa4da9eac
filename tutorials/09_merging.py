# %% [markdown]
# # 9 · Merging embeddings: why √c
#
# *20 minutes. Needs: lesson 2; lesson 3 helps. Uses the committed checkpoint `tutorials/checkpoints/colar`.*
#
# CoLaR (arXiv 2505.16552) needs no encoder. It cuts the chain's token embeddings into blocks of c and merges
# each block into one vector. This c is the **speed**: the chain becomes c times shorter.
#
# ```
#   e_12  e_*  e_3    e_=  e_36  e_>>·<<    e_36  ..        c = 3
#   └───── + ────┘    └────── + ───────┘
#     z_1 = sum/√c       z_2 = sum/√c
# ```
#
# Adding is natural. But by what should the sum be divided: by c (the mean), by nothing, or, as the paper
# says, by √c? In its ablation this choice is worth 3 to 6 points ("MP", mean pooling, here `--pooling mean`).
# The reason is one line of statistics and one property of transformers.

# %%
import torch
import torch.nn.functional as F
from lesson import BASE, BLUE, COLAR, GREY, ORANGE, RED, plt, show

from minilatent import tasks
from minilatent.batch import encode, pad, segments
from minilatent.evaluate import solve_all
from minilatent.latent import compress
from minilatent.run import load_run

method = load_run(BASE, torch.device("cpu"))
model, tok = method.model, method.tok
E = model.embed.weight.detach()

# %% [markdown]
# ## One line of statistics
#
# If c vectors are independent with mean 0 and variance v in each dimension, their sum has variance c · v.
# Divided by √c it has variance v again and looks like *one* embedding. The mean has variance v / c: it is √c
# times too short. The last block of a chain may hold fewer tokens, so the real tokens are counted.


# %%
def my_compress(block, scale="sqrt"):  # list of c vectors
    total = sum(block)
    return total / len(block) ** {"sqrt": 0.5, "mean": 1.0, "sum": 0.0}[scale]


block = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]])  # two tokens and padding
real = torch.tensor([True, True, False])
print("sqrt", my_compress(list(block[:2])), " mean", my_compress(list(block[:2]), "mean"))
assert torch.allclose(my_compress(list(block[:2])), compress(block[None], real[None])[0])
assert torch.allclose(my_compress(list(block[:2]), "mean"), compress(block[None], real[None], "mean")[0])

random = torch.randn(2000, 5, 128, generator=torch.Generator().manual_seed(0))
print("std of a merged block of 5 independent vectors of std 1:")
for scale in ("mean", "sqrt", "sum"):
    std = torch.stack([my_compress(list(b), scale) for b in random[:300]]).std()
    print(f"   {scale:5s} {std:.2f}")

# %% [markdown]
# ## On real chains
#
# The tokens of a chain are not independent (every block of 6 tokens has a `=`), and the mean of an
# embedding table is not 0. So we measure: the norm of merged blocks divided by the norm of single tokens, for
# c from 1 to 8.

# %%
rows, _ = encode(tasks.load("mini", "test", limit=200), tok, 512)
single = E[torch.tensor([i for r in rows for i in r.chain])].norm(dim=-1).mean()


def full_blocks(rows, c):  # (n, c)
    return torch.tensor([r.chain[i : i + c] for r in rows for i in range(0, len(r.chain) - c + 1, c)])


factors, norms = range(1, 9), {"sum": [], "sqrt": [], "mean": []}
for c in factors:
    total = E[full_blocks(rows, c)].sum(1)  # (n, C)
    for scale, divisor in (("sum", 1), ("sqrt", c**0.5), ("mean", c)):
        norms[scale].append((total / divisor).norm(dim=-1).mean() / single)
figure, ax = plt.subplots(figsize=(7, 3.6))
looks = ((RED, "^", "sum"), (BLUE, "o", "sum / √c"), (ORANGE, "s", "mean"))
for found, (colour, marker, name) in zip(norms.values(), looks):
    ax.plot(factors, found, color=colour, marker=marker, label=name)
ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
ax.set(xlabel="c, tokens in a block", ylabel="norm, relative to one token's", ylim=(0, None))
ax.set_title("How long is a merged embedding?")
ax.legend()
show(figure, "09-norms")
at5 = {scale: float(found[4]) for scale, found in norms.items()}
print("c = 5:", {k: round(v, 2) for k, v in at5.items()})
assert abs(at5["sqrt"] - 1) < min(abs(at5["sum"] - 1), abs(at5["mean"] - 1))

# %% [markdown]
# At c = 5 a sum is 2.87<!-- at5["sum"]:.2f --> times as long as a token's embedding, the mean
# 0.57<!-- at5["mean"]:.2f --> times, and the sum over √c 1.28<!-- at5["sqrt"]:.2f --> times. √c nearly keeps
# the scale without any knowledge of the table.
#
# ## A block as the model sees it, and the last one
#
# CoLaR reads the question, how fast it should think, and one vector for each block. We print what a real row
# becomes at c = 5:

# %%
colar = load_run(COLAR, torch.device("cpu"))
question = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. "
    "Ben has 7 apples. Ben buys 9 more. How many have Ava and Ben together?"
)
chain = tok.encode_chain("<<12*3=36>> <<36%8=4>> <<7+9=16>> <<4+16=20>>")
colar.config.speed = "5"
print("..", colar.tok.decode(colar.prompt(question)).split("? ")[-1], "<think>")
blocks = segments(chain, 5)
for b in blocks:
    merged = compress(E[torch.tensor([b])], torch.ones(1, len(b), dtype=torch.bool))
    print(f"   z   {len(b)} tokens: {' '.join(tok.name(i) for i in b):24s} length {merged.norm():.2f}")
print("</think> 20 <eos>")

# %% [markdown]
# The last block has 4<!-- len(blocks[-1]):d --> tokens. In a batch it is padded, and its sum has to be
# divided by the root of its *own* number of tokens. A fixed √5 would make last blocks too short, and the more
# so the fewer tokens they hold. This would happen just where the answer is about to be read. Over many
# chains:

# %%
last = [segments(r.chain, 5)[-1] for r in rows]
last += [segments(r.chain[:n], 5)[-1] for r in rows[:40] for n in (11, 12, 13, 14)]
ids = pad(last, tok.pad)  # (n, 5)
right = compress(E[ids], ids != tok.pad).norm(dim=-1) / single
wrong = (E[ids] * (ids != tok.pad)[:, :, None]).sum(1).norm(dim=-1) / 5**0.5 / single
count = (ids != tok.pad).sum(1)
own, fixed = ([float(x[count == n].mean()) for n in range(1, 6)] for x in (right, wrong))
figure, ax = plt.subplots(figsize=(7, 3.2))
ax.plot(range(1, 6), own, color=BLUE, marker="o", label="sum / √(its own tokens)")
ax.plot(range(1, 6), fixed, color=RED, marker="o", linestyle="--", label="sum / √5, padding counted")
ax.axhline(1, color=GREY, linewidth=1, linestyle="--")
ax.set(xlabel="real tokens in a last block of 5", ylabel="norm, relative to one token's")
ax.set(xticks=range(1, 6), ylim=(0, None), title="The last block")
ax.legend(loc="lower right")
show(figure, "09-ragged")
print("own", [round(x, 2) for x in own], " fixed", [round(x, 2) for x in fixed])
assert min(own) > 0.7 and fixed[0] < 0.6 and abs(own[4] - fixed[4]) < 1e-4

# %% [markdown]
# With a fixed √5, a last block of one token would have 0.37<!-- fixed[0]:.2f --> of a token's length. Counted
# correctly it is the token itself, at 0.83<!-- own[0]:.2f --> (the tokens that occur there are a little
# shorter than the mean token). This is why `compress` takes the argument `real`.
#
# ## Why does a transformer care?
#
# The first thing that a layer does is to *normalise* its input. So does the scale matter at all? Look at the
# residual stream: the layer's output is added to x itself, which is not normalised. A longer x makes the
# outputs of attention and MLP count less, a shorter one makes them count more. While mini-base thinks in
# words, we scale every embedding of the *chain* (not of the question) that it feeds itself, without any
# training:

# %%
test = tasks.load("mini", "test", limit=150)
scales = [0.25, 1 / 5**0.5, 0.7, 1.0, 1.5, 5**0.5, 4.0, 8.0]
found = []
for s in scales:
    method.thinker = lambda s=s: lambda logits, hidden: s * model.embed(logits.argmax(-1))
    found.append(solve_all(method, test)["accuracy"])
del method.thinker
print({round(s, 2): round(a, 3) for s, a in zip(scales, found)})
figure, ax = plt.subplots(figsize=(7, 3.4))
ax.plot(scales, [100 * a for a in found], color=BLUE, marker="o")
for x, name in ((1 / 5**0.5, "mean, c = 5"), (5**0.5, "sum, c = 5")):
    ax.axvline(x, color=GREY, linestyle=":", linewidth=1)
    ax.text(x, 4, " " + name, color=GREY, fontsize=9)
ax.set(xscale="log", xlabel="scale of the chain's embeddings", ylabel="correct answers (%)", ylim=(0, 102))
ax.set_title("One token per step, but scaled")
ax.set_xticks(scales, [f"{s:.2g}" for s in scales])
ax.minorticks_off()
show(figure, "09-scale")
mean5, sum5 = found[1], found[5]

# %% [markdown]
# At the mean's scale for c = 5 the model answers 76.0 %<!-- mean5:.1% --> correctly, at the sum's
# 86.0 %<!-- sum5:.1% -->, at its own 96.7 %<!-- found[3]:.1% -->; at the far ends of the curve
# 6.7 %<!-- found[0]:.1% --> and 3.3 %<!-- found[-1]:.1% -->. Only the scale was changed here, not the
# direction of any vector. A model that is *trained* on another scale will learn it. But CoLaR asks one model
# for c = 1, 2, .. 6: with means each c would have a scale of its own, with √c all share one.
#
# ## Can the tokens be recovered?
#
# A sum forgets the order. Does it forget the tokens? For a merged block, take the c tokens whose embeddings
# have the largest cosine with it, and count how many of them were in the block:


# %%
def recovered(c):
    blocks = full_blocks(rows, c)  # (n, c)
    z = E[blocks].sum(1) / c**0.5
    scores = F.normalize(z, dim=-1) @ F.normalize(E, dim=-1).T  # (n, V) cosines
    best = scores.topk(c, dim=-1).indices  # (n, c)
    return (best[:, :, None] == blocks[:, None]).any(1).float().mean().item()


rows = rows[:60]
kept = {c: recovered(c) for c in (1, 2, 3, 4, 5, 8)}
print({c: f"{v:.1%}" for c, v in kept.items()})
assert kept[1] == 1 and kept[2] > 0.9

# %% [markdown]
# For c = 2, 100.0 %<!-- kept[2]:.1% --> of the tokens are recovered, for c = 5 92.8 %<!-- kept[5]:.1% -->. In
# 128 dimensions, 488 embeddings are nearly at right angles to each other, so a handful can be added up and
# still be told apart. (A large model has some thousand dimensions, but a hundred thousand tokens.)
#
# ## Exercises
# 1. Subtract the table's mean from E before merging. Does √c keep the norm better or worse? Why?
# 2. A block that repeats a token, `5 5`: does its sum / √2 have the right length? What about
#    `12 12 12 12 12`?
# 3. A merged embedding gives equal weights to its tokens, a superposition gives learned weights. Which of the
#    two can express "36 or 46"?
#
# ## Next
# Merged embeddings can be *computed* from a chain. But **a vector that is not a token has no logit: how does
# a model predict the next one?** → [10 · The latent head and dynamic speed](10_latent_head.ipynb)
