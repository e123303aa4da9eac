# %% [markdown]
# # 10 · The latent head and dynamic speed
#
# *25 minutes. Needs: lessons 8 and 9. Uses the committed checkpoint `tutorials/checkpoints/colar`.*
#
# A merged embedding is not a token, so the language head cannot predict it. CoLaR (arXiv 2505.16552) gives
# the model a second head, the **latent head**. From the hidden state it predicts a **Gaussian over the next
# vector**: a mean μ and a standard deviation σ in each dimension.
#
# ```
#              ┌── language head ── "does the chain end here?", and after it the words of the answer
#   h_t ───────┤
#              └── latent head ──── N(μ, σ)  ── sample, or take μ ──> z_(t+1), fed back
# ```
#
# The prompt says how fast to think: "Let's think 3 times faster:". In training, c is sampled for each step,
# from 1 to 6, so that one model learns all speeds.

# %%
import torch
from lesson import BLUE, COLAR, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode, pad, segments
from minilatent.evaluate import solve_all, wilson
from minilatent.latent import compress
from minilatent.methods.colar import gaussian_nll, soft_mse
from minilatent.run import load_run
from minilatent.study.trace import describe, trace

method = load_run(COLAR, torch.device("cpu"))
model, tok, head = method.model, method.tok, method.latent_head
print(head)

# %% [markdown]
# ## Two losses for a Gaussian
#
# Let e be the true next vector. **NLL** (negative log-likelihood) asks how unlikely e is under N(μ, σ).
# **soft-MSE** (mean squared error) asks how far a *sample* is from e on average.
#
# $$ \mathrm{NLL} = \frac{(e-\mu)^2}{2\sigma^2} + \log\sigma $$
#
# $$ \mathrm{softMSE} = \mathbb{E}_\varepsilon[(\mu + \sigma\varepsilon - e)^2] = (\mu - e)^2 + \sigma^2 $$
#
# (NLL up to a constant.) The second has a closed form, so there is no need to sample ε:


# %%
def my_nll(mu, sigma, e):
    return ((e - mu) ** 2 / (2 * sigma**2) + sigma.log()).mean()


def my_soft_mse(mu, sigma, e, draws=200_000):  # by sampling, to check the closed form
    noise = torch.randn(draws, len(mu), generator=torch.Generator().manual_seed(0))
    return ((mu + sigma * noise - e) ** 2).mean()


mu, sigma, e = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.0])
print("NLL     ", my_nll(mu, sigma, e), gaussian_nll(mu[None], sigma.log()[None], e[None]))
print("soft-MSE", my_soft_mse(mu, sigma, e), soft_mse(mu[None], sigma.log()[None], e[None]))
assert torch.allclose(my_nll(mu, sigma, e), gaussian_nll(mu[None], sigma.log()[None], e[None]))
assert abs(my_soft_mse(mu, sigma, e) - soft_mse(mu[None], sigma.log()[None], e[None])) < 0.03

# %% [markdown]
# Which σ do they prefer when the target is a distance d away from μ?

# %%
grid = torch.linspace(0.02, 2, 200)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4))
best = {}
for ax, loss, name in zip(axes, (gaussian_nll, soft_mse), ("NLL", "soft-MSE")):
    for d, colour, line in ((0.25, GREY, ":"), (0.5, BLUE, "--"), (1.0, ORANGE, "-")):
        target = torch.full((1, 1), d)
        values = torch.stack([loss(torch.zeros(1, 1), s.log()[None, None], target) for s in grid])
        best[name, d] = grid[values.argmin()].item()
        ax.plot(grid, values, color=colour, linestyle=line, label=f"error d = {d}")
        ax.plot(best[name, d], values.min(), "o", color=colour)
    ax.set(xlabel="σ", ylabel="loss", title=name, ylim=(-1.6, 3))
    ax.legend()
show(figure, "10-losses")
assert all(abs(best["NLL", d] - d) < 0.02 for d in (0.25, 0.5, 1.0)) and best["soft-MSE", 1.0] < 0.03

# %% [markdown]
# NLL is lowest where σ equals the error: the head learns *how certain it may be*. Soft-MSE is always lowest
# at σ = 0: noise can only increase it. So a head that was trained with soft-MSE ends up deterministic, and
# RL, which has to explore (lesson 11), needs an NLL head. (`--latent_loss` is `soft_mse`, `nll`, or `mse`, a
# head without σ: the paper's ablation "DL", deterministic latents. The paper also subtracts α times the
# entropy, which keeps σ above 0; α is `--entropy_weight`, here 0.) Which one does this checkpoint have?

# %%
test = tasks.load("mini", "test", limit=300)
rows, _ = encode(test, tok, 512)


