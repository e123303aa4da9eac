# %% [markdown]
# # 11 · RL on latents: which ratio is a likelihood ratio?
#
# *40 minutes. Needs: lesson 10, and a rough idea of policy gradients. Uses the checkpoint
# `tutorials/checkpoints/colar`.*
#
# So far the model imitated chains. Reinforcement learning (RL) lets it find its own. For each question it
# generates G **rollouts**, each a sampled chain with an answer. A rollout gets the **reward** 1 if the answer
# is correct. Its **advantage** says how much better it did than its group, and rollouts with a positive
# advantage are made more likely. This is GRPO (group relative policy optimisation). For words it is routine.
# For latents one needs the probability of a *vector*.
#
# ```
#   question ──> G = 8 rollouts ──> rewards 1 0 0 1 0 0 0 1 ──> advantages A = (r - mean) / std
#                                                       │
#         objective:  mean of  min( ρ A, clip(ρ, 1-ε, 1+ε) A ),        ρ = p_new(z) / p_old(z)
# ```

# %%
import math
import random

import torch
import torch.nn.functional as F
from lesson import BLUE, COLAR, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.methods.colar_rl import CoLaRRL
from minilatent.methods.grpo import advantages, clipped_surrogate
from minilatent.optim import train_only
from minilatent.run import load_run

# %% [markdown]
# ## Advantages and the clip, by hand


# %%
def my_advantages(rewards):  # (G,)
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)


def my_surrogate(new, old, A, clip=0.2):  # log-probabilities
    rho = math.exp(new - old)
    return min(rho * A, max(min(rho, 1 + clip), 1 - clip) * A)


rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
A = my_advantages(rewards)
print("advantages", A)
assert torch.allclose(A, advantages(rewards[None])[0])
assert advantages(torch.ones(1, 8)).abs().max() == 0  # all correct: nothing to learn from this group
cases = [(0.0, 1.0), (0.5, 1.0), (0.5, -1.0), (-0.5, 1.0), (-0.5, -1.0)]
for log_rho, a in cases:
    mine = my_surrogate(log_rho, 0, a)
    theirs, clipped = clipped_surrogate(torch.tensor([log_rho]), torch.zeros(1), torch.tensor([a]), 0.2)
    note = "   clipped: no gradient" if clipped else ""
    print(f"ρ = {math.exp(log_rho):.2f}, A = {a:+.0f}: {mine:+.2f}{note}")
    assert abs(mine - theirs.item()) < 1e-6

# %% [markdown]
# The clip is a limit: once a sample has become 20 % more likely (ε = 0.2), making it still more likely earns
# nothing. It works only if ρ *is* the ratio of probabilities.
#
# <!-- allow: 0.2, 20 % -->
#
# ## The ratio of two Gaussians
#
# A latent is sampled from N(μ, σ) in C dimensions. Its log-density is a **sum** over the width:
#
# $$ \log p(z) = \sum_{d=1}^{C} \log N(z_d; \mu_d, \sigma_d) $$
#
# CoLaR's released code takes the **mean** over the width. Then
# $\rho_{mean} = \exp(\tfrac1C \sum_d ..) = \rho^{1/C}$: the C-th root of the ratio. Is that still useful? The
# defining property of a likelihood ratio is importance sampling: samples of the old policy, weighted by ρ,
# show what reward the *new* policy would get,
#
# $$ \mathbb{E}_{old}[\rho\, r] = \mathbb{E}_{new}[r] $$
#
# We test this on a toy problem: z has 64 numbers, and the reward is 1 if z lies far enough in one direction
# u. The old policy is N(0, 1); the new one is shifted by half a σ along u.

# %%
C, n = 64, 40_000
u = torch.ones(C) / C**0.5  # the rewarded direction, length 1
reward = lambda z: (z @ u > 1).float()
normal_cdf = lambda x: 0.5 * (1 + math.erf(x / 2**0.5))
success = lambda mu: 1 - normal_cdf(1 - float(mu @ u))  # exactly, for N(mu, 1)


def log_density(z, mu, how):
    terms = torch.distributions.Normal(mu, 1.0).log_prob(z)  # (n, C)
    return terms.sum(-1) if how == "sum" else terms.mean(-1)


