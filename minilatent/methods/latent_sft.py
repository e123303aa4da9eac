"""Latent-SFT: a latent is a superposition of the vocabulary, z = Σ_j α_j e_j over the k most likely tokens.

Deng et al., "Latent Reasoning in LLMs as a Vocabulary-Space Superposition", arXiv 2510.15522 (v2: "LLM Latent
Reasoning as Chain of Superposition", which adds the Gumbel noise). The chain is cut into N = ⌈T/r⌉ segments
S_1..S_N of r tokens.

Stage 1 makes a latent for each segment. An encoder reads the chain, a decoder continues from the latents:

    encoder   Q <think> S_1 L S_2 L .. S_N L </think>              under the induction mask (LTIM)
              α_i = softmax of the top k of h(L_i) · Wᵀ            W: the decoder's embeddings e_j
              z_i = Σ_j α_ij e_j
    decoder   Q <think> z_1 S_2 z_2 S_3 .. z_N </think> answer     under the supervision mask (LTSuM)
    L_sup     cross-entropy of each S_{i+1} given z_i, and of </think>, answer, <eos>
    phases    1 the encoder learns, 2 the decoder, 3 both; each from the best of the one before

The trained encoder then labels the training set, k probabilities and ids per latent, and is dropped.

Stage 2 teaches the decoder to produce the chain by itself, in one parallel forward pass over given latents:

    input     Q <think> z_1 .. z_N </think> answer <eos>           causal, ordinary positions
    L_auto    λ · mean over latents KL(α_t ‖ q_t)  +  β · mean over </think>, answer, <eos> of -log q_t[y_t]
              q_t: the model's distribution right before place t; y_t: the token that stands there

    python train.py --method latent_sft [--ratio 4] [--gumbel] [--no-ltim] [--no-ltsum] [--latent hidden]

Where we differ, and why:
  - `--pull`: stage 1 also pulls the encoder's full softmax at L_i towards the uniform mixture of its
    segment's tokens. Without it (0, the paper's recipe) a small model invents almost one-hot codes of its
    own, which stage 2 learns slowly.
  - L_sup is averaged inside each target block, then over blocks (v1's text; the authors' release: over
    tokens).
  - A phase's best checkpoint is chosen on validation (the authors' README recommends the test file).
  - Everything is batched; the release builds masks and embeddings one sample at a time.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checkpoint, masks
from ..batch import Batch, Row, encode, pad, segments
from ..config import Config, UserError, opt
from ..decode import decode, superposition_thinker
from ..latent import gumbel_noise, mix, superpose
from ..losses import cross_entropy, cross_entropy_by_block, sparse_kl
from ..machine import host, indices, note
from ..masks import LATENT, PAD, PREFIX, TAIL, TEXT, Layout
from ..tasks.answers import Example, is_correct
from .method import Method, Stage


@dataclass
class Settings(Config):
    ratio: int = opt(2, "compression ratio r: chain tokens per latent")
    k: int = opt(10, "vocabulary entries kept in a superposition")
    labels: str = opt(
        "encoder",
        "encoder: stage 1's latents; no stage 1: a segment's average, of one chain (uniform) or all (paths)",
        choices=("encoder", "uniform", "paths"),
    )
    stage1_steps: str = opt("40,30,200", "steps of stage 1's phases: encoder, decoder, both")
    stage1_lr: float = opt(0.0, "learning rate of stage 1 (default: lr)")
    pull: float = opt(1.0, "weight that pulls a latent towards its segment's tokens in stage 1")
    kl_weight: float = opt(1.0, "λ, weight of the KL between labels and the model's distribution")
    ce_weight: float = opt(1.0, "β, weight of the cross-entropy on </think>, answer and <eos>")
    gumbel: bool = opt(False, "Gumbel noise on the labels in stage 2 (v2 of the paper)")
    gumbel_scale: float = opt(1.0, "s, scale of the noise")
    gumbel_tau: float = opt(1.0, "τ, temperature of the noisy mixture", least=1e-3)
    ltim: bool = opt(True, "latent token induction mask in stage 1's encoder (off: causal)")
    ltsum: bool = opt(True, "latent token supervision mask in stage 1's decoder (off: causal)")
    latent: str = opt("superposition", "what a latent is", choices=("superposition", "hidden"))

    def check(self) -> None:
        super().check()
        phases = self.stage1_steps.split(",")
        if len(phases) != 3 or not all(s.strip().isdecimal() and int(s) for s in phases):
            raise UserError(f"--stage1_steps {self.stage1_steps}: three numbers from 1 on, as 40,30,200")
        if self.latent == "hidden" and (self.gumbel or self.labels != "encoder"):
            option = "--gumbel" if self.gumbel else f"--labels {self.labels}"
            raise UserError(f"{option} is about mixtures, and --latent hidden has none: drop one of them")


class LatentSFT(Method):
    Settings = Settings
    PRESETS = {
        # mini: accumulate saves memory. gpu: the paper's 10 epochs a phase of stage 1, 70 of stage 2.
        "mini": {"steps": 2800, "lr": 4e-3, "accumulate": 4, "stage1_steps": "40,30,100", "stage1_lr": 1e-3},
        "smoke": {"stage1_steps": "3,3,3"},
        "gpu": {"steps": 105_000, "stage1_steps": "15000,15000,15000", "pull": 0.0},
    }
    mixed = True
    extra_latents = True  # in stage 1's encoder
    stored = {"probs": torch.half, "ids": torch.int}  # how a label is kept

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        self.encoder = None  # exists in stage 1 only
        self.labels: dict[str, Tensor] = {}

    def stages(self, train: list[Row]) -> list[Stage]:
        self.train_rows = train
        lengths = [len(r.prompt) + len(self.segments(r)) + len(r.tail) for r in train]
        about = "the model learns to produce the chain itself"
        own = {"collate": self.collate2, "loss": self.loss2, "before": self.make_labels}
        stage2 = self.stage("stage2", about, range(len(train)), lengths, **own)
        return [*(self.stage1(train) if self.config.labels == "encoder" else []), stage2]

    def segments(self, row: Row) -> list[list[int]]:
        """S_1..S_N"""
        return segments(row.chain, self.config.ratio)

    # ------------------------------------------------------------------ stage 1: make the latents

    def stage1(self, train: list[Row]) -> list[Stage]:
        """Three phases, with AdamW whatever --optimizer says. Stage 1 is short, and the model is trained
        already: Muon changes all directions of a matrix equally, and destroys at first what it can do."""
        phases = (
            ("encoder", ["encoder"], "learns latents that a frozen decoder can continue from"),
            ("decoder", ["model"], "learns to read the encoder's latents"),
            ("both", ["encoder", "model"], "encoder and decoder together"),
        )
        own = {"collate": self.collate1, "loss": self.loss1, "validate": self.compression_accuracy}
        own |= {"lr": self.config.stage1_lr or self.config.lr, "optimizer": "adamw"}
        lengths = [len(self.decoder_layout(r).ids) for r in train]
        stages = []
        for (phase, trained, about), steps in zip(phases, self.config.stage1_steps.split(",")):
            own |= {"trained": trained, "steps": int(steps)}
            stages.append(self.stage(f"stage1-{phase}", about, train, lengths, **own))
        stages[0].before = self.make_encoder
        return stages

    def make_encoder(self) -> None:
        self.encoder = copy.deepcopy(self.model)

    def encoder_layout(self, row: Row) -> Layout:
        """Q <think> S_1 L S_2 L .. S_N L </think>"""
        pieces = [(row.prompt, PREFIX, 0)]
        for i, segment in enumerate(self.segments(row), 1):
            pieces += [(segment, TEXT, i), ([self.tok.latent], LATENT, i)]
        return Layout.of(*pieces, (row.tail[:1], TAIL, 0))

    def decoder_layout(self, row: Row) -> Layout:
        """Q <think> z_1 S_2 z_2 S_3 .. S_N z_N </think> answer <eos>"""
        pieces = [(row.prompt, PREFIX, 0)]
        for i, following in enumerate(self.segments(row)[1:] + [[]], 1):
            pieces += [([self.tok.latent], LATENT, i), (following, TEXT, i)]
        return Layout.of(*pieces, (row.tail, TAIL, 0))

    def collate1(self, rows: list[Row], rng=None) -> Batch:
        encoder = self.tensors([self.encoder_layout(r) for r in rows])
        decoder = self.tensors([self.decoder_layout(r) for r in rows], "decoder_")
        every = [segment for row in rows for segment in self.segments(row)]
        return {**encoder, **decoder, "segments": pad(every, self.tok.pad)}  # (n, r)

    def induce(self, ids: Tensor, kind: Tensor) -> tuple[Tensor, Batch]:
        """The encoder's latents in reading order: z (n, C), and their labels."""
        mask = masks.induction_mask(kind) if self.config.ltim else masks.causal(kind)
        return self.project(self.encoder(ids, mask=mask)[kind == LATENT])

    def induce_rows(self, rows: list[Row]) -> tuple[Tensor, Batch]:
        batch = self.tensors([self.encoder_layout(r) for r in rows])
        return self.induce(batch["ids"].to(self.device), batch["kind"].to(self.device))

    def project(self, h: Tensor) -> tuple[Tensor, Batch]:
        """States (n, C) -> z (n, C), and its label: α and its ids, (n, k) each, and all logits (n, V)."""
        W = self.model.embed.weight.detach()
        logits = (h @ W.T).float()  # no head of its own
        z, probs, ids = superpose(logits, W, self.config.k, self.tok.never)
        return z, {"probs": probs, "ids": ids, "logits": logits}

    def loss1(self, batch: Batch, noise=None):
        z, label = self.induce(batch["ids"], batch["kind"])  # (n, C)

        ids, kind, block = batch["decoder_ids"], batch["decoder_kind"], batch["decoder_block"]  # (B, T)
        mask = masks.supervision_mask(kind, block) if self.config.ltsum else masks.causal(kind)
        x = self.embed_with(ids, kind, z)  # (B, T, C)
        h = self.model(embeds=x, mask=mask, positions=masks.dual_track_positions(kind))
        # The label is the next token, except before a latent slot: z_N predicts </think>, while <think> and a
        # segment's last token predict nothing.
        labelled = (kind[:, 1:] == TEXT) | (kind[:, 1:] == TAIL)  # (B, T - 1)
        # A target block is one S_{i+1}, or the tail (block 0), of one row.
        per_row = int(block.max()) + 1
        target = block[:, 1:] + per_row * torch.arange(len(block), device=block.device)[:, None]
        logits = self.model.logits(h[:, :-1][labelled])
        blocks = per_row * len(block)
        loss = cross_entropy_by_block(logits, ids[:, 1:][labelled], target[labelled], blocks)  # L_sup

        logged = {"sup": note(loss)}
        if self.config.pull > 0 and z.requires_grad:  # not while the encoder is frozen
            pull = self.pull(z, label, *self.segment_mixture(batch["segments"]))
            logged["pull"] = note(pull)
            loss = loss + self.config.pull * pull
        return loss, logged

    def pull(self, z: Tensor, label: Batch, probs: Tensor, ids: Tensor) -> Tensor:
        return sparse_kl(label["logits"], probs, ids)

    def segment_mixture(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Each segment's uniform mixture (n, r): probabilities, 0 at padding, and ids."""
        real = segments != self.tok.pad
        return real / real.sum(-1, keepdim=True), segments

    @torch.no_grad()
    def compression_accuracy(self, examples: list[Example]) -> dict[str, float]:
        """The share of right answers when the decoder starts from the encoder's latents of the *gold* chain:
        that measures compression, not reasoning, because the gold chain holds the answer."""
        self.eval()
        rows, _ = encode(examples, self.tok, self.model.config.context)
        right, n = 0, self.config.eval_batch
        for at in range(0, len(rows), n):
            z, _ = self.induce_rows(rows[at : at + n])
            answers = self.answer_given(rows[at : at + n], z).answers
            right += sum(is_correct(a, e.answer) for a, e in zip(answers, examples[at : at + n]))
        return {"compression": right / max(len(examples), 1)}

    def answer_given(self, rows: list[Row], z: Tensor):
        """Decode the answers of rows whose latents (n, C), in reading order, are given."""
        batch = self.tensors([self.student_layout(r, closed_only=True) for r in rows])
        ids, kind = batch["ids"].to(self.device), batch["kind"].to(self.device)
        x, lengths = self.embed_with(ids, kind, z), (kind != PAD).sum(1)
        return decode(self.model, self.tok, x, lengths, None, max_answer=self.config.max_answer)

    # ------------------------------------------------------------------ labels

    def make_labels(self) -> None:
        make = self.soft_labels if self.config.labels == "encoder" else self.mixture_labels
        self.labels, self.encoder = make(self.train_rows), None

    @torch.no_grad()
    def soft_labels(self, rows: list[Row]) -> dict[str, Tensor]:
        """The encoder's latents of all rows, kept in the run folder: `probs`, `ids` (n, k), and `places`."""
        path = self.folder / "state" / "labels.safetensors" if self.folder else None
        # Equal lengths side by side: little padding. The longest first: later batches fit into freed memory.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].prompt) - len(rows[i].chain))
        places = self.places(rows, order)
        if path and path.exists():
            return checkpoint.load_labels(path, self.stored, places, self.tok.vocab_size)
        self.eval()
        parts: dict[str, list[Tensor]] = {name: [] for name in self.stored}
        for at in range(0, len(rows), self.config.batch_size):
            chosen = order[at : at + self.config.batch_size]
            with self.autocast():  # as the encoder was trained
                _, label = self.induce_rows([rows[i] for i in chosen])
            for name, dtype in self.stored.items():
                parts[name].append(label[name].to(dtype).cpu())
        labels = {name: torch.cat(tensors) for name, tensors in parts.items()} | places
        if path:
            checkpoint.save_tensors(path, labels)
        return labels

    def places(self, rows: list[Row], order: list[int]) -> dict[str, Tensor]:
        """`start` and `count` (rows,): where a row's latents begin, in this order, and how many."""
        count = torch.tensor([len(self.segments(r)) for r in rows])
        start = torch.empty_like(count)
        start[order] = count[order].cumsum(0) - count[order]
        return {"start": start, "count": count}

    def mixture_labels(self, rows: list[Row]) -> dict[str, Tensor]:
        """Labels without an encoder. `--labels uniform`: a latent is the uniform mixture of its segment's
        tokens. `--labels paths`: the average of these over all valid chains of the problem. Of either, the k
        most likely tokens."""
        parts: dict[str, list[Tensor]] = {"probs": [], "ids": []}
        for at in range(0, len(rows), 1024):
            some = rows[at : at + 1024]
            ends = torch.tensor([len(self.segments(r)) for r in some]).cumsum(0).tolist()
            places, tokens, weights = [], [], []  # of every token of every chain: its latent, its share
            for row, start in zip(some, [0, *ends]):
                for chain in self.valid_chains(row):
                    for i, segment in enumerate(segments(chain, self.config.ratio)):
                        places += [start + i] * len(segment)
                        tokens += segment
                        weights += [1 / len(segment)] * len(segment)
            full = torch.zeros(ends[-1], self.tok.vocab_size)  # (n, V)
            full.index_put_((torch.tensor(places), torch.tensor(tokens)), torch.tensor(weights), True)
            probs, ids = full.topk(min(self.config.k, full.shape[1]))
            parts["probs"].append(probs / probs.sum(-1, keepdim=True))
            parts["ids"].append(ids.int())
        labels = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return labels | self.places(rows, range(len(rows)))

    def valid_chains(self, row: Row) -> list[list[int]]:
        """Those that a row's labels average over."""
        if self.config.labels == "uniform" or not row.chains:
            return [row.chain]
        chains = [self.tok.encode_chain(" ".join(steps)) for steps in row.chains]
        return [chain for chain in chains if len(chain) == len(row.chain)]  # all, on mini and mini_prosqa

    # ------------------------------------------------------------------ stage 2: learn to produce them

    def student_layout(self, row: Row, closed_only: bool = False) -> Layout:
        """Q <think> z_1 .. z_N </think> answer <eos>, or only as far as </think>"""
        latents = [self.tok.latent] * len(self.segments(row))
        rest = row.tail[:1] if closed_only else row.tail
        return Layout.of((row.prompt, PREFIX, 0), (latents, LATENT, 0), (rest, TAIL, 0))

    def collate2(self, items: list[int], rng=None) -> Batch:
        batch = self.tensors([self.student_layout(self.train_rows[i]) for i in items])
        start, count = self.labels["start"][items], self.labels["count"][items]
        chosen = torch.cat([torch.arange(s, s + n) for s, n in zip(start, count)])  # (n,) of the batch
        batch["owner"] = torch.repeat_interleave(torch.arange(len(items)), count)  # (n,) whose they are
        for name in self.stored:
            label = self.labels[name][chosen]
            batch["label_" + name] = label.float() if label.is_floating_point() else label.long()
        return batch

    def loss2(self, batch: Batch, noise: torch.Generator):
        config, ids, kind = self.config, batch["ids"], batch["kind"]  # (B, T)
        z, label = self.given_latents(batch, noise)  # (n, C)
        h = self.model(embeds=self.embed_with(ids, kind, z))  # (B, T, C)
        following = host(batch)["kind"][:, 1:]  # (B, T - 1)
        before_latent, before_tail = (indices(following == x, self.device) for x in (LATENT, TAIL))
        ce = cross_entropy(self.model.logits(h[before_tail]), ids[:, 1:][before_tail])
        kl = self.divergence(h[before_latent], label)  # of the n states that predict a latent
        loss = config.kl_weight * kl + config.ce_weight * ce  # L_auto
        return loss, {"kl": note(kl), "ce": note(ce)}

    def given_latents(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """z (n, C) as labelled, and the label itself: α and its ids, (n, k) each."""
        config, probs, ids = self.config, batch["label_probs"], batch["label_ids"]
        if config.gumbel:
            shape = {"scale": config.gumbel_scale, "tau": config.gumbel_tau}
            probs = gumbel_noise(probs, ids, batch["owner"], self.tok.end_think, noise, **shape)
        return mix(probs, ids, self.model.embed.weight), (probs, ids)

    def divergence(self, h: Tensor, label: tuple[Tensor, Tensor]) -> Tensor:
        """KL(α_t ‖ q_t), q_t predicted by the states h (n, C)."""
        return sparse_kl(self.model.logits(h), *label)

    # ------------------------------------------------------------------ inference

    def thinker(self):
        return superposition_thinker(self.model, self.config.k, self.tok.never)