@torch.no_grad()
def predict_blocks(c):
    """With teacher forcing: the head's μ and σ and the true next blocks z, each (n, C), in units of the
    embeddings' standard deviation; and the tokens of the blocks."""
    found, tokens = [], []
    for row in rows:
        blocks = segments(row.chain, c)
        ids = pad(blocks, tok.pad)  # (N, c)
        z = compress(model.embed(ids), ids != tok.pad)  # (N, C)
        method.config.speed = str(c)
        x = torch.cat([model.embed(torch.tensor(method.prompt(row.text))), z])
        h = model(embeds=x[None])[0, -len(blocks) - 1 : -1]  # at <think> and at all z but the last
        mu, log_sigma = head(h)
        found.append((mu, log_sigma.exp(), z / method.scale))
        tokens += blocks
    return *(torch.cat(t) for t in zip(*found)), tokens


share, sigmas, known = {}, {}, {}
for c in range(1, 7):
    mu, sigma, e, tokens = known[c] = predict_blocks(c)
    share[c] = float((mu - e).pow(2).sum() / (e - e.mean(0)).pow(2).sum())  # missed, of the targets' variance
    sigmas[c] = float(sigma.mean())
print("trained with", method.config.latent_loss, " mean σ", {c: f"{s:.1e}" for c, s in sigmas.items()})
print("share of the variance that μ misses", {c: f"{v:.1%}" for c, v in share.items()})

# %% [markdown]
# It was trained with `soft_mse`<!-- method.config.latent_loss:s -->, and its mean σ is
# `4e-07`<!-- sigmas[2]:.0e --> at c = 2 (in units of the embeddings' standard deviation). Given the true
# chain, μ misses 1.8 %<!-- share[1]:.1% --> of the targets' variance at c = 1 and 12.3 %<!-- share[6]:.1% -->
# at c = 6. What it misses is fed back, and all later steps read it.
#
# CoLaR's whole loss is L_comp + λ L_latent. **L_latent** is one of the two losses above, at `<think>` and at
# each z. The target is the next z; at the last z it is the embedding of `</think>`. **L_comp** is the
# cross-entropy of the language head. Before z_i its label is *one token of block i, sampled at random*; after
# the last z the labels are `</think>`, the answer and `<eos>`. Before a latent the loss stays near log c nats
# however long one trains, and its gradient stays noisy. λ is `--latent_weight`: 1 in the paper, here
# 10<!-- method.config.latent_weight:.0f -->, so that the signal of the latents is not lost in that noise
# (`results/TRIALS.md` has runs with 1). With `--no-compressed_labels`, the ablation "OC", the language head
# only learns before a latent that the chain continues.
#
# ## The loop
#
# As in lesson 8, with two differences. What is fed is μ times the standard deviation of the embedding table,
# because the targets are divided by it. And one latent is always generated before the end may come.


# %%
@torch.no_grad()
def my_think(question, c, most=64):
    method.config.speed = str(c)  # goes into the prompt
    x, n, answer, thinking = model.embed(torch.tensor(method.prompt(question))), 0, [], True
    while thinking or (answer[-1:] != [tok.eos] and len(answer) < 16):
        h = model(embeds=x[None])[0, -1]
        logits = model.logits(h)
        logits[tok.never] = float("-inf")
        token = int(logits.argmax())
        if thinking and n < most and (token != tok.end_think or n == 0):
            feed, n = head(h)[0] * method.scale, n + 1  # μ, scaled back to the embeddings
        else:
            feed = model.embed.weight[tok.end_think if thinking else token]
            answer += [] if thinking else [token]
            thinking = False
        x = torch.cat([x, feed[None]])
    return n, tok.decode(answer)


question = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. "
    "Ben has 7 apples. Ben buys 9 more. How many have Ava and Ben together?"
)
for c in range(1, 7):
    n, answer = my_think(question, c)
    out = method.solve([question])
    print(f"{c} times faster: {n:2d} latents, answer {answer}")
    assert n == int(out.lengths) and answer == out.answers[0]

# %% [markdown]
# What does such a latent contain? There is no softmax that names its tokens, but the nearest embeddings do,
# as in lesson 9 (the last table of this output):

# %%
method.config.speed = "2"
print(describe(trace(method, question), tok, top=4))

# %% [markdown]
# The two nearest are the tokens of the block each time, up to the result `20`. (In step 10 a third one is
# almost as near: either amount may come first, as in lesson 8.) A sum is a bag: the neighbours show that `12`
# and `*` are in it, but not in which order.
#
# ## One checkpoint, six speeds

# %%
speed = {}
for c in range(1, 7):
    method.config.speed = str(c)
    speed[c] = solve_all(method, test)
    low, high = wilson(round(speed[c]["accuracy"] * len(test)), len(test))
    right = f"{speed[c]['accuracy']:.1%} correct (95 %: {low:.1%} to {high:.1%})"
    print(f"c = {c}: {right}, #L {speed[c]['mean_len']:.1f}")
figure, ax = plt.subplots(figsize=(7, 3.8))
x, y = [r["mean_len"] for r in speed.values()], [100 * r["accuracy"] for r in speed.values()]
error = [[100 * abs(r["ci95"][i] - r["accuracy"]) for r in speed.values()] for i in (0, 1)]
ax.errorbar(x, y, error, color=BLUE, marker="o", capsize=3)
for c, a, b in zip(speed, x, y):
    ax.annotate(f"×{c}", (a, b), xytext=(7, 5), textcoords="offset points", color=BLUE)
