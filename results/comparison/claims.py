"""What is claimed: by the field about its methods (CLAIMS), and about the parts of these (TRENDS)."""

from dataclasses import dataclass

from .entries import LATENT_ROWS, ROWS, TITLES

SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith")  # what trends are about, as a rule
SEVERAL = SETS[:3]  # problems of several lengths, some with several valid chains: not so in mini_multiarith


@dataclass
class Trend:
    """Row a's `measure` is above (below) row b's, or above 0 where b is "". With a positive tolerance it may
    miss that by as much, with a negative one it has to win by as much."""

    name: str
    a: str
    b: str
    sets: tuple[str, ...] = SETS
    measure: str = "accuracy"
    direction: str = ">"
    tolerance: float = 0.0  # in the measure's own unit, accuracy in 0..1
    times: float = 1.0  # row b's measure is multiplied by this


@dataclass
class Claim:
    """A sentence that the field argues about. It holds if all of its trends hold."""

    sentence: str
    source: str  # who says so, or denies it: arXiv numbers
    figure: str  # that shows it, if any does
    trends: list[Trend]


def each(name: str, b: str, sets=SETS, measure: str = "accuracy", direction: str = ">") -> list[Trend]:
    """The same trend of every row that thinks in latents."""
    return [Trend(f"{TITLES[row]} {name}", row, b, sets, measure, direction) for row in LATENT_ROWS]


TWO, SIX, POINT = "latent_sft_2", "latent_sft_6", 0.01
RL, TRAINED_ON, CODI = "colar_rl", "colar_sentences_more_2", ("codi", "cot_sft")
CLAIMS = [
    Claim(
        "Superpositions keep the accuracy of a chain in words at half of its length",
        "2510.15522",
        "frontier",
        [
            Trend("Latent-SFT(2) at least CoT-SFT, within a point", TWO, "cot_sft", tolerance=POINT),
            Trend("its length at most half, within a step", TWO, "cot_sft", SETS, "length", "<", 1.0, 0.5),
        ],
    ),
    Claim(
        "At equal length, superpositions are better than merged embeddings",
        "2510.15522",
        "frontier",
        [
            Trend("Latent-SFT(2) above CoLaR-2", TWO, "colar_2"),
            Trend("Latent-SFT(3) above CoLaR-3", "latent_sft_3", "colar_3"),
        ],
    ),
    Claim(
        "One CoLaR model is about as good at c = 3 as at c = 2",
        "2505.16552",
        "frontier",
        [Trend("CoLaR-3 at least CoLaR-2, within two points", "colar_3", "colar_2", tolerance=0.02)],
    ),
    Claim(
        "Thinking in latents is better than answering at once",
        "2412.06769",
        "compute",
        each("above No-CoT", "no_cot") + each("above No-CoT from scratch", "no_cot_scratch"),
    ),
    Claim(
        "Latents are more than a wider or a deeper computation",
        "2412.06769; controls of 2310.02226, 2502.17416",
        "frontier",
        each("above pause tokens", "pause") + each("above looped", "looped"),
    ),
    Claim(
        "Coconut needs its curriculum",
        "2412.06769",
        "claims",
        [Trend("Coconut above no curriculum", "coconut", "coconut_no_curriculum")],
    ),
    Claim(
        "No-CoT ≤ pause < iCoT < Coconut < CODI ≤ SIM-CoT ≈ CoT-SFT",
        "2502.21074, 2509.20317",
        "frontier",
        [
            Trend("Pause tokens at least No-CoT, within a point", "pause", "no_cot", tolerance=POINT),
            Trend("iCoT above pause tokens", "icot", "pause"),
            Trend("Coconut above iCoT", "coconut", "icot"),
            Trend("CODI above Coconut", "codi", "coconut"),
            Trend("SIM-CoT above Coconut", "sim_cot", "coconut"),
            Trend("SIM-CoT at least CODI, within a point", "sim_cot", "codi", tolerance=POINT),
            Trend("SIM-CoT at least CoT-SFT, within a point", "sim_cot", "cot_sft", tolerance=POINT),
        ],
    ),
    Claim(
        "RL shortens chains of latents and makes them better",
        "2505.16552, 2604.27998",
        "claims",
        [
            Trend("CoLaR-RL gains 3 points on training on without RL", RL, TRAINED_ON, tolerance=-0.03),
            Trend("its chains are 30 % shorter", RL, TRAINED_ON, SETS, "length", "<", times=0.7),
            Trend("Latent-RL gains on Latent-SFT once more", "latent_rl", "latent_sft_more"),
            Trend("its chains are shorter", "latent_rl", "latent_sft_more", SETS, "length", "<"),
        ],
    ),
    Claim(
        "A latent holds several chains of thought at once",
        "2510.15522",
        "",
        [
            Trend("N_eff above both its controls, r = 2", TWO, "", SEVERAL, "n_eff_above"),
            Trend("N_eff above both its controls, r = 6", SIX, "", SEVERAL, "n_eff_above"),
        ],
    ),
    Claim(
        "The answer is read from the latents: another question's destroy it",
        "2510.15522, 2505.16552; 2512.21711 denies it of Coconut",
        "interventions",
        each("loses more than half of its answers", "", SETS, "swap"),
    ),
    Claim(
        "Latents follow short chains only",
        "2602.00449 of CODI, openreview UQFTJPqJAc of all",
        "steps",
        [
            Trend("CODI within 3 points of CoT-SFT up to 3 steps", *CODI, SEVERAL, "short", tolerance=0.03),
            Trend("CODI below CoT-SFT beyond", *CODI, SEVERAL, "long", "<"),
            *each("falls faster with each step than CoT-SFT", "cot_sft", SEVERAL, "slope", "<"),
        ],
    ),
    Claim(
        "Where several chains are valid, latents gain more than words",
        "2510.15522, 2505.23648; openreview UQFTJPqJAc denies it",
        "claims",  # against No-CoT, too: with several chains a problem is also less deep
        each("gains more than CoT-SFT", "cot_sft", SEVERAL, "several")
        + each("gains more than No-CoT from scratch", "no_cot_scratch", SEVERAL, "several"),
    ),
]


def all_trends() -> list[Trend]:
    """What is no claim of the field: parts of the two methods, and what RL starts from."""
    found = [Trend("Latent-SFT(2) above (6)", TWO, SIX), Trend("CoLaR-2 above CoLaR-3", "colar_2", "colar_3")]
    found += [Trend(v.claim, v.parent, row) for row, (_, v) in ROWS.items() if v.claim]
    found += [
        Trend("Gumbel noise helps", f"{TWO}_gumbel", TWO),
        Trend("ECR@10 above its control, r = 2", TWO, "", SETS, "ecr_gain"),
        Trend("ECR@10 above its control, r = 6", SIX, "", SETS, "ecr_gain"),
        Trend("ECR@10 less its control is larger for r = 6", SIX, TWO, SETS, "ecr_gain"),
        Trend("N_eff less its controls is larger for r = 6", SIX, TWO, SEVERAL, "n_eff_above"),
    ]
    starts = {"CoLaR-RL": (RL, "colar_sentences_2"), "Latent-RL": ("latent_rl", "latent_sft_part")}
    for title, (row, start) in starts.items():
        found.append(Trend(f"{title} shortens the chain", row, start, SETS, "length", "<"))
        found.append(Trend(f"{title} keeps the accuracy, within a point", row, start, tolerance=POINT))
    return found


TRENDS = all_trends()
