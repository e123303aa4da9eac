"""Copy a finished run into this folder, with its weights in half precision, for the lessons.

    python train.py --method latent_sft && python tutorials/checkpoints/make.py out/latent_sft
    python train.py --method colar && python tutorials/checkpoints/make.py out/colar
    python tutorials/build.py --update          # update the numbers in the lessons

Run these commands in the repository's root.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minilatent import checkpoint  # noqa: E402

run = Path(sys.argv[1])
folder = Path(__file__).parent / json.loads((run / "config.json").read_text(encoding="utf-8"))["method"]
folder.mkdir(exist_ok=True)
for name in ("config.json", "minilatent_tokenizer.json"):
    shutil.copy(run / name, folder)
tensors, meta = checkpoint.load_tensors(run / "model.safetensors")
checkpoint.save_tensors(folder / "model.safetensors", {name: t.half() for name, t in tensors.items()}, meta)
print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