generator = torch.Generator().manual_seed(0)
old, new = torch.zeros(C), 0.5 * u
z = old + torch.randn(n, C, generator=generator)
estimate = {}
for how in ("sum", "mean"):
    rho = (log_density(z, new, how) - log_density(z, old, how)).exp()
    estimate[how] = float((rho * reward(z)).mean())
    print(f"{how:5s} E_old[ρ r] = {estimate[how]:.3f}    E_old[ρ] = {rho.mean():.3f}    ", end="")
    print(f"ρ from {rho.min():.2f} to {rho.max():.2f}")
print(f"truth E_new[r] = {success(new):.3f}    before the shift {success(old):.3f}")
assert abs(estimate["sum"] - success(new)) < 0.02 and abs(estimate["mean"] - success(old)) < 0.02

# %% [markdown]
# The sum is right: it estimates 0.302<!-- estimate["sum"]:.3f ± 0.003 -->, and the new policy really gets
# 0.309<!-- success(new):.3f -->. The mean estimates 0.158<!-- estimate["mean"]:.3f ± 0.003 -->, which is just
# the *old* policy's 0.159<!-- success(old):.3f -->: with the C-th root it looks as if nothing had changed. So
# **the sum is the likelihood ratio; the mean is not.**
#
# ## The other side
#
# In many dimensions the true ratio varies wildly: a small step in each of C directions adds up. Let the new
# policy differ from the old one by a random step of a few hundredths of σ in each dimension:

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4))
outside = {}
for how, ax, colour in (("sum", axes[0], BLUE), ("mean", axes[1], ORANGE)):
    for width, style in ((8, ":"), (128, "--"), (2048, "-")):
        g = torch.Generator().manual_seed(1)
        shift = 0.05 * torch.randn(width, generator=g)
        x = torch.randn(4000, width, generator=g)
        log_rho = log_density(x, shift, how) - log_density(x, torch.zeros(width), how)
        outside[how, width] = float(((log_rho.exp() - 1).abs() > 0.2).float().mean())
        label = f"C = {width}: {outside[how, width]:.0%} outside"
        look = dict(histtype="step", linestyle=style, color=colour, linewidth=1.5, label=label)
        ax.hist(log_rho.numpy(), bins=80, range=(-6, 4), density=True, **look)
    ax.axvspan(math.log(0.8), math.log(1.2), color=GREY, alpha=0.25, linewidth=0)
    ax.set(xlabel="log ρ", ylabel="density", yscale="log", title=f"{how} over the width")
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9, columnspacing=1)
show(figure, "11-ratios")
assert outside["sum", 2048] > 0.8 and outside["mean", 2048] == 0

# %% [markdown]
# The grey band is the range 1 ± ε that the clip allows. With the sum at C = 2048 (a small LLM),
# 97 %<!-- outside["sum", 2048]:.0% ± 3 --> of the latents are outside it after this tiny step. With the mean
# none ever is: the limit is C times wider, so in effect there is no limit. Neither choice is harmless:
#
# | | sum | mean |
# |---|---|---|
# | is it a likelihood ratio? | yes | no, its C-th root |
# | the clip | acts almost at once when C is large | practically never acts |
# | a latent's gradient, compared with an answer token's | C times larger in scale | about the same |
#
# ## A bandit, trained in seconds
#
# A bandit is an RL problem of a single step. What does the choice do to learning here? The policy is N(μ, 1),
# and μ is learned. Each batch of 64 samples is used for ten updates, so that old and new policy differ. We
# watch three things: the true success rate, how far μ moved *sideways* (at right angles to u, which is noise
# learned from the samples), and how many samples the clip left without a gradient.


# %%
def train(how, seed, batches=25, inner=10, lr=0.02, clip=0.2):
    generator = torch.Generator().manual_seed(seed)
    mu = torch.zeros(C, requires_grad=True)
    optimizer = torch.optim.Adam([mu], lr=lr)
    history = []
    for _ in range(batches):
        z = (mu + torch.randn(64, C, generator=generator)).detach()
        A, old = advantages(reward(z)[None])[0], log_density(z, mu.detach(), how)
        shares = []
        for _ in range(inner):
            gain, clipped = clipped_surrogate(log_density(z, mu, how), old, A, clip)
            shares.append(clipped.float().mean())
            optimizer.zero_grad()
            (-gain.mean()).backward()
            optimizer.step()
        m = mu.detach()
        history.append([success(m), float((m - (m @ u) * u).norm()), float(torch.stack(shares).mean())])
    return torch.tensor(history)  # (batches, 3)


