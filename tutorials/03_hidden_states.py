# %% [markdown]
# # 3 · Hidden states against embeddings: why a superposition
#
# *30 minutes. Needs: lessons 1 and 2.*
#
# The first latent methods (Coconut, arXiv 2412.06769; CODI, arXiv 2502.21074) feed the last **hidden state**
# back as the next input. A vector that is fed back in place of a token is called a **latent**:
#
# ```
#        h_t ─────────┐                       words:   h_t ──> logits ──> one token ──> its embedding
#   ┌──────────────┐  │                       Coconut: h_t ──────────────────────────> fed as it is
#   │ transformer  │  │                       here:    h_t ──> logits ──> α ──> z = Σ α_v e_v
#   └──────────────┘  │
#        x_t          └──> x_(t+1) = ?
# ```
#
# It is the obvious thing to do, and the shapes agree: both are vectors of width C. But does what comes *out*
# of a transformer look like what goes *in*? We compare three properties: length, direction, and how many
# directions are used.

# %%
import torch
import torch.nn.functional as F
from lesson import BASE, BLUE, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.decode import hidden_thinker, standardise, superposition_thinker
from minilatent.evaluate import solve_all
from minilatent.latent import superpose
from minilatent.run import load_run

method = load_run(BASE, torch.device("cpu"))
model, tok = method.model, method.tok
test = tasks.load("mini", "test", limit=200)
rows, _ = encode(test, tok, model.config.context)

# %% [markdown]
# Over 200 questions we collect the hidden states at the chain's positions (what Coconut would feed) and the
# embeddings of the tokens that are really fed there.

# %%
hidden, logits = [], []
with torch.no_grad():
    for row in rows:
        ids, start = torch.tensor([row.prompt + row.chain]), len(row.prompt) - 1  # <think> predicts the first
        h = model(ids)[0, start : start + len(row.chain)]  # (T, C) each predicts a chain token
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
# the cosine with the nearest of all tokens
nearest = lambda x: (F.normalize(x, dim=-1) @ F.normalize(E, dim=-1).T).max(1).values
cosine = {
    "embeddings": nearest(fed[:2000]),
    "hidden states": nearest(H[:2000]),
    "superpositions": nearest(Z[:2000]),
}
colours = {"embeddings": "black", "hidden states": ORANGE, "superpositions": BLUE}
longest = 1.05 * max(x.max() for x in length.values()).item()
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
for name in ("hidden states", "superpositions", "embeddings"):
    kind = "step" if name == "embeddings" else "bar"  # an outline hides nothing
    style = dict(bins=60, color=colours[name], alpha=0.75, histtype=kind, density=True, label=name)
    left.hist(length[name].numpy(), range=(0, longest), **style)
    right.hist(cosine[name].numpy(), range=(0, 1.02), **style)
left.set(xlabel="length (norm)", ylabel="density", yscale="log", title="How long?")
right.set(
    xlabel="cosine with the nearest token's embedding", yscale="log", title="Is a token in that direction?"
)
left.legend()
show(figure, "03-norms")
for name in colours:
    print(f"{name:15s} mean length {length[name].mean():6.2f}   ", end="")
    print(f"mean cosine with the nearest token {cosine[name].mean():.3f}")
ratio = length["hidden states"].mean() / length["embeddings"].mean()
assert ratio > 2 and cosine["hidden states"].mean() < cosine["superpositions"].mean()

# %% [markdown]
# A hidden state is 8.2<!-- float(ratio):.1f --> times as long as an embedding, and its cosine with the
# nearest token is 0.74<!-- float(cosine["hidden states"].mean()):.2f -->, where that of an embedding is 1.
# And this although mini-base has *tied* weights: the logits are products of the hidden state with these very
# embeddings. A large product needs length and a *relatively* good match, not the same place. The
# superpositions (blue) lie where embeddings lie, or, a few of them, between two of them. This is so by
# construction, because they are weighted means of embeddings.
#
# ## How many directions?
#
# A cloud of vectors may use only a few directions although the space has 128. Its singular values show how
# many. Normalise them to a distribution p; then the **effective rank** is $\exp(-\sum_i p_i \log p_i)$: 128
# if all directions are used equally, 1 if only one is used. In ten lines:


# %%
def effective_rank(X):  # (n, C)
    X = X - X.mean(0)
    values = torch.linalg.svdvals(X)  # (C,) the largest first
    p = values / values.sum()
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum()), values


flat = torch.cat([torch.eye(4), -torch.eye(4)])  # four directions, used equally
thin = flat * torch.tensor([1.0, 1e-6, 1e-6, 1e-6])  # effectively one direction
print("two examples:", effective_rank(flat)[0].item(), effective_rank(thin)[0].item())
assert abs(effective_rank(flat)[0] - 4) < 1e-4 and effective_rank(thin)[0] < 1.01

