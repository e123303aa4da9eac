"""Question -> thinking -> collapse -> answer: one loop for every method, batched, with a KV cache.

Every row is in one of two phases. While it thinks, a *thinker* says what is fed next: a token's embedding
(explicit CoT) or a latent. The phase ends by itself (the *collapse*) when the model's most likely token is
`</think>`, or after a fixed number of steps: that is fed, and from then on tokens are decoded until `<eos>`.
Rows of a batch are in different phases at one time; they never see each other.

    row 1   Q <think> z z z z </think> 4 2 <eos>
    row 2   Q Q Q <think> z z </think> 7 <eos>

b counts the rows that are not finished; `rows` (b,) says which of the B they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import KVCache, prefill
from .fast import OneToken
from .latent import gumbel, superpose
from .losses import wide
from .model import Transformer
from .tokenizer import Tokenizer

# (logits (b, V) with the impossible tokens at -inf, hidden (b, C)) -> what is fed next, (b, C). A sampling
# thinker may return a tuple: what is fed, and what is to be kept of the sample, (b, ..) each.
Thinker = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]


def explicit_thinker(model: Transformer) -> Thinker:
    """Feed the most likely token: chain-of-thought in words."""
    return lambda logits, hidden: model.embed(logits.argmax(-1))


def superposition_thinker(model: Transformer, k: int, never: list[int], temperature: float = 1.0) -> Thinker:
    """Feed the mixture of the k most likely tokens' embeddings (Latent-SFT)."""
    banned = torch.tensor(never, dtype=torch.long, device=model.embed.weight.device)
    return lambda logits, hidden: superpose(logits / temperature, model.embed.weight, k, banned)[0]


def hidden_thinker(model: Transformer) -> Thinker:
    """Feed the last hidden state, standardised to the embeddings' scale."""
    return lambda logits, hidden: standardise(hidden, model.embed.weight)