runs = {how: torch.stack([train(how, seed) for seed in range(5)]) for how in ("sum", "mean")}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
titles = ("success rate", "sideways drift of μ (in σ)", "share of clipped samples")
for column, (ax, title) in enumerate(zip(axes, titles)):
    for how, colour, line in (("sum", BLUE, "-"), ("mean", ORANGE, "--")):
        ax.plot(runs[how][:, :, column].T, color=colour, alpha=0.2)
        ax.plot(runs[how][:, :, column].mean(0), color=colour, linestyle=line, linewidth=2, label=how)
    ax.set(xlabel="batch", title=title, ylim=(0, None))
axes[0].legend()
show(figure, "11-bandit")
end = {how: runs[how][:, -1].mean(0) for how in runs}
for how in runs:
    clipped = runs[how][:, :, 2].mean()
    print(f"{how:5s} success {end[how][0]:.2f}   sideways {end[how][1]:.2f}   clipped {clipped:.2f}")
assert runs["sum"][:, :, 2].mean() > 0.1 and runs["mean"][:, :, 2].mean() < 0.01
assert end["mean"][1] > end["sum"][1]

# %% [markdown]
# After 25 batches the sum succeeds in 100 %<!-- float(end["sum"][0]):.0% ± 5 --> of cases with a drift of
# 1.9<!-- float(end["sum"][1]):.1f ± 0.3 -->, the mean in 100 %<!-- float(end["mean"][0]):.0% ± 5 --> with a
# drift of 3.6<!-- float(end["mean"][1]):.1f ± 0.5 -->. The mean moves freely: faster in the right direction,
# and in all others. In this toy problem drift costs nothing. In a language model it does: sideways means away
# from where the model can read its own latents. `colar_rl` has both, `--log_density sum` and
# `--log_density mean`: report which one you used.
#
# ## On a trained model
#
# Now the package's own `colar_rl`, on the CoLaR model of lesson 10. That model was trained with soft-MSE, so
# its σ is nearly 0 and it cannot explore. For this experiment we *set* σ to a tenth of the embeddings'
# standard deviation in every dimension. We sample four rollouts for each of 64 questions at speed 5, where
# many go wrong. Even so, the four rollouts of most questions agree, all correct or all wrong: no advantage.
# With the others we make one small step of Adam, as RL would, all in float32: rounding to 16 bits alone
# would change a sum of 128 terms about as much. How far does the step move ρ of the latents?


# %%
def rl_model(how):
    run = load_run(COLAR, torch.device("cpu"))
    settings = {**vars(run.config), "method": "colar_rl", "latent_loss": "nll", "log_density": how}
    settings |= {"speed": "5", "group": 4, "dtype": "float32"}
    rl = CoLaRRL(CoLaRRL.Settings(**settings), run.tok, run.model)
    rl.latent_head.load_state_dict(run.latent_head.state_dict())
    rl.scale.copy_(run.scale)
    torch.nn.init.zeros_(rl.latent_head.log_sigma.weight)
    torch.nn.init.constant_(rl.latent_head.log_sigma.bias, math.log(0.1))
    return rl.eval()


