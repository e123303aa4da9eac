# %% [markdown]
# # 7 · Stage 2: KL and CE, Muon, Gumbel
#
# *35 minutes. Needs: lesson 6.*
#
# Stage 1 has labelled every training chain with N latents, each of which has k probabilities α_i. The encoder
# has done its work and is not used any more. Now the model must *predict* the latents one after the other, as
# it predicts words:
#
# ```
#   input     Q  <think>  z_1   z_2   z_3  </think>  20
#                   │      │     │     │      │       │
#   target         α_1    α_2   α_3  </think> 20    <eos>
#                  └─── KL ───────┘  └────── CE ──────┘
# ```
#
# All inputs are known beforehand (**teacher forcing**), so one parallel pass trains the whole chain. Coconut,
# which feeds its own hidden states, needs one pass per latent, one after the other.

# %%
import torch
from lesson import BLUE, GREEN, GREY, LATENT_SFT, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.evaluate import accuracy
from minilatent.latent import gumbel_noise
from minilatent.losses import sparse_kl
from minilatent.methods.latent_sft import LatentSFT
from minilatent.optim import orthogonalise
from minilatent.run import initial_model, load_run, resolve

# %% [markdown]
# ## KL to a sparse teacher
#
# The teacher is a distribution over k tokens, the student one over the whole vocabulary. The Kullback–Leibler
# divergence (KL) between them is
#
# $$ \mathrm{KL}(\alpha \,\|\, q) = \sum_j \alpha_j \,(\log \alpha_j - \log q_{id_j}) $$
#
# Only the teacher's k entries are summed; where α is 0 there is nothing to add. But q is a softmax over
# *everything*. Probability that the student gives to other tokens is taken away from these k, so it raises
# the loss.


# %%
def my_sparse_kl(logits, alpha, ids):  # (V,), (k,), (k,)
    log_q = logits.log_softmax(-1)
    return sum(a * (a.log() - log_q[i]) for a, i in zip(alpha, ids) if a > 0)


logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0])
alpha, ids = torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0, 1, 4])
mine = my_sparse_kl(logits, alpha, ids)
print("KL", mine, " package", sparse_kl(logits[None], alpha[None], ids[None]))
assert torch.allclose(mine, sparse_kl(logits[None], alpha[None], ids[None]), atol=1e-6)

one_hot = torch.tensor([1.0, 0.0, 0.0])  # a teacher that is sure of token 0
assert torch.allclose(
    my_sparse_kl(logits, one_hot, ids), torch.nn.functional.cross_entropy(logits, torch.tensor(0))
)

# %% [markdown]
# If the teacher is sure of one token, KL *is* the cross-entropy (CE): training on words is the special case
# of one-hot teachers. In general KL = CE − H(α). The teacher's entropy H(α) is a constant, so both have the
# same gradient on the logits, q − α, and KL is the one that can reach 0.

# %%
x = logits.clone().requires_grad_()
my_sparse_kl(x, alpha, ids).backward()
teacher = torch.zeros(5).index_put((ids,), alpha)
print("gradient", x.grad, "\nq - alpha", logits.softmax(-1) - teacher)
assert torch.allclose(x.grad, logits.softmax(-1) - teacher, atol=1e-6)

# %% [markdown]
# ## The whole loss
#
# L_auto = λ · mean KL over the latents + β · mean CE over `</think>`, answer and `<eos>`. Both weights are 1
# (`--kl_weight`, `--ce_weight`). (With `--latent hidden` there is no α. The squared error to the encoder's
# standardised state then replaces the KL, and at a latent the head only learns that `</think>` does not come
# yet. The paper does not say how it does this; it is our reading.)
#
# We train for some steps with `--labels uniform`, which skips stage 1: the teacher is the uniform mixture
# of each segment's tokens, the target of `pull` in lesson 6. (`--labels paths` averages it over all valid
# orders of the steps.)

# %%
config = resolve({"method": "latent_sft", "ratio": 2, "labels": "uniform"})
model, tok, *_ = initial_model(config)
method = LatentSFT(config, tok, model)
rows, _ = encode(tasks.load("mini", "train", limit=1500), tok, 512)
val = tasks.load("mini", "val", limit=100)
method.train_rows, method.labels = rows, method.mixture_labels(rows)
batch = method.collate2([0])
print("labels of the first latents of the first problem:")
for p, i in zip(batch["label_probs"][:4], batch["label_ids"][:4]):
    print("  ", [(tok.name(int(t)), round(float(a), 2)) for a, t in zip(p, i)])

optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
generator, history = torch.Generator().manual_seed(0), []
for _ in range(60):
    chosen = torch.randint(len(rows), (16,), generator=generator).tolist()
    loss, logged = method.loss2(method.collate2(chosen), None)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
    optimizer.step()
    history.append(logged)
print("first step", history[0], "\nlast step ", history[-1])
early = accuracy(method, val)["accuracy"]

trained = load_run(LATENT_SFT, torch.device("cpu"))  # the same stage, after its full schedule
trained.train_rows, trained.labels, trained.config.gumbel = rows, method.labels, False
with torch.no_grad():
    _, end = trained.loss2(trained.collate2(list(range(64))), None)
late = accuracy(trained, val)["accuracy"]
print(f"after 60 steps: {early:.1%} correct.  fully trained: {late:.1%} correct, {end}")

figure, ax = plt.subplots(figsize=(8, 3.6))
for key, colour, lines, name in (
    ("kl", BLUE, ("-", "--"), "KL on the latents"),
    ("ce", ORANGE, ("-.", ":"), "CE on </think>, answer, <eos>"),
):
    ax.plot([h[key] for h in history], color=colour, linestyle=lines[0], label=name)
    full = f"{key.upper()} of the fully trained model"
    ax.axhline(end[key], color=colour, linestyle=lines[1], linewidth=1.2, label=full)
ax.set(xlabel="step", ylabel="nats", title="Stage 2, its first 60 steps", ylim=(0, None))
ax.legend(ncols=2)
show(figure, "07-training")
assert history[-1]["kl"] < history[0]["kl"] / 2 and end["kl"] < history[-1]["kl"] and late > early

# %% [markdown]
# KL falls from 12.6<!-- history[0]["kl"]:.1f ± 0.3 --> to 0.7<!-- history[-1]["kl"]:.1f ± 0.3 --> nats in 60
# steps: the *form* of a chain (`=`, `>> <<`) is learned at once. Yet only 3.0 %<!-- early:.1% ± 4 --> of the
# answers are correct: the *content*, which number comes now, takes hundreds of steps more. The fully trained
# run answers 96.0 %<!-- late:.1% --> correctly, at a KL of 0.16<!-- end["kl"]:.2f --> against these labels.
# (Its teacher was the encoder of stage 1, whose latents are not uniform.)
#
# A small loss proves little. With teacher forcing the model always sees the *correct* latents before it. The
# CE is almost 0 long before the answers are right: the last correct latent contains the answer, which only
# has to be copied. At inference the model sees its own latents, and one wrong operand affects all that
# follows: that is lesson 8.
#
# ## Muon
#
# This lesson used AdamW for its 60 steps. The real run trains the matrices inside the layers with **Muon**
# (`--optimizer muon`, the default on mini), which needed about half as many steps in our trials on the first
# edition of mini (`results/TRIALS.md`). Its update has two parts:
#
# - *Momentum*: a running mean of the gradients, so that the noise of single batches averages out.
# - *Orthogonalisation*: the momentum of a weight matrix is itself a matrix, G = U Σ Vᵀ. A few of its singular
#   values in Σ are usually large and the others small, so a plain step would change the weights in a few
#   directions only. Muon replaces Σ by (about) the identity: the step is equally large in all directions.
#
# Computing U and V exactly is slow. **Newton–Schulz** iterations need matrix products only. Each applies the
# polynomial $3.4445\,\sigma - 4.775\,\sigma^3 + 2.0315\,\sigma^5$ to every singular value, and five of them
# bring all but the tiniest near 1. We try it on the gradient of the last training step:


# %%
def my_orthogonalise(G, steps=5):  # (R, S)
    X = G / G.norm()  # now no singular value is above 1
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X


gradient = model.blocks[0].mlp.down.weight.grad  # (128, 352)
update = my_orthogonalise(gradient)
assert torch.allclose(update, orthogonalise(gradient[None])[0], atol=1e-4)
before, after = torch.linalg.svdvals(gradient / gradient.norm()), torch.linalg.svdvals(update)
print("singular values before: largest", f"{before[0]:.3f}, median {before.median():.4f}")
print("after Newton-Schulz:    largest", f"{after[0]:.3f}, median {after.median():.4f}")
figure, ax = plt.subplots(figsize=(7, 3.2))
ax.plot(range(1, 129), before, color=GREY, linestyle="--", label="gradient (scaled to norm 1)")
ax.plot(range(1, 129), after, color=BLUE, label="after 5 Newton–Schulz iterations")
ax.set(xlabel="direction, the strongest first", ylabel="singular value", title="What Muon does to a gradient")
ax.legend()
show(figure, "07-muon")
assert after.median() > 0.6 and after[0] < 1.3

