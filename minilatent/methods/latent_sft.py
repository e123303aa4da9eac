"""Latent-SFT: a latent is a superposition of the vocabulary, z = Σ_j α_j e_j over the k likeliest tokens.

Deng et al., "Latent Reasoning in LLMs as a Vocabulary-Space Superposition", arXiv 2510.15522 (v2: "LLM Latent
Reasoning as Chain of Superposition", which adds the Gumbel noise). The chain is cut into N = ⌈T/r⌉ segments S_1..S_N.

Stage 1 makes a latent for each segment. An encoder reads the chain, a decoder has to continue from the latents:

    encoder   Q <think> S_1 L S_2 L .. S_N L </think>              under the induction mask (LTIM)
              α_i = softmax of the top k of h(L_i) · Wᵀ,  z_i = Σ_j α_ij e_j        W: the decoder's embeddings e_j
    decoder   Q <think> Z_1 S_2 Z_2 S_3 .. Z_N </think> answer     under the supervision mask (LTSuM)
    L_sup     cross-entropy of each S_{i+1} given Z_i, and of </think>, answer, <eos>
    phases    1 the encoder learns, 2 the decoder, 3 both; each from the best of the one before

The trained encoder then labels the training set: k probabilities and ids a latent. It is thrown away.

Stage 2 teaches the decoder to produce the chain by itself, in one parallel forward over given latents:

    input     Q <think> z_1 .. z_N </think> answer <eos>           causal, ordinary positions
    L_auto    λ · mean over latents KL(α_t ‖ q_t)  +  β · mean over </think>, answer, <eos> of -log q_t[y_t]

    python train.py --method latent_sft [--ratio 4] [--gumbel] [--no-ltim] [--no-ltsum] [--latent hidden]

Segments are of fixed length, as in the paper, or with `--segmentation step` the chain's own steps, or with `adaptive` as
many as fixed ones but cut so that each holds about the same information (our design; the paper names it as future work).

Where we differ, and why:
  - `--pull`: stage 1 also pulls the encoder's full softmax at L_i towards the uniform mixture of its segment's
    tokens, with a weight that goes from `pull` to `pull_end`. Without it (both 0, the paper's recipe) a small model
    invents almost one-hot codes of its own, which stage 2 learns slowly. A hidden state is pulled to that mixture's
    embedding, so that the ablation has the same help.
  - L_sup is averaged inside each target block, then over blocks (v1's text; the release averages over all tokens).
  - A phase's best checkpoint is chosen on validation (the authors' README recommends the test file).
  - Everything is batched; the release builds masks and embeddings one sample at a time.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import checkpoint, parallel
from ..batch import Row, cut_chain, cut_evenly, encode, pad
from ..decode import decode, hidden_thinker, standardise, superposition_thinker
from ..evaluate import accuracy
from ..latent import gumbel_noise, mix, superpose
from ..losses import cross_entropy, cross_entropy_by_block, log_not, mean, sparse_kl
from ..masks import (
    LATENT,
    PAD,
    PREFIX,
    TAIL,
    TEXT,
    Layout,
    causal,
    dual_track_positions,
    induction_mask,
    supervision_mask,
)
from ..tasks.answers import Example, is_correct
from .method import Batch, Method, Stage


class LatentSFT(Method):
    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        self.encoder = None  # exists in stage 1 only
        self.hidden = config.latent == "hidden"  # the ablation: no projection on the vocabulary

    @property
    def mixed(self) -> bool:
        return not self.hidden

    def thinker(self):
        if self.hidden:
            return hidden_thinker(self.model)
        return superposition_thinker(self.model, self.config.k, self.tok.never)

    # ------------------------------------------------------------------ segments

    def segments(self, row: Row) -> list[list[int]]:
        return cut_chain(row, self.config.segmentation, self.config.ratio)

    @torch.no_grad()
    def cut(self, rows: list[Row]) -> list[Row]:
        """`--segmentation adaptive`, before anything is trained: ⌈T/r⌉ segments a chain that hold about the same
        information, so many tokens where they are foreseen and few where they surprise. A token weighs half its share of
        the chain's surprise -log p(c_t | Q <think> c_1 .. c_(t-1)) under the initial model, half its share of the
        length, because a latent has to hold what is foreseen, too. Rows already cut are left alone."""
        todo = sorted((r for r in rows if not r.cuts), key=lambda r: len(r.question) + len(r.chain))
        if self.config.segmentation != "adaptive" or not todo:
            return rows
        self.eval()
        for at in range(0, len(todo), self.config.eval_batch):
            batch = todo[at : at + self.config.eval_batch]
            layouts = [
                Layout.of((r.question + [self.tok.think], PREFIX, 0), (r.chain, TEXT, 0)) for r in batch
            ]
            ids, kind = self.on_device(self.tensors(layouts), "ids", "kind")
            chain = kind[:, 1:] == TEXT  # (B, T - 1)
            with self.autocast():
                logits = self.model.logits(self.model(ids)[:, :-1][chain]).float()  # (n, V)
            length = chain.sum(1)  # (B,)
            surprise = F.cross_entropy(logits, ids[:, 1:][chain], reduction="none")
            surprise = pad_sequence(surprise.split(length.tolist()), True)  # (B, longest chain)
            real = torch.arange(surprise.shape[1], device=ids.device) < length[:, None]
            average = (surprise.sum(1) / length.clamp(min=1)).clamp(min=1e-9)[:, None]
            weight = (surprise / average + 1) * real
            for row, cuts in zip(batch, cut_evenly(weight, length, -(-length // self.config.ratio))):
                row.cuts = cuts
        return rows

    # ------------------------------------------------------------------ inputs

    def encoder_layout(self, row: Row) -> Layout:
        """Q <think> S_1 L S_2 L .. S_N L </think>"""
        pieces = [(row.question + [self.tok.think], PREFIX, 0)]
        for i, segment in enumerate(self.segments(row), 1):
            pieces += [(segment, TEXT, i), ([self.tok.latent], LATENT, i)]
        return Layout.of(*pieces, ([self.tok.end_think], TAIL, 0))

    def decoder_layout(self, row: Row) -> Layout:
        """Q <think> Z_1 S_2 Z_2 S_3 .. S_N Z_N </think> answer <eos>"""
        pieces = [(row.question + [self.tok.think], PREFIX, 0)]
        for i, following in enumerate(self.segments(row)[1:] + [[]], 1):
            pieces += [([self.tok.latent], LATENT, i), (following, TEXT, i)]
        return Layout.of(*pieces, ([self.tok.end_think, *row.answer], TAIL, 0))

    def student_layout(self, row: Row, closed_only: bool = False) -> Layout:
        """Q <think> z_1 .. z_N </think> answer <eos>, or only as far as </think>"""
        n = len(self.segments(row))
        return Layout.of(
            (row.question + [self.tok.think], PREFIX, 0),
            ([self.tok.latent] * n, LATENT, 0),
            ([self.tok.end_think] + ([] if closed_only else row.answer), TAIL, 0),
        )

    # ------------------------------------------------------------------ stage 1

    def collate1(self, rows: list[Row], rng=None) -> Batch:
        return {
            **self.tensors([self.encoder_layout(r) for r in rows]),
            **self.tensors([self.decoder_layout(r) for r in rows], "decoder_"),
        }

    def induce(self, ids: Tensor, kind: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """The encoder's latents in reading order: z (n, C), (α, ids) (n, k), and the logits behind them (n, V)."""
        mask = induction_mask(kind) if self.config.ltim else causal(kind)
        h = self.encoder(ids, mask=mask)[kind == LATENT]  # (n, C)
        W = self.model.embed.weight.detach()
        if self.hidden:
            return standardise(h, W), None, None
        logits = (h @ W.T).float()  # (n, V): no head of its own
        z, probs, top = superpose(logits, W, self.config.k, self.tok.never)
        return z, (probs, top), logits

    def loss1(self, batch: Batch, noise: torch.Generator, progress: float):
        z, _, logits = self.induce(batch["ids"], batch["kind"])  # (n, C), (n, V)

        ids, kind, block = batch["decoder_ids"], batch["decoder_kind"], batch["decoder_block"]  # (B, T)
        mask = supervision_mask(kind, block) if self.config.ltsum else causal(kind)
        h = self.model(embeds=self.embed_with(ids, kind, z), mask=mask, positions=dual_track_positions(kind))
        # Labels: the next token, if it is text of the chain or the tail. Z_N says </think>; a segment's last
        # token and <think> are followed by a latent and say nothing.
        labelled = (kind[:, 1:] == TEXT) | (kind[:, 1:] == TAIL)  # (B, T - 1)
        # A target block is one S_{i+1}, or the tail (block 0) of one row.
        per_row = int(block.max()) + 1
        target = block[:, 1:] + per_row * torch.arange(len(block), device=block.device)[:, None]
        loss = cross_entropy_by_block(
            self.model.logits(h[:, :-1][labelled]),
            ids[:, 1:][labelled],
            target[labelled],
            per_row * len(block),
        )  # L_sup

        logged = {"sup": loss.item()}
        weight = self.config.pull + (self.config.pull_end - self.config.pull) * progress
        if weight > 0 and z.requires_grad:  # not while the encoder is frozen
            probs, top = self.segment_mixture(batch["ids"], batch["kind"], batch["block"])
            W = self.model.embed.weight.detach()
            pull = (
                self.squared_error(z, standardise(mix(probs, top, W), W))
                if self.hidden
                else sparse_kl(logits, probs, top)
            )
            logged["pull"] = pull.item()
            loss = loss + weight * pull
        return loss, logged

    def segment_mixture(self, ids: Tensor, kind: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """The uniform mixture of S_i for every latent: probabilities and ids (n, r), r tokens in the longest segment,
        0 where one is shorter. In the encoder's input the r positions before an L are its segment's, unless they are
        another block's."""
        row, at = (kind == LATENT).nonzero(as_tuple=True)  # (n,), (n,)
        longest = int(((block[row] == block[row, at][:, None]) & (kind[row] == TEXT)).sum(1).max())
        back = at[:, None] - torch.arange(longest, 0, -1, device=ids.device)  # (n, r)
        mine = (block[row[:, None], back] == block[row, at][:, None]) & (kind[row[:, None], back] == TEXT)
        return mine / mine.sum(-1, keepdim=True), ids[row[:, None], back]

    @torch.no_grad()
    def compression_accuracy(self, val: list[Example], rows: list[Row] | None = None) -> dict[str, float]:
        """Is the answer right when the decoder runs freely from the encoder's latents of the *gold* chain? That
        measures compression, not reasoning: the gold chain holds the answer. rows: those of val, encoded and cut."""
        self.eval()
        rows = rows or self.gold(val)
        right, val, rows = 0, parallel.shard(val), parallel.shard(rows)
        for at in range(0, len(val), self.config.eval_batch):
            examples, gold = val[at : at + self.config.eval_batch], rows[at : at + self.config.eval_batch]
            z = self.induce(
                *self.on_device(self.tensors([self.encoder_layout(r) for r in gold]), "ids", "kind")
            )[0]
            out = self.answer_given(gold, z)
            right += sum(is_correct(a, e.answer) for a, e in zip(out.answers, examples))
        return parallel.average({"compression": right / max(len(val), 1)}, len(val))

    def gold(self, examples: list[Example]) -> list[Row]:
        return self.cut(encode(examples, self.tok, self.model.config.context, "error")[0])

    def answer_given(self, rows: list[Row], z: Tensor):
        """Decode the answers of rows whose latents (n, C), in reading order, are given."""
        layouts = [self.student_layout(r, closed_only=True) for r in rows]
        ids, kind = self.on_device(self.tensors(layouts), "ids", "kind")
        return decode(
            self.model,
            self.tok,
            self.embed_with(ids, kind, z),
            (kind != PAD).sum(1),
            None,
            max_answer=self.config.max_answer,
        )

    def on_device(self, batch: Batch, *names: str) -> tuple[Tensor, ...]:
        return tuple(batch[n].to(self.device) for n in names)

    # ------------------------------------------------------------------ soft labels

    @torch.no_grad()
    def soft_labels(self, rows: list[Row]) -> dict[str, Tensor]:
        """The encoder's latents of all rows: `probs` and `ids` (n, k), or `states` (n, C), of unit variance, for the
        hidden-state ablation; `start` and `count` (rows,) where a row's begin and how many it has. Computed once, kept beside the
        run."""
        path = self.folder / "state" / "labels.safetensors" if self.folder else None
        if path and path.exists():
            return checkpoint.load_tensors(path)[0]
        self.eval()
        # Equal lengths side by side: little padding. The longest first: what a batch has freed is large enough for the next.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].question) - len(rows[i].chain))
        places = self.places(rows, order)
        model, n, batch = self.model.config, int(places["count"].sum()), self.config.batch_size
        k = min(self.config.k, model.vocab_size - len(self.tok.never))
        stored = (
            {"states": torch.zeros(n, model.width, dtype=torch.half)}
            if self.hidden
            else {"probs": torch.zeros(n, k, dtype=torch.half), "ids": torch.zeros(n, k, dtype=torch.int)}
        )
        for at in parallel.shard(range(0, len(rows), batch)):  # the other batches are other processes'
            chosen = order[at : at + batch]
            layouts = [self.encoder_layout(rows[i]) for i in chosen]
            with self.autocast():  # as the encoder was trained
                z, sparse, _ = self.induce(*self.on_device(self.tensors(layouts), "ids", "kind"))
            found = (
                {"states": (z / self.model.embed.weight.std()).half()}
                if self.hidden
                else {"probs": sparse[0].half(), "ids": sparse[1].int()}
            )
            start = int(places["start"][chosen[0]])
            for name, tensor in found.items():
                stored[name][start : start + len(tensor)] = tensor.cpu()
        stored = {name: parallel.total(tensor) for name, tensor in stored.items()} | places
        if path and parallel.rank() == 0:
            checkpoint.save_tensors(path, stored)
        return stored

    def places(self, rows: list[Row], order: list[int]) -> dict[str, Tensor]:
        """Where each row's latents begin, and how many they are, when the rows stand in this order."""
        count = torch.tensor([len(self.segments(r)) for r in rows])
        start = torch.empty_like(count)
        start[order] = count[order].cumsum(0) - count[order]
        return {"start": start, "count": count}

    def uniform_labels(self, rows: list[Row]) -> dict[str, Tensor]:
        """Labels without an encoder (`--labels uniform`): every latent the uniform mixture of its segment's tokens."""
        ids = pad([s for r in rows for s in self.segments(r)], self.tok.pad)  # (n, r)
        real = ids != self.tok.pad
        return {
            "probs": real / real.sum(-1, keepdim=True),
            "ids": ids.int(),
            **self.places(rows, list(range(len(rows)))),
        }

    # ------------------------------------------------------------------ stage 2

    def collate2(self, items: list[int], rng=None) -> Batch:
        rows = [self.train_rows[i] for i in items]
        batch = self.tensors([self.student_layout(r) for r in rows])
        start, count = self.labels["start"][items], self.labels["count"][items]
        take = torch.cat([torch.arange(s, s + n) for s, n in zip(start, count)])  # (n,) latents of this batch
        batch["chain"] = torch.repeat_interleave(torch.arange(len(items)), count)
        for name in ("probs", "ids", "states"):
            if name in self.labels:
                label = self.labels[name][take]
                batch["label_" + name] = label.long() if name == "ids" else label.float()
        return batch

    def loss2(self, batch: Batch, noise: torch.Generator, progress: float):
        config, ids, kind = self.config, batch["ids"], batch["kind"]  # (B, T)
        if self.hidden:
            std = (
                self.model.embed.weight.detach().std()
            )  # today's, as at inference: stage 2 trains the embeddings
            z = batch["label_states"] * std  # (n, C)
        else:
            probs, top = batch["label_probs"], batch["label_ids"]  # (n, k)
            if config.gumbel:
                probs = gumbel_noise(
                    probs,
                    top,
                    batch["chain"],
                    self.tok.end_think,
                    noise,
                    config.gumbel_scale,
                    config.gumbel_tau,
                )
            z = mix(probs, top, self.model.embed.weight)
        h = self.model(embeds=self.embed_with(ids, kind, z))  # (B, T, C)
        before_latent, before_tail = kind[:, 1:] == LATENT, kind[:, 1:] == TAIL  # (B, T - 1)
        tail = self.model.logits(h[:, :-1][before_tail])
        ce = cross_entropy(tail, ids[:, 1:][before_tail])
        ahead = h[:, :-1][before_latent]  # (n, C): these predict a latent
        logits = self.model.logits(ahead)  # (n, V)
        if self.hidden:
            # The head learns "not yet".
            latent = self.squared_error(standardise(ahead, self.model.embed.weight), z) - mean(
                log_not(logits, self.tok.end_think)
            )
        else:
            latent = sparse_kl(logits, probs, top)
        loss = config.kl_weight * latent + config.ce_weight * ce  # L_auto
        return loss, {"kl": latent.item(), "ce": ce.item()}

    def squared_error(self, states: Tensor, others: Tensor) -> Tensor:
        """The mean over latents and width of two standardised (n, C), in units of the embeddings' std."""
        return mean(((states - others) / self.model.embed.weight.detach().std()).pow(2))

    # ------------------------------------------------------------------ the whole

    def stages(self, train: list[Row], val: list[Example]) -> Iterator[Stage]:
        self.cut(train)
        if self.config.labels == "encoder":
            yield from self.stage1(train, val)
        self.train_rows = train
        self.labels = self.soft_labels(train) if self.encoder else self.uniform_labels(train)
        self.encoder = None
        yield Stage(
            "stage2",
            range(len(train)),
            [len(self.student_layout(r).ids) for r in train],
            self.collate2,
            self.loss2,
            [self.model],
            self.config.steps,
            self.config.lr,
            lambda: accuracy(self, val),
        )

    def stage1(self, train: list[Row], val: list[Example]) -> Iterator[Stage]:
        config = self.config
        steps = [int(s) for s in config.stage1_steps.split(",")]
        rows = self.gold(val)  # cut by the initial model, as the training rows are
        self.encoder = copy.deepcopy(self.model)
        tokens = [len(self.decoder_layout(r).ids) for r in train]
        trained = {"encoder": [self.encoder], "decoder": [self.model], "both": [self.encoder, self.model]}
        # AdamW whatever --optimizer says: stage 1 has few steps to adapt a model that can read already, and Muon, which
        # moves a matrix in all its directions at once, first breaks that.
        for i, (phase, modules) in enumerate(trained.items()):

            def loss(batch, noise, progress, i=i):  # progress over the whole of stage 1
                return self.loss1(batch, noise, (sum(steps[:i]) + progress * steps[i]) / max(1, sum(steps)))

            yield Stage(
                f"stage1-{phase}",
                train,
                tokens,
                self.collate1,
                loss,
                modules,
                steps[i],
                config.stage1_lr or config.lr,
                lambda: self.compression_accuracy(val, rows),
                optimizer="adamw",
            )

    def plan(self, train: list[Row]):
        self.cut(train[:1000])
        mean = lambda layout: sum(len(layout(r).ids) for r in train[:1000]) / max(1, len(train[:1000]))
        both = mean(self.encoder_layout) + mean(self.decoder_layout)
        names = ("stage1-encoder", "stage1-decoder", "stage1-both")
        about = (
            "learns latents that a frozen decoder can continue from",
            "learns to read the encoder's latents",
            "encoder and decoder together",
        )
        stage1 = [(n, int(s), both, t) for n, s, t in zip(names, self.config.stage1_steps.split(","), about)]
        if self.config.labels == "uniform":
            stage1 = []
        return [
            *stage1,
            (
                "stage2",
                self.config.steps,
                mean(self.student_layout),
                "the model learns to produce the chain itself",
            ),
        ]