moved = {}
for how in ("sum", "mean"):
    rl = rl_model(how)
    rows, _ = encode(tasks.load("mini", "train", limit=64), rl.tok, 512)
    batch = rl.rollout(rows, random.Random(0))  # the same samples for both
    hidden = torch.randn(3, rl.model.config.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the density by hand, and the package's
        mu, log_sigma = rl.latent_head(hidden)
        x = (batch["z"][:3] / rl.scale - mu) / log_sigma.exp()
        terms = -0.5 * x**2 - log_sigma - 0.5 * math.log(2 * math.pi)  # (3, C)
        theirs, _ = rl.latent_log_prob({"z": batch["z"][:3]}, hidden)
    assert torch.allclose(terms.sum(-1) if how == "sum" else terms.mean(-1), theirs, rtol=1e-4)
    loss, logged = rl.loss(batch)
    optimizer = torch.optim.Adam(train_only(rl, rl.trainable()).values(), lr=3e-5)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        moved[how] = rl.log_probs(rl.informative(batch))[0]["latents"][0] - batch["old_latents"]  # (n,) log ρ
    outside[how] = float(((moved[how].exp() - 1).abs() > 0.2).float().mean())
    mixed = int((batch["rewards"].std(1) > 0).sum())  # questions with an advantage
    right, middle = logged["accuracy"], moved[how].abs().median()
    print(f"{how:5s} {right:.0%} of the rollouts correct, {mixed} of 64 questions have an advantage")
    print(f"      one step, {len(moved[how])} latents: median of |log ρ| {middle:.3f}, ", end="")
    print(f"outside 1 ± 0.2: {outside[how]:.0%}")
figure, ax = plt.subplots(figsize=(7, 3.2))
for how, colour, hatch in (("sum", BLUE, ""), ("mean", ORANGE, "//")):
    look = dict(
        color=colour, edgecolor="white", alpha=0.7, hatch=hatch, label=f"{how}: {outside[how]:.0%} outside"
    )
    ax.hist(moved[how].clamp(-3, 3).numpy(), bins=61, range=(-3, 3), **look)
ax.axvspan(math.log(0.8), math.log(1.2), color=GREY, alpha=0.25, linewidth=0)
ax.set(xlabel="log ρ of a latent after one step (beyond ±3: at the edge)", ylabel="latents", yscale="log")
ax.set_title("CoLaR on mini, C = 128")
ax.yaxis.set_major_formatter("{x:g}")
ax.legend()
show(figure, "11-trained")
assert 0 < mixed < 32 and outside["sum"] > 0.2 and outside["mean"] < 0.02

# %% [markdown]
# After one step with learning rate `3e-5`, 96 %<!-- outside["sum"]:.0% ± 5 --> of the latents have left the
# allowed range by the likelihood ratio, and 0 %<!-- outside["mean"]:.0% --> by its 128th root. It is the same
# as in the toy problem.
#
# What does a whole run of RL do here? On the first edition of mini it found nothing to shorten
# ([what it taught](../../results/first_edition.md)); we have not repeated it on this one. One reason holds
# for both: a Gaussian that moves a latent by a tenth of a standard deviation in each dimension never tries
# another operand.
#
# ## The decision to continue
#
# A chain of latents is more than its vectors. At every latent the language head also decides: end here, or
# continue? A chain of L latents continued L - 1 times and ended once, and all of these decisions were
# sampled:
#
# $$ \log p = \log p_{end}(z_L) + \sum_{i<L} \log\,(1 - p_{end}(z_i)) $$
#
# The released code of CoLaR counts only the first term. What is lost? Take a policy with one p_end for all
# steps, and the reward "at most five latents". How fast the success rate grows with the logit of p_end can be
# computed exactly: $\frac{d}{d\,\mathrm{logit}}\,(1 - (1-p)^5) = 5\,(1-p)^4\,p\,(1-p)$. It can also be
# estimated from samples, as RL does it, as the mean of advantage times the gradient of log p:


# %%
def policy_gradient(p, all_decisions, n=400_000):
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    length = 1 + (u.log() / math.log(1 - p)).floor()  # sampled from the policy
    r = (length <= 5).float()
    gradient = torch.full((n,), 1 - p)  # d log p / d logit = 1 - p: the chain ended once
    if all_decisions:
        gradient = (1 - p) - (length - 1) * p  # d log(1 - p) / d logit = -p: it continued length - 1 times
    return float(((r - r.mean()) * gradient).mean())


for p_end in (0.1, 0.3):
    truth = 5 * (1 - p_end) ** 5 * p_end
    every, only_last = policy_gradient(p_end, True), policy_gradient(p_end, False)
    print(
        f"p_end = {p_end}: truth {truth:+.3f}   all decisions {every:+.3f}   last one only {only_last:+.3f}"
    )
    assert abs(every - truth) < 0.01 and abs(only_last) < 0.001

# %% [markdown]
# With all decisions the estimate is correct; with the last one alone it is 0, whatever the reward. Every
# chain has ended once, so the last term cannot distinguish a short chain from a long one. In
# `minilatent/methods/grpo.py` all decisions are scored.
#
# ## Averaging over the chain
#
# One more choice. CoLaR *shares* a chain's advantage among its latents and decisions: each gets A / L.
# (`--no-average` gives every decision of the batch the same weight.) Of two correct chains, the decisions of
# the shorter one are made more likely by more. But of two wrong ones, those of the shorter one are also
# punished more:

# %%
for L in (4, 8, 16):
    print(f"{L:2d} latents: each gets {1 / L:+.3f} if the answer is correct, {-1 / L:+.3f} if it is wrong")


def lengths(shared, seed, updates=250, most=64):
    """A policy with one parameter, p_end; chains of 4 to 12 latents are correct. Mean length by update."""
    generator, theta = torch.Generator().manual_seed(seed), torch.tensor(-2.0, requires_grad=True)
    optimizer, history = torch.optim.Adam([theta], lr=0.05), []
    for _ in range(updates):
        ends = torch.rand(32, 8, most, generator=generator) < theta.sigmoid().detach()  # 32 groups of G = 8
        ends[..., -1] = True
        L = ends.int().argmax(-1) + 1  # (32, 8)
        A = advantages(((L >= 4) & (L <= 12)).float())
        ended = torch.where(L < most, F.logsigmoid(theta), 0)  # a chain that was cut off did not end itself
        log_p = (L - 1) * F.logsigmoid(-theta) + ended
        gain = (A * log_p / L).mean() if shared else (A * log_p).sum() / L.sum()
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
        history.append(float(L.float().mean()))
    return torch.tensor(history)


grown = {}
for name, shared in (("A / L each", True), ("equal weights", False)):
    grown[name] = torch.stack([lengths(shared, seed) for seed in range(3)])
figure, ax = plt.subplots(figsize=(7, 3.2))
for (name, found), colour, line in zip(grown.items(), (ORANGE, BLUE), ("--", "-")):
    ax.plot(found.T, color=colour, alpha=0.25)
    ax.plot(found.mean(0), color=colour, linestyle=line, linewidth=2, label=name)
ax.axhspan(4, 12, color=GREY, alpha=0.2, linewidth=0)
ax.set(xlabel="update", ylabel="mean length", ylim=(0, 36))
ax.set_title("A policy that learns when to end (grey: the correct lengths)")
ax.legend(loc="upper right")
show(figure, "11-lengths")
last = {name: float(found[:, -50:].mean()) for name, found in grown.items()}
print(last)
assert last["A / L each"] > last["equal weights"] + 3

# %% [markdown]
# In this toy problem sharing makes chains *longer*: 21<!-- last["A / L each"]:.0f ± 3 --> latents against
# 7<!-- last["equal weights"]:.0f ± 1 -->. A long wrong chain is punished with a small share for each
# decision, a short wrong one with a large share. CoLaR's paper reports the opposite on MATH: with sharing
# chains become short, without it they grow to the limit, and on Llama-1B accuracy falls to 0. Both can be
# true, because the effect depends on which chains are correct, on chains that are cut off, and on the clip.
# The arithmetic is certain: A / L is not the gradient of the expected reward (the sum over the chain is). It
# is another objective, in which a step of a short chain counts more. Report which one you used, and log the
# length.
#
# ## Latents that are superpositions
#
# Latent-GRPO (arXiv 2604.27998) has another policy: Gumbel noise on the log-probabilities, as in lesson 7,
# then the k highest. Its density is one over k scores, and it is averaged as well, over the k. Everything
# said here about sum and mean holds there with C = k = 10. Continue with `minilatent/methods/latent_rl.py`.
#
# ## Exercises
# 1. Train the bandit with `clip=0.2 / C ** 0.5` for the mean. Does a tighter clip repair it? Which ε would
#    make the clip act as early as for the sum?
# 2. Set `inner=1`. What is the difference between sum and mean now? (At the first update ρ is 1 for both.
#    What differs, and why does Adam hide it?)
# 3. Soft-MSE drives σ to 0 (lesson 10). What is log ρ of a step of 0.01 in μ if σ is `0.0001`? Why must RL
#    start from an NLL head?
#
# <!-- allow: 0.01 -->
#
# ## Next
# RL rewards the answer, whatever the latents contain. **How would we know what they contain, and that the
# answer comes from them?** → [12 · What does a latent contain?](12_what_latents_hold.ipynb)