def standardise(hidden: Tensor, embedding: Tensor) -> Tensor:
    """(..., C): zero mean and unit variance over the width, times the embedding table's std."""
    hidden = hidden - hidden.mean(-1, keepdim=True)
    return hidden / (hidden.std(-1, keepdim=True) + 1e-6) * embedding.detach().std()


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token from the softmax of each row (b, V): the most likely after Gumbel noise."""
    return (logits + gumbel(logits.shape, generator).to(logits.device)).argmax(-1)


@dataclass
class Decoded:
    """What came out for B questions; N = the longest chain of the batch."""

    lengths: Tensor  # (B,) #L: latents, or chain tokens; markers not counted
    answers: list[str]
    tokens: Tensor  # (B, max_answer) the answers, padding after <eos>
    chain: Tensor | None = None  # (B, N) most likely token at each step, padding after lengths
    latents: Tensor | None = None  # (B, N, C) what was fed
    probs: Tensor | None = None  # (B, N, V) the model's distribution at each step
    sampled: tuple[Tensor, ...] = ()  # (B, N, ..) what a sampling thinker wants kept
    closed: Tensor = field(default_factory=lambda: torch.tensor([]))  # (B,) ended by itself, not by max_chain


@torch.no_grad()
def decode(
    model: Transformer,
    tok: Tokenizer,
    prefix: Tensor,
    lengths: Tensor,
    think: Thinker | None,
    max_chain: int = 64,
    max_answer: int = 16,
    min_chain: int = 0,
    keep_probs: bool = False,
    sample_end: torch.Generator | None = None,
    sample_answer: torch.Generator | None = None,
    end_temperature: float = 1.0,
    samples: int = 1,
) -> Decoded:
    """Decode greedily from `prefix` (Q, T, C): input embeddings, lengths[q] of them real, the rest padding.

    think            None: the prefix is closed already (it ends with `</think>`), go straight to the answer
    max_chain        a chain that long is closed by force
    min_chain        shortest chain; min_chain = max_chain: a fixed number of steps
    keep_probs       also keep every step's distribution over the vocabulary (B · N · V numbers)
    sample_end, sample_answer    sample the end of the chain, or the answer, from the model's distribution;
                     generators on the CPU, so that a seed means the same on every device
    end_temperature  of sample_end's distribution
    samples          samples per prefix, which is read once for all of them: B = Q · samples rows
    """
    (Q, T, C), device = prefix.shape, prefix.device
    B = Q * samples
    look_every = model.fast.look_every if model.fast else 1
    cache = KVCache(model.config, Q, T + max_chain + max_answer + 2, device, prefix.dtype)
    hidden, rows = prefill(model, prefix, lengths, cache)  # (Q, C), and each living row's question (Q,)
    if samples > 1:
        index = torch.arange(B, device=device)
        question = index // samples  # (B,) of each sample
        cache.select(question)
        hidden, rows = hidden[question], rows[question] * samples + index % samples  # (B, C), (B,)
    thinking = torch.full((B,), think is not None, device=device)
    count, written = torch.zeros(2, B, dtype=torch.long, device=device)  # steps of thinking, answer tokens
    closed, done = torch.zeros(2, B, dtype=torch.bool, device=device)
    tokens = torch.full((B, max_answer), tok.pad, device=device)
    never = torch.tensor(tok.never, device=device)
    steps = []  # of thinking: (rows, which of them go on, token, fed, probs, sampled)
    forward = OneToken(model, cache, fixed=look_every > 1)

    for step in range(1, max_chain + max_answer + 2):  # by then all have an answer
        logits = wide(model.logits(hidden))  # (b, V)
        logits[:, never] = float("-inf")
        likeliest = logits.argmax(-1)  # (b,)
        in_chain = likeliest if sample_end is None else sample(logits / end_temperature, sample_end)
        in_answer = likeliest if sample_answer is None else sample(logits, sample_answer)
        token = torch.where(thinking, in_chain, in_answer)
        ends = (token == tok.end_think) & (count[rows] >= min_chain)
        if min_chain == max_chain:  # that many steps are the chain's end, not a cut
            ends = count[rows] == max_chain
        collapse = thinking & ends  # the chain ends by itself; at max_chain it is cut off
        goes_on = thinking & ~collapse & (count[rows] < max_chain)
        closed[rows] |= collapse
        token = torch.where(thinking & ~goes_on, tok.end_think, token)
        feed = model.embed(token)  # (b, C)
        if think is not None and (look_every > 1 or goes_on.any()):  # (any() makes it wait, too)
            thought = think(logits, hidden)
            fed, *sampled = thought if isinstance(thought, tuple) else (thought,)
            feed = torch.where(goes_on[:, None], fed.to(feed.dtype), feed)
            probs = logits.softmax(-1).float().cpu() if keep_probs else None
            steps.append((rows, goes_on, token, feed, probs, sampled))
            count[rows] += goes_on

        answering = ~thinking & ~done  # these write an answer token now
        place = rows, written[rows].clamp(max=max_answer - 1)
        tokens[place] = torch.where(answering, token, tokens[place])
        written[rows] += answering
        done = done | answering & ((token == tok.eos) | (written[rows] == max_answer))
        thinking = goes_on
        if step % look_every == 0:  # looking makes the CPU wait for a GPU
            if done.all():
                break
            alive = cache.drop(done)  # finished rows cost no more
            rows, feed, thinking, done = rows[alive], feed[alive], thinking[alive], done[alive]
        hidden = forward(feed)  # (b, C)

    answers = [tok.decode(row) for row in tokens.tolist()]
    out = Decoded(count, answers, tokens, closed=closed)
    if think is not None:
        N = int(count.max())
        out.chain = torch.full((B, N), tok.pad, device=device)
        out.latents = torch.zeros(B, N, C, dtype=prefix.dtype, device=device)
        out.probs = torch.zeros(B, N, model.config.vocab_size) if keep_probs else None
        out.sampled = tuple(x.new_zeros(B, N, *x.shape[1:]) for x in (steps[0][-1] if steps else ()))
        for n, (rows, on, token, feed, probs, sampled) in enumerate(steps[:N]):  # n: the place in the chain
            on = on.nonzero()[:, 0]
            row = rows[on]
            out.chain[row, n], out.latents[row, n] = token[on], feed[on]
            for kept, x in zip(out.sampled, sampled):
                kept[row, n] = x[on]
            if keep_probs:
                out.probs[row.cpu(), n] = probs[on.cpu()]
    return out