ranks = {}
figure, ax = plt.subplots(figsize=(7, 3.6))
clouds = (("embedding table", E, GREY), ("hidden states", H, ORANGE), ("superpositions", Z, BLUE))
for (name, X, colour), line in zip(clouds, ("--", "-", "-.")):
    ranks[name], values = effective_rank(X)
    label = f"{name}: effective rank {ranks[name]:.0f}"
    ax.plot(range(1, 129), values / values[0], color=colour, linestyle=line, label=label)
ax.set(xlabel="direction, the strongest first", ylabel="singular value / largest", yscale="log")
ax.set_title("Singular values")
ax.legend()
show(figure, "03-spectrum")

# %% [markdown]
# Of 128 possible directions, the table's effective rank is 91<!-- float(ranks["embedding table"]):.0f -->;
# that of the hidden states 85<!-- float(ranks["hidden states"]):.0f -->. Latent-SFT's paper reports that a
# large LLM's embedding matrix has a low effective rank. A model with 488 tokens in 128 dimensions is another
# case, which is why one measures. (The curve of the superpositions drops sharply: only
# 91<!-- len({i for r in rows for i in r.chain}):d --> different tokens occur in these chains, and mixtures
# of them span hardly more directions.) But do the two clouds use the *same* directions? Take the strongest 32
# of one and see how much of the other they contain:


# %%
def held(X, of, k=32):
    """The share of X's variance inside the k strongest directions of another cloud."""
    basis = torch.linalg.svd(of - of.mean(0), full_matrices=False).Vh[:k]  # (k, C)
    X = X - X.mean(0)
    return ((X @ basis.T).pow(2).sum() / X.pow(2).sum()).item()


inside = {"embeddings": held(fed, fed), "superpositions": held(Z, fed), "hidden states": held(H, fed)}
print({name: round(v, 3) for name, v in inside.items()})
assert inside["superpositions"] > inside["hidden states"]

# %% [markdown]
# The 32 directions that carry most of the fed embeddings contain 97.1 %<!-- inside["superpositions"]:.1% -->
# of the superpositions' variance, but only 77.5 %<!-- inside["hidden states"]:.1% --> of the hidden states'.
#
# ## Is rescaling enough?
#
# Half of the mismatch is easy to repair: give each hidden state the mean 0 and the standard deviation of the
# embedding table. That is `standardise`:


# %%
def my_standardise(h, table):
    h = h - h.mean(-1, keepdim=True)
    return h / h.std(-1, keepdim=True) * table.std()


h = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
print(my_standardise(h, E))  # the two rows become equal
assert torch.allclose(my_standardise(h, E), standardise(h, E), atol=1e-5)
print(f"mean length {my_standardise(H, E).norm(dim=-1).mean():.2f}", end="   ")
print(f"mean cosine with the nearest token {nearest(my_standardise(H[:2000], E)).mean():.3f}")

# %% [markdown]
# The length is about right now; the direction is as wrong as before. So what does the model do with such an
# input? We train nothing here. We only change what is fed back at each step while mini-base thinks:

# %%
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
ax.set(xlabel="correct answers (%), mini-base, no training", xlim=(0, 100), title="What can be fed back?")
show(figure, "03-fed")
assert found["superposition, k = 10"] > 0.8
assert max(found["hidden state, standardised"], found["hidden state as it is"]) < 0.1

# %% [markdown]
# Fed with superpositions, the model answers 91.5 %<!-- found["superposition, k = 10"]:.1% ± 1 --> correctly.
# Fed with its own hidden states, it answers 5.0 %<!-- found["hidden state, standardised"]:.1% ± 1 -->
# (standardised) or 2.0 %<!-- found["hidden state as it is"]:.1% ± 1 --> (as they are), hardly more than with
# no chain at all (lesson 2). This says nothing yet about what *training* can do: Coconut and CODI train the
# model to read hidden states, and it learns to. But it has to learn a second language for its own input. A
# **superposition**
#
# $$ z = \sum_v \alpha_v\, e_v, \qquad \alpha = \text{a probability vector over the vocabulary} $$
#
# always lies between embeddings, where the model can already read. That is the idea of Latent-SFT (arXiv
# 2510.15522).
#
# ## Exercises
# 1. Compute `cosine["hidden states"]` on H minus its mean. How much of the mismatch is one common direction?
# 2. Fit the best linear map from H to `fed` (`torch.linalg.lstsq`) and feed `hidden @ M`. Can the model read
#    it? Why is that close to cheating?
# 3. A superposition consists of C numbers, too. Does it have less freedom than a hidden state? Which vectors
#    can never be a superposition?
#
# ## Next
# On mini-base, superpositions cost little accuracy, but they do cost some. **Why? What exactly is fed back,
# and how far is it from a single token?** → [4 · One-hot against superposition](04_superposition.ipynb)
