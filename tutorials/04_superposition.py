# %% [markdown]
# # 4 · One-hot against superposition: what is fed back
#
# *25 minutes. Needs: lesson 3.*
#
# At every step a model computes a whole distribution over the vocabulary. Reasoning in words keeps one token
# of it and discards the rest: the weights are a **one-hot** vector. A **superposition** keeps more:
#
# ```
#   logits (V,)  ──softmax──>  p = .60 .25 .10 .05 ..
#
#   one-hot        1   0   0   0    ──>  e_36                                  (a row of the embedding table)
#   superposition .63 .26 .11  0    ──>  .63 e_36 + .26 e_35 + .11 e_46        (a point between rows)
# ```
#
# Only the k most likely tokens are kept (k = 10 in the released code of Latent-SFT), and their weights are
# scaled to sum to 1 again. So there are three things that a model can be given to think with: the embedding
# e_v of one token v, a hidden state, or a superposition:

# %%
import torch
from lesson import BASE, BLUE, GREY, ORANGE, plt, show
from schematics import feedback_figure

from minilatent import tasks
from minilatent.decode import superposition_thinker
from minilatent.evaluate import solve_all, solve_batches
from minilatent.latent import entropy, superpose
from minilatent.run import load_run

show(feedback_figure(), "04-loops")

# %% [markdown]
# ## In ten lines


# %%
def my_superpose(logits, E, k, never):  # (V,), (V, C)
    logits = logits.clone()
    logits[never] = float("-inf")  # padding and the latent marker may not be mixed in
    best, ids = logits.topk(k)  # (k,) the most likely first
    alpha = best.softmax(-1)  # (k,) scaled to sum to 1
    z = sum(a * E[i] for a, i in zip(alpha, ids))  # (C,)
    return z, alpha, ids


E = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0], [9.0, 9.0]])  # 5 tokens in a plane
logits = torch.log(torch.tensor([0.05, 0.5, 0.25, 0.15, 0.05]))
z, alpha, ids = my_superpose(logits, E, k=3, never=[4])
print("alpha", alpha, " ids", ids, " z", z)
theirs = superpose(logits, E, 3, [4])
assert all(torch.allclose(a.float(), b.float()) for a, b in zip((z, alpha, ids), theirs))

figure, ax = plt.subplots(figsize=(5, 3.8))
ax.fill(*E[ids].T, color=BLUE, alpha=0.12)
ax.scatter(*E[:4].T, color=GREY, s=60)
for i, (x, y) in enumerate(E[:4].tolist()):
    ax.annotate(f"e{i}", (x, y), xytext=(6, 6), textcoords="offset points")
ax.scatter(*z.tolist(), color=BLUE, s=90, zorder=3)
ax.annotate("z", z.tolist(), xytext=(8, -4), textcoords="offset points", color=BLUE, fontweight="bold")
ring = dict(facecolor="none", edgecolor=ORANGE, s=220, linewidth=2)
ax.scatter(*E[1].tolist(), **ring, label="one-hot: the most likely token")
ax.set(xlim=(-1, 5.5), ylim=(-1, 4.6), title="A superposition lies between its tokens")
ax.legend(loc="upper left")
show(figure, "04-triangle")

# %% [markdown]
# The most likely token, 1, had probability `0.50`; among the three that are kept it has weight
# 0.56<!-- float(alpha[0]):.2f -->. Two details matter in training. First, the embeddings in the mixture are
# *detached*: a gradient flows to the weights α, but never through the mixture to the table. Otherwise the
# model could move the word embeddings instead of learning to choose among them. Second, `never` lists tokens
# that may not be mixed in: a latent that contains padding means nothing.

# %%
table = E.clone().requires_grad_()
scores = logits.clone().requires_grad_()
superpose(scores, table, 3, [4])[0].sum().backward()
print("gradient of the table:", table.grad, " of the logits:", scores.grad)
assert table.grad is None and scores.grad.abs().sum() > 0

# %% [markdown]
# ## Soft Thinking: a model of words, fed with mixtures
#
# Soft Thinking (arXiv 2505.15778) needs no training: take a model that reasons in words and feed back
# superpositions, at temperature T. On mini-base:

# %%
test = tasks.load("mini", "test", limit=200)
words = load_run(BASE, torch.device("cpu"))
model, tok = words.model, words.tok
plain = solve_all(words, test)
mixing = load_run(BASE, torch.device("cpu"))
mixing.thinker = lambda: superposition_thinker(mixing.model, 10, mixing.tok.never, temperature=0.6)
soft = solve_all(mixing, test)
for name, r in (("words", plain), ("mixtures", soft)):
    print(f"{name:8s} {r['accuracy']:.1%} correct, #L {r['mean_len']:.1f}")
same = sum(a == b for a, b in zip(plain["answers"], soft["answers"])) / len(test)
print(f"the same answer: {same:.1%}")
assert abs(soft["mean_len"] - plain["mean_len"]) < 1
differ = [e for e, a, b in zip(test, soft["answers"], plain["answers"]) if a != b]
lost = min(differ, key=lambda e: len(e.chain))
out = mixing.solve([lost.question])
written = tok.decode(out.chain[0, : out.lengths[0]])  # the most likely token of each step
print(f"{lost.question}\n{lost.chain}   with mixtures: {written}")

