"""The entries of the comparison: what is trained, how it is evaluated, and how figures show it.

An entry is one training run for each seed. It is evaluated in one way or in several; each way is a row of the
table. To add a method, add one line to ENTRIES.
"""

from dataclasses import dataclass, field, replace

GREY = "#8a8f98"


@dataclass
class Variant:
    """One way to evaluate a run. Its row is called NAME + suffix."""

    suffix: str = ""
    title: str = ""  # instead of the entry's
    parent: str = ""  # the row that this is an ablation of, where there is a claim
    claim: str = ""  # what is said to hold if the parent is better
    speed: str = ""  # of CoLaR


@dataclass
class Entry:
    name: str
    title: str  # in tables and figures
    train: dict  # settings; none: the base model as it is
    style: tuple[str, str] = (GREY, "o")  # colour and marker
    variants: list[Variant] = field(default_factory=lambda: [Variant()])
    main: bool = True  # no ablation
    latent: bool = False  # its chain consists of latents that depend on the question
    share: float = 1.0  # of the budget
    with_base: bool = False  # gets the compute of mini-base on top: it does not start from it
    times: int = 1  # how often it gets its share: 2, 4, .. if it still rose, or as asked
    after: str = ""  # the entry whose run it starts from
    trial: bool = False  # of a learning rate

    @property
    def again(self) -> str:
        return f"@{self.times}" if self.times > 1 else ""

    def row(self, variant: Variant) -> str:
        """Its name in rows.jsonl"""
        return self.name + variant.suffix + self.again

    def title_of(self, variant: Variant) -> str:
        return variant.title or self.title

    def longer(self, times: int = 2) -> "Entry":
        """The same with `times` the compute."""
        return replace(self, share=times * self.share, times=times * self.times)


def speeds(title: str, claim: str = "") -> list[Variant]:
    """CoLaR at two speeds."""
    found = []
    for c in ("3", "2"):
        parent = f"colar_{c}" if claim else ""
        found.append(Variant(f"_{c}", title.format(c), parent, claim and f"{claim}, c = {c}", c))
    return found


WORDS, MIXED, MERGED = ("#c0392b", "*"), ("#2a6fbb", "o"), ("#e08214", "s")
MIXED_RL, MERGED_RL = ("#17375e", "H"), ("#8c4a00", "p")


def latent_sft(ratio: int, suffix: str = "", what: str = "", claim: str = "", **train) -> Entry:
    """Latent-SFT; with a suffix an ablation of it."""
    row, settings = f"latent_sft_{ratio}", {"method": "latent_sft", "ratio": ratio, **train}
    ways = [Variant(parent=row, claim=claim and f"{claim}, r = {ratio}")]
    return Entry(row + suffix, f"Latent-SFT({ratio}){what}", settings, MIXED, ways, not suffix, True)


def colar(suffix: str = "", what: str = "", claim: str = "", **train) -> Entry:
    """CoLaR; with a suffix an ablation of it."""
    ways, settings = speeds("CoLaR-{}" + what, claim), {"method": "colar", **train}
    return Entry(f"colar{suffix}", f"CoLaR{what}", settings, MERGED, ways, not suffix, True)


def from_scratch(name: str, title: str, method: str, style: tuple[str, str]) -> Entry:
    """A method that starts from random weights, trained as mini-base was, with its compute on top."""
    return Entry(name, title, {"method": method, "init": "none", "lr": 4e-3}, style, with_base=True)


def six_stages(method: str, title: str, style: tuple[str, str]) -> Entry:
    """A curriculum with a stage for each step of mini's longest problems. It needs twice the budget."""
    settings, title = {"method": method, "num_latents": 12}, f"{title}, six stages, 2 × compute"
    return Entry(f"{method}_12", title, settings, style, latent=True, share=2.0)


# The gradient of NLL grows as 1/σ²: with soft-MSE's weight it dominates, without a floor it has spikes.
NLL = {"method": "colar", "latent_loss": "nll", "latent_weight": 1.0, "sigma_floor": 0.1}
# RL starts where there is something to win: from a model of 60 to 80 %. CoLaR's also starts from chains of
# sentences, which are longer than need be. They are learned in words first: from mini-base, which has never
# seen them, CoLaR hardly learns them. What RL gets (CoLaR's: at c = 2), its control gets for training on
# without it (CoLaR's: at all speeds).
WORDY = {"chain_style": "text", "max_chain": 128}
WORDS_FIRST = {"method": "cot_sft", **WORDY}
SENTENCES = {**NLL, **WORDY}
BEFORE_RL, MORE = speeds("CoLaR-{} in sentences, before RL"), speeds("CoLaR-{} in sentences, trained on")
NO_CURRICULUM = {"method": "coconut", "curriculum": 0.0}
AT_ONCE = [Variant(parent="coconut", claim="Coconut needs its curriculum")]
TWO = {"method": "latent_sft", "ratio": 2}
COLAR_RL = {"method": "colar_rl", **WORDY}
NO_AVERAGE = {**COLAR_RL, "average": False}
OF_RL = [Variant(parent="colar_rl", claim="averaging is needed in RL")]
COLAR_2ND = {"share": 0.5, "after": "colar_sentences"}
LATENT_2ND = {"share": 0.65, "after": "latent_sft_part"}
NOISY = {**TWO, "gumbel": True, "gumbel_scale": 0.5}  # a start that has seen the noise that RL explores with
LATENT_RL = {**TWO, "method": "latent_rl", "gumbel_scale": 0.5}

