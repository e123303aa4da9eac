# %% [markdown]
# # 8 · Decoding and the collapse
#
# *30 minutes. Needs: lessons 4 and 7. Uses the committed checkpoint `tutorials/checkpoints/latent_sft` (r =
# 2).*
#
# At inference nobody provides latents. The model reads the question and feeds back its own superpositions
# until, at some step, its most likely token is `</think>`. This token is fed as an ordinary token, and from
# then on the model writes words: the chain **collapses** into an answer.
#
# ```
#   Q Q Q <think>   z_1 ─> z_2 ─> .. ─> z_N    argmax = </think>   ─>  20  <eos>
#                   └─ superpositions ────┘    └─ the collapse ─┘      └ words ┘
# ```

# %%
import torch
from aligned_figure import aligned_figure
from lesson import BASE, BLUE, LATENT_SFT, ORANGE, RED, plt, show

from minilatent import tasks
from minilatent.evaluate import solve_all, solve_batches, wilson
from minilatent.latent import superpose
from minilatent.run import load_run
from minilatent.study.figures import chain_figure
from minilatent.study.interventions import answers_given
from minilatent.study.trace import describe, trace
from minilatent.tasks.answers import is_correct

method = load_run(LATENT_SFT, torch.device("cpu"))
model, tok = method.model, method.tok
question = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. "
    "Ben has 7 apples. Ben buys 9 more. How many have Ava and Ben together?"
)

# %% [markdown]
# ## The loop, written out
#
# One question, no cache, no tricks. Compare it with lesson 2: only what is fed during thinking has changed.


# %%
@torch.no_grad()
def my_think(question, most=64):
    x = model.embed(torch.tensor(method.prompt(question)))  # (T, C)
    latents, chain, answer, thinking = [], [], [], True
    while thinking or (answer[-1:] != [tok.eos] and len(answer) < 16):
        logits = model.logits(model(embeds=x[None])[0, -1])  # (V,)
        logits[tok.never] = float("-inf")
        token = int(logits.argmax())
        if thinking and token != tok.end_think and len(latents) < most:
            feed = superpose(logits, model.embed.weight, method.config.k, tok.never)[0]
            latents.append(feed)
            chain.append(token)  # the most likely token, only for display
        elif thinking:
            thinking, feed = False, model.embed.weight[tok.end_think]  # the collapse
        else:
            answer.append(token)
            feed = model.embed.weight[token]
        x = torch.cat([x, feed[None]])
    return latents, chain, tok.decode(answer)


latents, chain, answer = my_think(question)
print(len(latents), "latents; their most likely tokens:", [tok.name(i) for i in chain], "-> answer", answer)
out = method.solve([question])  # batched, with a cache
assert int(out.lengths) == len(latents) and out.answers[0] == answer
assert torch.allclose(torch.stack(latents), out.latents[0], atol=1e-3)

# %% [markdown]
# ## The paper's Figure 1, from a trained model
#
# `trace` keeps the distribution of every step. Each column is a step, its k most likely tokens stand below
# one another, and the orange curve is the entropy. (`python sample.py --ckpt RUN --figure chain.png` draws
# the same for any run and question.)

# %%
t = trace(method, question)
print(describe(t, tok))
show(chain_figure(t, tok), "08-figure1")

# %% [markdown]
# The same question in words, as mini-base thinks it, above its latents:

# %%
base = load_run(BASE, torch.device("cpu"))
in_words = trace(base, question)
show(aligned_figure(in_words, t, tok, method.ratio), "08-aligned")

# %% [markdown]
# Read it from left to right: each latent contains two tokens of the chain side by side, `12` with `*`, then
# `3` with `=`. The correct answer is 20, the model's is `20`<!-- t.answer:s -->. The chain in words has
# 24<!-- len(in_words.chain):d --> tokens, that of latents 12<!-- len(t.chain):d --> steps. Is the order lost?
# Within a latent, yes, but the model does not need it: of the two, the number always comes first. (In step 10
# two amounts are added, and either may come first, as in lesson 2: the latent contains some of both.)
#
# ## How good, how long?

# %%
test = tasks.load("mini", "test", limit=300)
words, latent = solve_all(base, test), solve_all(method, test)
for name, r in (("words", words), ("latents", latent)):
    low, high = wilson(round(r["accuracy"] * r["n"]), r["n"])
    print(f"{name:8s} {r['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%})   #L {r['mean_len']:.1f}")
ratio = words["mean_len"] / latent["mean_len"]
assert 1.7 < ratio < 2.3