# %% [markdown]
# 97.5 %<!-- plain["accuracy"]:.1% --> are correct in words, 94.0 %<!-- soft["accuracy"]:.1% --> in mixtures,
# and 95.5 %<!-- same:.1% --> of the answers are the same (with `T = 0.6`; lesson 3 had `T = 1`, where a few
# more are wrong). **#L did not change**: each step is now a mixture, but there are as many steps as before.
# Why so little difference, and why any? Look at what is fed: how mixed is it?

# %%
H, top = [], []
for _, out, _ in solve_batches(words, test, keep_probs=True):
    real = torch.arange(out.probs.shape[1]) < out.lengths[:, None]  # (B, N)
    H.append(entropy(out.probs)[real])
    top.append(out.probs.max(-1).values[real])
H, top = torch.cat(H), torch.cat(top)
figure, ax = plt.subplots(figsize=(7, 3.2))
ax.hist(H, bins=60, color=BLUE)
ax.set(yscale="log", xlabel="entropy of a step's distribution (nats)", ylabel="steps")
ax.set_title("How uncertain is mini-base while it thinks?")
show(figure, "04-entropy")
sure = (top > 0.99).float().mean()
print(f"{sure:.1%} of the steps have a token above 0.99; mean entropy {H.mean():.4f} nats")
assert sure > 0.9

# %% [markdown]
# In 97.3 %<!-- float(sure):.1% --> of the steps one token has more than `0.99` of the probability: the
# mixture *is* that token's embedding, to within a hundredth. A model trained on words is nearly one-hot, so
# feeding back its superposition changes little. Most of the rest is the hill between `0.5` and `1.2` nats in
# the figure, the open place of lesson 2: in the sum of two people's amounts either may come first. There the
# mixture holds both, and does harm. A token *decides* which amount is written first, and so which one is
# still to come; after the mixture the model does not know, and may write the same one twice:
# `28+28=56>>`<!-- written:s -->. (Larger models are less certain on harder questions; reports on what Soft
# Thinking gains there differ.)
#
# ## Forced to mix
#
# A higher temperature flattens the weights: $\alpha \propto p^{1/T}$. Can the model read what then lies
# between the tokens?

# %%
temperatures = [0.6, 1, 2, 3, 4, 5, 6, 8]
curve = []
for T in temperatures:
    words.thinker = lambda T=T: superposition_thinker(model, 10, tok.never, temperature=T)
    curve.append(solve_all(words, test[:150])["accuracy"])
print({T: round(a, 3) for T, a in zip(temperatures, curve)})
_, out, _ = next(solve_batches(load_run(BASE, torch.device("cpu")), test[:100], keep_probs=True))
real = torch.arange(out.probs.shape[1]) < out.lengths[:, None]
logs = out.probs[real].clamp(min=1e-30).log()  # (n, V) the steps of chains in words
weight = [superpose(logs / T, model.embed.weight, 10, tok.never)[1][:, 0].mean().item() for T in temperatures]
figure, ax = plt.subplots(figsize=(7, 3.6))
ax.plot(temperatures, [100 * a for a in curve], color=BLUE, marker="o", label="correct answers (%)")
weights_label = "weight of the most likely token (%)"
ax.plot(temperatures, [100 * w for w in weight], "s--", color=ORANGE, label=weights_label)
ax.set(xlabel="temperature of the mixture", ylim=(0, 103))
ax.set_title("Soft Thinking on mini-base: how much mixing it tolerates")
ax.legend(loc="lower left")
show(figure, "04-temperature")
assert curve[0] > 0.9 and curve[-1] < curve[0] - 0.2

# %% [markdown]
# At T = 8 the weight of the most likely token is 45 %<!-- weight[-1]:.0% --> on average, and
# 5.3 %<!-- curve[-1]:.1% --> of the answers are correct. So mini-base can read a mixture as long as one
# token dominates it. The rest of the mixture is not used, and soon does harm: what is mixed in here are the
# *runners-up* for the same position, which mean nothing, or a second choice that excludes the first.
#
# This shows two different uses of the same formula. **Soft Thinking** mixes the alternatives for one
# position. **Latent-SFT** spreads the weights over tokens that *all belong to the chain*: r of them in one
# step (`12` and `*`, say), so that the chain becomes r times shorter. This r is the **compression ratio**.
# No model does that by itself. It has to be trained, and for that it needs a teacher.
#
# ## Exercises
# 1. Set k to 1, 2 and 100 in the temperature experiment at T = 4. Which matters more, k or T? Explain it with
#    the weights.
# 2. Where is the entropy highest? Collect `out.chain[real]` beside `H`. For the five steps with the largest
#    `H`, print the most likely token of that step and of the step before.
# 3. A superposition of `12` and `5` shows that both are present, but not in which order. What is lost of a
#    chain like `<<12-5=7>>`? What is not lost, because the model also has the question?
#
# ## Next
# We want one vector for r tokens of the chain. **How do we make a training target that contains a whole
# segment, without letting the model cheat by looking at the text?** With two attention masks → [5 · The two
# masks](05_masks.ipynb)
