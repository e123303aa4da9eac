# %% [markdown]
# # 3 · Hidden states against embeddings: why a superposition
#
# *30 minutes. Needs: lessons 1 and 2.*
#
# The first latent methods (Coconut, arXiv 2412.06769; CODI, arXiv 2502.21074) feed the last **hidden state** back as the next input:
#
# ```
#        h_t ─────────┐                       words:   h_t ──> logits ──> one token ──> its embedding
#   ┌──────────────┐  │                       Coconut: h_t ──────────────────────────> fed as it is
#   │ transformer  │  │                       here:    h_t ──> logits ──> α ──> z = Σ α_v e_v
#   └──────────────┘  │
#        x_t          └──> x_(t+1) = ?
# ```
#
# It is the obvious thing to do, and the shapes agree: both are vectors of width C. But is what comes *out* of a transformer anything
# like what goes *in*? We look at three measures: length, direction, and how many directions are used.

# %%
import torch
import torch.nn.functional as F
from lesson import BASE, BLUE, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.decode import hidden_thinker, standardise
from minilatent.evaluate import solve_all
from minilatent.latent import superpose
from minilatent.run import load_run

method = load_run(BASE, torch.device("cpu"))
model, tok = method.model, method.tok
test = tasks.load("mini", "test", limit=200)
rows, _ = encode(test, tok, model.config.context)

# %% [markdown]
# We collect, over 200 questions, the hidden states at the chain's positions (what Coconut would feed) and the embeddings of the tokens that
# are really fed there.

# %%
hidden, logits = [], []
with torch.no_grad():
    for row in rows:
        ids, start = torch.tensor([row.explicit(tok)[0]]), len(row.question)
        h = model(ids)[0, start : start + len(row.chain)]  # (T, C) each foretells a chain token
        hidden.append(h)
        logits.append(model.logits(h))
    H, logits = torch.cat(hidden), torch.cat(logits)  # (n, C), (n, V)
    E = model.embed.weight.detach()  # (V, C)
    fed = E[torch.tensor([i for r in rows for i in r.chain])]  # (n, C)
    Z = superpose(logits, E, 10, tok.never)[0]  # (n, C) superpositions: lesson 4
print("hidden states", tuple(H.shape), " embedding table", tuple(E.shape))

# %% [markdown]
# ## Length and direction

# %%
length = {"embeddings": fed.norm(dim=-1), "hidden states": H.norm(dim=-1), "superpositions": Z.norm(dim=-1)}
nearest = lambda x: (
    (F.normalize(x, dim=-1) @ F.normalize(E, dim=-1).T).max(1).values
)  # with the best of all tokens
cosine = {
    "embeddings": nearest(fed[:2000]),
    "hidden states": nearest(H[:2000]),
    "superpositions": nearest(Z[:2000]),
}
colours = {"embeddings": GREY, "hidden states": ORANGE, "superpositions": BLUE}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
for name in ("hidden states", "superpositions", "embeddings"):  # the last as an outline: it hides nothing
    colour, kind = colours[name], "step" if name == "embeddings" else "bar"
    left.hist(
        length[name].numpy(),
        bins=60,
        range=(0, 1.05 * max(x.max() for x in length.values()).item()),
        color=colour,
        alpha=0.75,
        histtype=kind,
        density=True,
        label=name,
    )
    right.hist(
        cosine[name].numpy(),
        bins=60,
        range=(0, 1.02),
        color=colour,
        alpha=0.75,
        histtype=kind,
        density=True,
        label=name,
    )
left.set(xlabel="length (norm)", ylabel="density", yscale="log", title="How long?")
right.set(
    xlabel="cosine with the nearest token's embedding", yscale="log", title="Is any token in that direction?"
)
left.legend()
show(figure, "03-norms")
for name in colours:
    print(
        f"{name:15s} mean length {length[name].mean():6.2f}   mean cosine with the nearest token {cosine[name].mean():.3f}"
    )
ratio = length["hidden states"].mean() / length["embeddings"].mean()
assert ratio > 2 and cosine["hidden states"].mean() < cosine["superpositions"].mean()

# %% [markdown]
# A hidden state is 11.8<!-- float(ratio):.1f --> times as long as an embedding, and its cosine with the nearest token is
# 0.76<!-- float(cosine["hidden states"].mean()):.2f --> where a token's own is 1. This although mini-base has *tied* weights: the hidden
# state is compared with these very embeddings to make the logits. A high product needs length and a *relative* agreement, not the same
# place. The superpositions (blue) lie where embeddings lie: by construction, because they are averages of them.
#
# ## How many directions?
#
# A cloud of vectors may live in few directions though the space has 128. Its singular values tell: normalised to a distribution p, the
# **effective rank** is $\exp(-\sum_i p_i \log p_i)$: 128 if all directions are used alike, 1 if one is. Ten lines:


# %%
def effective_rank(X):  # (n, C)
    X = X - X.mean(0)
    values = torch.linalg.svdvals(X)  # (C,) the largest first
    p = values / values.sum()
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum()), values


flat = torch.cat([torch.eye(4), -torch.eye(4)])  # four directions, used alike
thin = flat * torch.tensor([1.0, 1e-6, 1e-6, 1e-6])  # one direction in truth
print("fixed examples:", effective_rank(flat)[0].item(), effective_rank(thin)[0].item())
assert abs(effective_rank(flat)[0] - 4) < 1e-4 and effective_rank(thin)[0] < 1.01