# %% [markdown]
# Words: 98.0 %<!-- words["accuracy"]:.1% --> correct with #L 25.3<!-- words["mean_len"]:.1f -->. Latents:
# 93.3 %<!-- latent["accuracy"]:.1% --> with #L 12.7<!-- latent["mean_len"]:.1f -->. So the chain is
# 2.0<!-- ratio:.1f --> times shorter, about r times, and this costs some accuracy. Whether that is a good
# trade is the question of the field. A fair comparison gives every method the same amount of training
# (`python -m results.comparison`).
#
# ## When does it collapse?
#
# Nobody tells the model how many latents to produce: `</think>` competes with all other tokens at each step.
# Here is its probability along the chain:

# %%
ends, right, wrong = [], [], []
for chosen, out, _ in solve_batches(method, test[:100], keep_probs=True):
    for b, i in enumerate(chosen):
        n = int(out.lengths[b])
        p = out.probs[b, :n, tok.end_think]
        (right if is_correct(out.answers[b], test[i].answer) else wrong).append(p)
figure, ax = plt.subplots(figsize=(8, 3.4))
looks = (dict(color=BLUE, alpha=0.25), dict(color=RED, linestyle="--"))
for group, look, name in zip((right, wrong), looks, ("correct answer", "wrong answer")):
    for p in group:
        ax.plot(range(-len(p), 0), p.clamp(min=1e-8), linewidth=1, **look)
    ax.plot([], [], **{**look, "alpha": 1}, label=name)
ax.set(xlabel="steps before the collapse", ylabel="p(</think>), log scale", ylim=(1e-8, 3), yscale="log")
ax.set_title("Is the model ever in doubt whether to continue?")
ax.legend(loc="upper left")
show(figure, "08-end")
doubts = sum(bool((p > 0.1).any()) for p in right + wrong)
print(f"{doubts} of {len(right + wrong)} chains: p(</think>) above 0.1 at a step before the collapse")

# %% [markdown]
# In 0<!-- doubts:d --> of 100<!-- len(right + wrong):d --> chains, `</think>` had a probability above 0.1
# before the last latent. Now we end the chain by force, too early or too late. The answer is decoded from
# `Q <think> Z' </think>`, where Z' consists of the model's first n latents, or of all of them with the last
# one repeated:
#
# <!-- allow: 0.1 -->

# %%
some, results = test[:150], {}
_, out, _ = next(solve_batches(method, some, batch=150))
order = sorted(range(len(some)), key=lambda i: len(some[i].question))  # solve_batches' order
asked = [some[i].question for i in order]
for change in (-6, -3, -2, -1, 0, 1, 2, 3):  # a step is three latents
    steps = (out.lengths + change).clamp(min=0)
    last = (out.lengths[:, None] - 1).clamp(min=0)
    at = torch.arange(int(steps.max())).minimum(last)  # after the end: the last latent again
    z = out.latents.gather(1, at[:, :, None].expand(-1, -1, out.latents.shape[2]))
    answers = answers_given(method, asked, z, steps)
    results[change] = sum(is_correct(a, some[i].answer) for a, i in zip(answers, order)) / len(some)
print({k: round(v, 3) for k, v in results.items()})
figure, ax = plt.subplots(figsize=(7, 3.2))
names = [f"{k:+d}" if k else "its own" for k in results]
ax.bar(names, [100 * v for v in results.values()], color=[ORANGE if k else BLUE for k in results])
ax.set(xlabel="latents removed or added at the end", ylabel="correct answers (%)", ylim=(0, 100))
ax.set_title("Collapse by force")
show(figure, "08-force")
assert results[0] > results[-3] + 0.3

# %% [markdown]
# Without its last three latents, a whole step, the model answers 0 %<!-- results[-3]:.0% --> correctly, and
# without the last one 3 %<!-- results[-1]:.0% -->: that one contains the result. On its own it answers
# 93 %<!-- results[0]:.0% -->, and with one too many 93 %<!-- results[1]:.0% -->. The answer is read from the
# last latent.
#
# Try it on one question. The [playground](../playground/index.html#sel=L12), a file to open in a browser,
# shows the chain of above; here it is
# [closed three latents too early](../playground/index.html#sel=L9&cut=9).
#
# ## Exercises
# 1. In `my_think`, feed the *embedding of the most likely token* instead of the superposition
#    (`feed = model.embed.weight[token]`). Is the answer still correct?
#    (Lesson 13's `top1` is another test: it replaces the latents after thinking. Why can the results differ?)
# 2. Write `my_think` with a KV cache. What does the cache hold for a latent that it would not hold for a
#    word? (Trick question.)
# 3. Put a sentence that does not matter into the question, at several places: `Ben is 9 years old.`, then
#    `Ava has 5 pears.` Which of them misleads the model, and at which step do you see it?
#
# ## Next
# A superposition needs a softmax and a teacher. There is a more direct way to turn r tokens into one vector:
# add up their embeddings. **What is the right scale of a sum?** → [9 · Merging embeddings](09_merging.ipynb)
