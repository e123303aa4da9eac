"""What is saved comes back whole, or is refused with one line that says what is wrong."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import save_file

from minilatent import checkpoint
from minilatent.config import UserError
from minilatent.files import write_json


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        "w": torch.arange(6.0).view(2, 3),
        "b": torch.tensor([1, 2]),
        "s": torch.tensor(3.0, dtype=torch.bfloat16),
    }
    checkpoint.save_tensors(path, tensors, {"step": 7, "best": 0.5})
    return path, tensors


def test_tensors_and_their_meta_data_come_back_as_they_were(saved):
    path, tensors = saved
    back, meta = checkpoint.load_tensors(path)
    assert meta == {"step": 7, "best": 0.5} and back.keys() == tensors.keys()
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


def test_what_is_loaded_does_not_live_in_its_file(saved):
    """Windows does not replace a file that is mapped, and a run replaces state/resume.safetensors while it
    has the moments that were in it."""
    path, tensors = saved
    back, _ = checkpoint.load_tensors(path)
    with open(path, "r+b") as f:  # in place: a mapped file would show through
        f.write(bytes(path.stat().st_size))
    assert all(torch.equal(back[n], t) for n, t in tensors.items())


def test_one_flipped_bit_anywhere_is_noticed_or_does_not_matter(saved):
    """In a weight, in a tensor's name, in the step number: every byte of the file, header included."""
    path, tensors = saved
    whole, noticed = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            back, meta = checkpoint.load_tensors(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
            continue
        assert meta == {"step": 7, "best": 0.5}, (at, whole[max(0, at - 20) : at + 20])
        assert back.keys() == tensors.keys() and all(torch.equal(back[n], t) for n, t in tensors.items())
    assert noticed > 0.8 * len(whole)


def test_a_truncated_a_foreign_and_a_missing_file_each_get_one_line(saved, tmp_path):
    path, tensors = saved
    whole = path.read_bytes()
    for n in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(UserError, match="truncated"):
            checkpoint.load_tensors(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not written by minilatent"):
        checkpoint.load_tensors(path)
    path.write_text("hello, this is a text file and no tensor at all" * 10, encoding="utf-8")
    with pytest.raises(UserError):
        checkpoint.load_tensors(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_tensors(tmp_path / "none.safetensors")


def test_every_tensor_finds_its_place_or_the_first_that_does_not_is_named():
    """strict=False dropped resized embedding rows in silence."""
    model = tiny_model()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    name = "blocks.1.mlp.up.weight"
    for change, said in (
        ({name: None}, f'Missing key.*"{name}"'),
        ({"extra": torch.zeros(1)}, 'Unexpected key.*"extra"'),
        ({"embed.weight": state["embed.weight"][:-1]}, "size mismatch for embed.weight"),
    ):
        wrong = {n: t for n, t in {**state, **change}.items() if t is not None}
        with pytest.raises(UserError, match=said):
            checkpoint.load_into(model, wrong, Path("a"))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write .*a.json"):
        write_json(tmp_path / "file" / "a.json", {})