ax.set(xlabel="#L, latents per question", ylabel="correct answers (%)", xlim=(0, None), ylim=(0, 102))
ax.set_title("Dynamic speed")
show(figure, "10-speed")
assert all(speed[c]["mean_len"] > speed[c + 1]["mean_len"] for c in range(1, 6))
assert speed[1]["accuracy"] > speed[6]["accuracy"] + 0.1
quotient = speed[1]["mean_len"] / speed[4]["mean_len"]

# %% [markdown]
# The length follows the prompt: asked to think 4 times faster, the model takes a chain that is
# 3.9<!-- quotient:.1f --> times shorter. It has learned this from the prompt alone. At speed 3 the accuracy
# is as high as at 1 (at 2 a little lower), and it falls from there:
# 92.0 %<!-- speed[1]["accuracy"]:.1% --> at c = 1,
# 87.0 %<!-- speed[2]["accuracy"]:.1% --> at 2, 92.0 %<!-- speed[3]["accuracy"]:.1% --> at 3,
# 62.0 %<!-- speed[4]["accuracy"]:.1% --> at 4, 51.7 %<!-- speed[5]["accuracy"]:.1% --> at 5,
# 27.3 %<!-- speed[6]["accuracy"]:.1% --> at 6.
#
# It matters where the blocks begin and end. A step such as `12*3=36>> <<` has 6 tokens. With c = 2, 3 or 6
# every step is cut in the same places, with 4 or 5 each one differently. And it matters what is *within* a
# block. With c up to 3 the second operand of a step and its result are never in the same block: first the
# model says what is to be computed, and when it has read that, it computes. With 6 a latent is a whole step,
# so the model has to find the operands and compute with them in one pass. With 4 and 5 some blocks are like
# this. So we take the predicted latents that hold a step's result, and ask whether another number in its
# place would fit μ better:

# %%
E = model.embed.weight.detach()
equals = tok.encode_chain("<<1+1=2>>")[3]
numbers = torch.tensor([tok.encode_chain(f"<<{n}+1=2>>")[0] for n in range(1, 100)])


def results(c):
    """Of each result: whether an operand is in the same block, and whether another number fits better."""
    together, wrong, before = [], [], tok.pad
    for mu, _, e, block in zip(*known[c]):
        for i, (left, token) in enumerate(zip([before, *block], block)):
            if left == equals:
                others = e + (E[numbers] - E[token]) / (len(block) ** 0.5 * method.scale)  # (99, C)
                together.append(i > 1)
                wrong.append(int(numbers[(others - mu).norm(dim=-1).argmin()]) != token)
        before = block[-1]
    return torch.tensor(together), torch.tensor(wrong).float()


wrong, packed, split = {}, {}, {}
for c in range(1, 7):
    together, missed = results(c)
    wrong[c], packed[c] = float(missed.mean()), float(together.float().mean())
    print(f"c = {c}: {packed[c]:4.0%} of the results have an operand in their block; ", end="")
    parts = {"with": together, "without": ~together}
    split[c] = {name: float(missed[part].mean()) for name, part in parts.items() if part.any()}
    print("wrong: " + ", ".join(f"{w:.1%} of those {name}" for name, w in split[c].items()))
assert packed[1] == packed[2] == packed[3] == 0 and packed[6] == 1

# %% [markdown]
# It does matter. At c = 5, 20.8 %<!-- split[5]["with"]:.1% --> of the results that share a block with an
# operand are wrong, and 6.2 %<!-- split[5]["without"]:.1% --> of the others. With c up to 3 hardly any is
# wrong, at c = 3 0.2 %<!-- wrong[3]:.1% -->; at c = 6 24.5 %<!-- wrong[6]:.1% -->. All this is measured with
# the true chain before the block (teacher forcing). So the best speed for mini is 3: as accurate as 1 and 2,
# as far as 300 questions can tell, with the fewest latents. Longer training may move this limit.
#
# (GSM8K's equations have no such regular length; this is a property of mini, worth knowing when you read its
# numbers.)
#
# ## Exercises
# 1. Set `method.config.latent_temperature = 1` and solve again. What changes, and why does the σ printed
#    above explain it?
# 2. Ask for a speed that was never trained, `"7"`. What is the length? Does the model extrapolate?
# 3. The language head ends the chain, the latent head fills it. What goes wrong if they disagree by one step?
# 4. `known[5]` has the predicted latents at c = 5. For how many are the nearest embeddings exactly the tokens
#    of their block? For how many is the block itself the nearest of all blocks that occur? A list of nearest
#    tokens that shows nothing does not prove that nothing is there.
#
# ## Next
# Supervised training imitates given chains. CoLaR's second half rewards correct answers, whatever the
# latents. For that it needs the probability of a *vector*. **And here a detail of one line decides: which
# ratio is a likelihood ratio?** → [11 · RL on latents](11_rl.ipynb)
