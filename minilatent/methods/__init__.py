"""The methods, by the name that the command line uses. They never import one another."""
from .colar import CoLaR, CoLaRRL
from .cot_sft import CoTSFT
from .latent_sft import LatentSFT
from .method import Method
from .no_cot import NoCoT

METHODS: dict[str, type[Method]] = {"cot_sft": CoTSFT, "no_cot": NoCoT, "latent_sft": LatentSFT, "colar": CoLaR,
                                   "colar_rl": CoLaRRL}
