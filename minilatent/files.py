"""Files are written to a temporary name and renamed: a crash or a full disk leaves the old one as it was."""

import contextlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError

from .config import UserError


def replace_file(path: Path, write) -> None:
    """Call write(temporary path), then rename: the old file stays until the new one is whole on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # of a folder that is a file, say
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; what was saved before is untouched") from None


def write_json(path: Path, data) -> None:
    replace_file(path, lambda p: p.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8"))


def read_json(path: Path, default=None):
    """UserError if the file is not JSON, or if it does not exist and there is no default."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if default is not None:
            return default
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is truncated or no JSON ({error})") from None