ranks = {}
figure, ax = plt.subplots(figsize=(7, 3.6))
for name, X, colour in (
    ("embedding table", E, GREY),
    ("hidden states", H, ORANGE),
    ("superpositions", Z, BLUE),
):
    ranks[name], values = effective_rank(X)
    ax.plot(
        range(1, 129), values / values[0], color=colour, label=f"{name}: effective rank {ranks[name]:.0f}"
    )
ax.set(
    xlabel="direction, the strongest first", ylabel="singular value / largest", yscale="log", title="Spectra"
)
ax.legend()
show(figure, "03-spectrum")

# %% [markdown]
# The table's effective rank is 97<!-- float(ranks["embedding table"]):.0f -->, the hidden states' 72<!-- float(ranks["hidden states"]):.0f -->, of 128. Latent-SFT's paper reports that a large
# LLM's embedding matrix has a low effective rank; a model with 549 tokens in 128 dimensions is another case, which is why one measures. (The superpositions
# fall off a cliff: only 107<!-- len({i for r in rows for i in r.chain}):d --> different tokens occur in these chains, and mixtures of them span hardly more directions.) But do the two
# clouds use the *same* directions? Take the strongest 32 of one, and see how much of the other they hold:


# %%
def held(X, of, k=32):
    """The share of X's variance inside the k strongest directions of another cloud."""
    basis = torch.linalg.svd(of - of.mean(0), full_matrices=False).Vh[:k]  # (k, C)
    X = X - X.mean(0)
    return ((X @ basis.T).pow(2).sum() / X.pow(2).sum()).item()


inside = {
    name: held(X, fed) for name, X in (("embeddings", fed), ("superpositions", Z), ("hidden states", H))
}
print({name: round(v, 3) for name, v in inside.items()})
assert inside["superpositions"] > inside["hidden states"]

# %% [markdown]
# The 32 directions that carry most of the fed embeddings hold 96.5 %<!-- inside["superpositions"]:.1% --> of the superpositions' variance but
# 75.1 %<!-- inside["hidden states"]:.1% --> of the hidden states'.
#
# ## Could one just rescale?
#
# Half of the mismatch is easy to mend: give the hidden state the embeddings' mean and spread. That is `standardise`:


# %%
def my_standardise(h, table):
    h = h - h.mean(-1, keepdim=True)
    return h / h.std(-1, keepdim=True) * table.std()


h = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
print(my_standardise(h, E))  # the two rows become the same
assert torch.allclose(my_standardise(h, E), standardise(h, E), atol=1e-5)
print(
    "length",
    f"{my_standardise(H, E).norm(dim=-1).mean():.2f}",
    " nearest cosine",
    f"{nearest(my_standardise(H[:2000], E)).mean():.3f}",
)

# %% [markdown]
# The length is right now; the direction is not. So what does the model make of it? No training, only another thing that is fed
# back at each step of mini-base's thinking:

# %%
from minilatent.decode import superposition_thinker

thinkers = {
    "a token's embedding": method.thinker(),
    "superposition, k = 10": superposition_thinker(model, 10, tok.never),
    "hidden state, standardised": hidden_thinker(model),
    "hidden state as it is": lambda logits, hidden: hidden,
}
found = {}
for name, thinker in thinkers.items():
    method.thinker = lambda thinker=thinker: thinker  # what method.solve feeds back
    found[name] = solve_all(method, test)["accuracy"]
    print(f"{name:28s} {found[name]:.1%}")
figure, ax = plt.subplots(figsize=(7, 2.6))
ax.barh(list(found), [100 * v for v in found.values()], color=[GREY, BLUE, ORANGE, ORANGE])
ax.invert_yaxis()
ax.set(xlabel="right answers (%), mini-base, no training", xlim=(0, 100))
show(figure, "03-fed")
assert found["superposition, k = 10"] > found["hidden state, standardised"] + 0.3

# %% [markdown]
# Fed with superpositions the model is right in 97.0 %<!-- found["superposition, k = 10"]:.1% --> of cases, with its own hidden states in
# 4.5 %<!-- found["hidden state, standardised"]:.1% ± 0.5 --> (standardised) and 2.5 %<!-- found["hidden state as it is"]:.1% ± 0.5 --> (as they are). This says nothing yet about what *training* can do: Coconut and CODI
# train the model to read hidden states, and it learns. But it has to learn a second language for its own input. A superposition
#
# $$ z = \sum_v \alpha_v\, e_v, \qquad \alpha = \text{a probability vector over the vocabulary} $$
#
# always lies between embeddings, where the model can read already. That is the idea of Latent-SFT (arXiv 2510.15522).
#
# ## Exercises
# 1. Compute `cosine["hidden states"]` on H minus its mean. How much of the mismatch is one common direction?
# 2. Fit the best linear map from H to `fed` (`torch.linalg.lstsq`) and feed `hidden @ M`. Is it read? Why is that close to cheating?
# 3. Think: a superposition has C numbers too, so has it less freedom than a hidden state? Which vectors can never be one?
#
# ## Next
# On mini-base, superpositions cost hardly anything. **But do they do anything? What exactly is fed back, and how far is it from a
# single token?** → [4 · One-hot against superposition](04_superposition.ipynb)
