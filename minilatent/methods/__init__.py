"""The methods, by the name that the command line uses. They do not import one another, with one
exception: an RL stage or an ablation imports the method that it extends."""

from .coconut import Coconut
from .codi import CODI
from .colar import CoLaR
from .colar_rl import CoLaRRL
from .cot_sft import CoTSFT
from .icot import ICoT
from .latent_rl import LatentRL
from .latent_sft import LatentSFT
from .latent_sft_hidden import HiddenLatentSFT
from .looped import Looped
from .method import Method, Stage
from .no_cot import NoCoT
from .pause import Pause
from .sim_cot import SIMCoT

__all__ = ["METHODS", "CoLaR", "LatentSFT", "Method", "Stage", "build", "owners"]

METHODS: dict[str, type[Method]] = {
    "cot_sft": CoTSFT,
    "no_cot": NoCoT,
    "pause": Pause,
    "looped": Looped,
    "icot": ICoT,
    "coconut": Coconut,
    "sim_cot": SIMCoT,
    "codi": CODI,
    "latent_sft": LatentSFT,
    "latent_rl": LatentRL,
    "colar": CoLaR,
    "colar_rl": CoLaRRL,
}


def owners(setting: str) -> str:
    """The methods that have a setting, in words."""
    return " and ".join(name for name, cls in METHODS.items() if setting in cls.Settings.__dataclass_fields__)


def build(config, tok, model, folder=None) -> Method:
    """The method that the settings name. An ablation that changes the flow is a subclass, in its own file."""
    cls = METHODS[config.method]
    if getattr(config, "latent", "") == "hidden":
        cls = HiddenLatentSFT
    return cls(config, tok, model, folder)