# %% [markdown]
# Before, the largest singular value is 0.63<!-- float(before[0]):.2f ± 0.3 --> and the median only
# 0.013<!-- float(before.median()):.3f ± 0.004 -->. Afterwards they are 1.2<!-- float(after[0]):.1f ± 0.2 -->
# and 0.9<!-- float(after.median()):.1f ± 0.2 -->. `minilatent/optim.py` does this for all matrices of one
# shape together. Stage 1 keeps AdamW: it has few steps to adapt a model that can already read, and a step in
# all directions at once would first damage that.
#
# ## Gumbel noise
#
# The paper's second version feeds *noisy* teachers, so that the model sees more than one mixture for each
# segment:
#
# $$ \tilde\alpha = \mathrm{softmax}((\log \alpha + s\,g) / \tau), \quad g = -\log(-\log u),\ u \sim U(0,1) $$
#
# The noisy weights are both the input and the target. Why Gumbel noise and not a normal distribution? Because
# the largest entry of log α + g is entry j with probability exactly $\alpha_j$ (the Gumbel-max trick): each
# sample *leans* to one token, as often as its weight says.


# %%
def my_gumbel(alpha, n, generator, tau=1.0):
    u = torch.rand(n, len(alpha), generator=generator).clamp(1e-10, 1 - 1e-7)
    g = (-torch.log(-torch.log(u))).clamp(-1.5, 3)  # the released code clamps the tails
    return ((alpha.log() + g) / tau).softmax(-1)  # (n, k)


alpha = torch.tensor([0.5, 0.3, 0.2])
n = 4000
draws = my_gumbel(alpha, n, torch.Generator().manual_seed(1))
theirs = gumbel_noise(
    alpha.expand(n, 3),
    torch.tensor([[7, 8, 9]]).expand(n, 3),
    torch.zeros(n, dtype=torch.long),
    end=99,
    generator=torch.Generator().manual_seed(1),
)
assert torch.allclose(draws, theirs, atol=1e-6)
leads = torch.bincount(draws.argmax(-1), minlength=3) / n
print("alpha", alpha, " how often each entry is the largest", leads, " mean weights", draws.mean(0))
assert (leads - alpha).abs().max() < 0.03

corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for ax, tau in zip(axes, (0.3, 1.0, 3.0)):
    some = my_gumbel(alpha, 1000, torch.Generator().manual_seed(2), tau)
    ax.fill(*corner.T, facecolor="none", edgecolor=GREY)
    for j, colour in enumerate((BLUE, ORANGE, GREEN)):
        points = (some @ corner)[some.argmax(-1) == j]
        ax.scatter(*points.T, s=6, color=colour, alpha=0.5)
        place = dict(xytext=(0, 6 if j == 2 else -14), textcoords="offset points", ha="center")
        ax.annotate(f"{alpha[j]:.1f}", corner[j].tolist(), color=colour, **place)
    ax.scatter(*(alpha @ corner).tolist(), color="black", marker="x", zorder=3)
    ax.set(title=f"τ = {tau}", aspect="equal", xticks=[], yticks=[], xlim=(-0.1, 1.1), ylim=(-0.15, 1.05))
    ax.spines[:].set_visible(False)
show(figure, "07-gumbel")

# %% [markdown]
# Every dot is one noisy teacher in the triangle of three tokens (the cross is α itself), coloured by its
# largest token. The first token is the largest in 0.51<!-- float(leads[0]):.2f ± 0.03 --> of the dots, where
# α says `0.5`. τ moves the dots between the corners (nearly words) and the middle.
#
# There is one danger: if `</think>` were the largest token of a noisy mixture in the middle of a chain, the
# model would learn to stop there. The noise of such a chain is sampled again, at most 100 times.
#
# `--gumbel` switches the noise on (`--gumbel_scale` is s, `--gumbel_tau` is τ). `loss2` then samples new
# noise for each batch before it mixes. It is off by default here and on in the paper's released scripts.
# Inference never uses it.
#
# ## Exercises
# 1. Set `config.gumbel = True`, give `loss2` a `torch.Generator` instead of `None`, and train again. The
#    final KL is higher. Why must it be? (Hint: what is the model unable to predict?)
# 2. Set `config.ce_weight = 0`. Where does the CE of `history` stop? Print some answers of `method.solve`:
#    what is wrong with them, and why does `accuracy` not show it after 60 steps?
# 3. Why does the embedding table get no gradient through the *input* mixture z, and what would go wrong if it
#    did?
#
# ## Next
# The model can now predict a latent from the latents before it. **What happens when it runs on its own, and
# how does it know when to stop?** → [8 · Decoding and the collapse](08_collapse.ipynb)