ENTRIES = [
    Entry("base", "mini-base", {}, WORDS),
    Entry("cot_sft", "CoT-SFT", {"method": "cot_sft"}, WORDS),
    Entry("no_cot", "No-CoT", {"method": "no_cot"}, (GREY, "v")),
    from_scratch("no_cot_scratch", "No-CoT, from scratch", "no_cot", ("#5a5f68", "v")),
    Entry("pause", "Pause tokens", {"method": "pause"}, ("#5f666f", "^")),
    from_scratch("looped", "Looped, from scratch", "looped", ("#9a9170", "<")),
    Entry("icot", "iCoT", {"method": "icot"}, ("#b3538b", "X")),
    Entry("coconut", "Coconut", {"method": "coconut"}, ("#4d9a5b", "D"), latent=True),
    six_stages("coconut", "Coconut", ("#1d5c2a", "D")),
    Entry("sim_cot", "SIM-CoT", {"method": "sim_cot"}, ("#2b7f8c", "d"), latent=True),
    six_stages("sim_cot", "SIM-CoT", ("#12454f", "d")),
    Entry("codi", "CODI", {"method": "codi"}, ("#7b5aa6", "P"), latent=True),
    colar(),
    latent_sft(6),
    latent_sft(3),
    latent_sft(2),
    Entry("coconut_no_curriculum", "Coconut, no curriculum", NO_CURRICULUM, ("#4d9a5b", "D"), AT_ONCE, False),
    Entry("cot_sft_text", "CoT-SFT in sentences", WORDS_FIRST, WORDS, main=False, share=0.5),
    Entry("colar_sentences", "", SENTENCES, MERGED, BEFORE_RL, main=False, after="cot_sft_text"),
    Entry("colar_sentences_more", "", SENTENCES, MERGED, MORE, main=False, **COLAR_2ND),
    Entry("colar_rl", "CoLaR-RL in sentences, 2 × compute", COLAR_RL, MERGED_RL, latent=True, **COLAR_2ND),
    Entry("colar_rl_no_average", "CoLaR-RL, no averaging", NO_AVERAGE, MERGED_RL, OF_RL, False, **COLAR_2ND),
    colar("_det", ", deterministic head", "a σ in the latent head helps", latent_loss="mse"),
    colar("_no_labels", ", no compressed labels", "compressed labels help", compressed_labels=False),
    colar("_mean", ", mean pooling", "√c above mean pooling", pooling="mean"),
    colar("_nll", ", NLL", "soft-MSE above NLL", **NLL),
    latent_sft(2, "_no_ltim", ", no induction mask", "the induction mask helps", ltim=False),
    latent_sft(2, "_no_ltsum", ", no supervision mask", "the supervision mask helps", ltsum=False),
    latent_sft(2, "_hidden", ", hidden states", "superposition above hidden state", latent="hidden"),
    latent_sft(6, "_no_ltim", ", no induction mask", "the induction mask helps", ltim=False),
    latent_sft(6, "_no_ltsum", ", no supervision mask", "the supervision mask helps", ltsum=False),
    latent_sft(6, "_hidden", ", hidden states", "superposition above hidden state", latent="hidden"),
    latent_sft(2, "_gumbel", ", Gumbel noise", gumbel=True),
    latent_sft(2, "_uniform", ", no encoder", "an encoder's labels above uniform mixtures", labels="uniform"),
    latent_sft(2, "_paths", ", labels of all chains", labels="paths"),
    latent_sft(2, "_k1", ", k = 1", k=1),
    latent_sft(2, "_k5", ", k = 5", k=5),
    latent_sft(2, "_k50", ", k = 50", k=50),
    Entry("latent_sft_part", "Latent-SFT(2) before RL", NOISY, MIXED, main=False, share=0.35),
    Entry("latent_sft_more", "Latent-SFT(2), once more", NOISY, MIXED, main=False, **LATENT_2ND),
    Entry("latent_rl", "Latent-RL", LATENT_RL, MIXED_RL, latent=True, **LATENT_2ND),
]
ROWS = {entry.row(v): (entry, v) for entry in ENTRIES for v in entry.variants}
TITLES = {row: entry.title_of(variant) for row, (entry, variant) in ROWS.items()}
SHARES = {entry.name: entry.share for entry in ENTRIES} | {"": 0.0}
# What claims compare: latents that had no more than the common budget, their start included
LATENT_ROWS = [row for row, (e, _) in ROWS.items() if e.main and e.latent and e.share + SHARES[e.after] <= 1]
