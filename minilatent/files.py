"""Files are written to a temporary name and renamed: a crash or a full disk leaves the old one as it was."""

import contextlib
import json
import math
import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .config import UserError

MOST_TEXT = 64 * 2**20  # bytes, twice the largest tokenizer.json


def replace_file(path: Path, write) -> None:
    """Call write(temporary path), then rename: the old file stays until the new one is whole on the disk."""
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Nobody can have put a link there. The mode is the umask's: a file of safetensors' would be 0600.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError, SafetensorError) as error:
        with contextlib.suppress(OSError, ValueError):  # of a folder that is a file, say
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; what was saved before is untouched") from None


def is_temporary(name: str) -> bool:
    """What a killed write leaves: a file of `replace_file`'s, or of safetensors' own."""
    return re.fullmatch(r"\.[0-9a-f]{16}\.tmp|\.tmp\w+", name) is not None


def remove_temporary(*folders: Path) -> None:
    """They can be as large as a checkpoint."""
    for path in (path for folder in folders for path in folder.glob(".*")):
        if is_temporary(path.name) and path.is_file():
            path.unlink()


def to_json(data, **layout) -> str:
    """With null for what is no number: JSON has no NaN."""
    return json.dumps(json.loads(json.dumps(data), parse_constant=lambda name: None), **layout)


def write_json(path: Path, data) -> None:
    replace_file(path, lambda p: p.write_text(to_json(data, indent=1) + "\n", encoding="utf-8"))


def check_regular(path: Path, most: float = math.inf) -> None:
    """UserError if it is neither a file nor nothing, or larger than `most` bytes. Asked before it is opened:
    a pipe or a device may never end. A link counts as what it leads to: Hugging Face's caches have them."""
    with contextlib.suppress(OSError, ValueError):  # nothing there: opening it will say so
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"cannot read {path}: it is not a regular file")
        if found.st_size > most:
            raise UserError(f"{path} is too large: {found.st_size} bytes")


def check_no_links(folder: Path) -> None:
    """UserError if a link, or what is neither file nor folder, is in a run folder or its state/: what is read
    and written there stays there."""
    for path in (folder, folder / "state"):
        for entry in os.scandir(path) if path.is_dir() else ():
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                raise UserError(f"{entry.path} is a link or no regular file: a run folder holds none")


def read_json(path: Path, default=None):
    """UserError if the file is not JSON, or if it does not exist and there is no default."""
    try:
        check_regular(path, MOST_TEXT)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=int)  # int refuses NaN
    except (FileNotFoundError, NotADirectoryError):
        if default is not None:
            return default
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of lists in lists in lists
        raise UserError(f"{path} is truncated or not JSON ({error})") from None


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Until the block ends, no other process writes to this run folder. UserError names the one that does.
    The lock is the system's, on a file beside the folder: when its holder dies, it is gone."""
    path = folder.resolve().with_name(f".{folder.resolve().name}.lock")
    lock = FileLock(path, timeout=0, is_singleton=True)  # one per process: the same holder may lock again
    made = [p for p in path.parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except Timeout:
        with contextlib.suppress(OSError):  # Windows locks the text, too
            raise UserError(f"{folder} is in use by {path.read_text(encoding='utf-8')}") from None
        raise UserError(f"{folder} is in use by another process") from None
    except OSError as error:
        raise UserError(f"cannot lock {folder}: {error.strerror}; choose another --out") from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()
        lock.release()
        for p in made:
            with contextlib.suppress(OSError):  # only what is still empty
                p.rmdir()


def is_still(file, path: Path) -> bool:
    """Whether an open file is the one that this path names: no if it was moved or deleted meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    return False
