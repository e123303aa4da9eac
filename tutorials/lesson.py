"""Shared by all lessons: the path to the package, one thread, the style of the figures. Nothing to learn
here."""

import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that `import minilatent` works from anywhere

import torch  # noqa: E402

from minilatent.study.figures import BLUE, GREY, ORANGE, RED, STYLE, plt  # noqa: E402,F401

GREEN, PURPLE = "#3f8f5b", "#7d5ba6"
BASE = ROOT / "minilatent" / "base"  # mini-base: explicit chain-of-thought, 0.67 M parameters
LATENT_SFT = ROOT / "tutorials" / "checkpoints" / "latent_sft"
COLAR = ROOT / "tutorials" / "checkpoints" / "colar"

torch.set_num_threads(1)  # these models are tiny, and one thread gives the same numbers every time
torch.set_printoptions(precision=3, sci_mode=False, linewidth=110)
plt.rcParams.update(
    {**STYLE, "text.parse_math": True, "figure.constrained_layout.use": True, "axes.titlelocation": "left"}
)


def show(figure, name: str) -> None:
    """Show a figure in the notebook. A script saves it only if MINILATENT_FIGURES names a folder."""
    if folder := os.environ.get("MINILATENT_FIGURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(folder) / f"{name}.png", dpi=100, bbox_inches="tight", facecolor="white")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80, bbox_inches="tight", facecolor="white")
        display(Image(buffer.getvalue()))
    plt.close(figure)
