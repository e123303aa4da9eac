"""Published formats are read, divided into splits, or refused in one clear line."""

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from minilatent.config import UserError
from minilatent.tasks import load
from minilatent.tasks.answers import Example, is_correct, normalise
from minilatent.tasks.published import SOURCES, exclude

GSM8K = {
    "question": "Natalia sold 48 clips?",
    "answer": "In May 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72",
}
AUG = "John cuts .5 inches a month?||<<4-2=2>> <<2/.5=4>> #### 4"
PAL = {"input": "Each pack costs 76?", "code": "\ndef solution(): ...", "target": 51.0}
STEPS = {"question": "How many?", "steps": ["<<600*30/100=180>>", "<<180+1=181>>"], "answer": "181"}


def write(path: Path, *lines, newline="\n", encoding="utf-8") -> Path:
    text = newline.join(line if isinstance(line, str) else json.dumps(line) for line in lines) + newline
    path.write_bytes(text.encode(encoding))
    return path


def many(path: Path, n: int, question="Question {} about apples?") -> Path:
    return write(
        path,
        *({"question": question.format(i), "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"} for i in range(n)),
    )


def error(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, expected",
    [
        (GSM8K, Example("Natalia sold 48 clips?", ("<<48/2=24>>", "<<48+24=72>>"), "72")),
        (AUG, Example("John cuts .5 inches a month?", ("<<4-2=2>>", "<<2/.5=4>>"), "4")),
        (PAL, Example("Each pack costs 76?", (), "51")),
        (STEPS, Example("How many?", ("<<600*30/100=180>>", "<<180+1=181>>"), "181")),
        ({"question": "How many?", "steps": [], "answer": 3}, Example("How many?", (), "3")),
        (
            {"question": "A||B?", "answer": "#### 1,080"},
            Example("A||B?", (), "1080"),
        ),  # JSON, whatever it contains
        ({"question": "q?", "answer": "#### +4"}, Example("q?", (), "4")),
        ({"question": "q?", "answer": "#### 1.5 million"}, Example("q?", (), "1500000")),
        ({"question": "q?", "answer": "#### – 12 500"}, Example("q?", (), "-12500")),
        ("Who {or what}?|| #### -2", Example("Who {or what}?", (), "-2")),
        (
            "q?||<<1+1=2>> #### 2 is no answer <<2*2=4>> #### 4",
            Example("q?", ("<<1+1=2>>", "<<2*2=4>>"), "4"),
        ),
    ],
)
def test_each_published_format_is_known_by_its_content_not_by_its_name(tmp_path, line, expected):
    for name in ("data.jsonl", "data.txt", "data"):
        assert load(write(tmp_path / name, line), "test") == [expected]


def test_one_file_may_mix_formats_and_have_a_bom_crlf_and_blank_lines(tmp_path):
    path = write(tmp_path / "x.txt", GSM8K, "", AUG, "   ", PAL, newline="\r\n", encoding="utf-8-sig")
    assert [e.answer for e in load(path, "test")] == ["72", "4", "51"]
    assert load(path, "test")[1].steps[-1] == "<<2/.5=4>>"


def test_a_json_list_is_read_on_any_lines_as_its_items_on_lines_of_their_own_are(tmp_path):
    lines = write(tmp_path / "lines", GSM8K, STEPS, PAL)
    for indent in (None, 1, 4):
        text = json.dumps([GSM8K, STEPS, PAL], indent=indent)
        for name, around in (("x.json", "{}"), ("y", "\ufeff\n {}\n\n")):
            path = write(tmp_path / name, around.format(text))
            assert load(path, "test") == load(lines, "test")


def test_line_ends_of_every_system_give_the_same_examples(tmp_path):
    expected = load(write(tmp_path / "x", AUG, GSM8K), "test")
    for newline in ("\r", "\r\n"):
        assert load(write(tmp_path / "y", AUG, GSM8K, newline=newline), "test") == expected


def test_the_text_style_gives_sentences_without_marks_and_without_the_answer_line(tmp_path):
    (example,) = load(write(tmp_path / "x", GSM8K), "test", chain_style="text")
    assert example.steps == ("In May 48/2 = 24 clips.", "Altogether 48+24 = 72.")
    assert example.answer == "72"


@pytest.mark.parametrize(
    "line, style",
    [
        (AUG, "text"),
        (PAL, "text"),
        (STEPS, "text"),
        ({"question": "q?", "answer": "Half of 4 is 2.\n#### 2"}, "equations"),
        ({"question": "q?", "steps": ["Half of 4 is 2."], "answer": 2}, "equations"),
    ],
)
def test_a_style_of_which_the_file_has_no_chain_is_an_error_not_a_set_of_empty_chains(tmp_path, line, style):
    message = error(write(tmp_path / "x", line), "test", chain_style=style)
    assert str(tmp_path / "x") in message and "--chain_style" in message


def test_examples_without_steps_are_kept(tmp_path):
    path = write(tmp_path / "x", GSM8K, {"question": "q?", "answer": "Two.\n#### 2"})
    assert [len(e.steps) for e in load(path, "test")] == [2, 0]


# --- splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, held_out", [(2, 1), (10, 1), (100, 10), (5100, 500)])
def test_train_and_val_divide_a_file_and_test_is_all_of_it(tmp_path, n, held_out):
    path = many(tmp_path / "x", n)
    train, val, test = (load(path, split) for split in ("train", "val", "test"))
    assert len(val) == held_out and len(test) == n
    assert sorted(e.question for e in train + val) == sorted(e.question for e in test)
    assert train == [e for e in test if e not in val]  # in the file's order


def test_the_split_of_a_question_does_not_depend_on_order_process_or_file_name(tmp_path):
    path = many(tmp_path / "x", 50)
    lines = path.read_text(encoding="utf-8").splitlines()
    other = write(tmp_path / "y", *reversed(lines))
    assert {e.question for e in load(path, "val")} == {e.question for e in load(other, "val")}
    # Fixed for good: another hash would move training questions into the validation split of old runs.
    assert [e.question.split()[1] for e in load(path, "val")] == ["22", "34", "39", "47", "49"]


def test_copies_of_a_question_stay_on_one_side(tmp_path):
    lines = many(tmp_path / "x", 40).read_text(encoding="utf-8").splitlines()
    shouted = (
        many(tmp_path / "z", 40, question="  QUESTION {}  about apples ")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    path = write(tmp_path / "y", *lines, *shouted)
    train, val = load(path, "train"), load(path, "val")
    assert len(val) == 8 and len(train) == 72
    assert exclude(train, val) == train


def test_exclude_drops_what_the_other_has_and_nothing_else():
    a, b, c = (Example(q, (), "1") for q in ("One?", "Two  apples?", "Three?"))
    assert exclude([a, b, c], [Example("two apples", (), "9")]) == [a, c]
    assert exclude([a, b], []) == [a, b]
    assert exclude([Example("He has 12?", (), "1")], [Example("He has 1 2?", (), "1")]) != []


def test_a_broken_surrogate_in_a_question_does_not_stop_the_split(tmp_path):
    path = write(tmp_path / "x", '{"question": "\\ud83d?", "answer": 1}', GSM8K)
    assert len(load(path, "train") + load(path, "val")) == 2


def test_limit_takes_the_first_examples(tmp_path):
    path = many(tmp_path / "x", 30)
    assert load(path, "train", limit=3) == load(path, "train")[:3]
    assert len(load(path, "test", limit=99)) == 30


def test_a_file_too_small_to_divide_is_an_error_not_an_empty_split(tmp_path):
    assert "train" in error(many(tmp_path / "x", 1), "train")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"question": "q?", "answer": ', "not JSON"),
        ("version https://git-lfs.github.com/spec/v1", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"question": "q?", "answer": ' + "9" * 5000 + "}", "not JSON"),
        ('["a"]', "object"),
        ("3", "object"),
        ("null", "object"),
        ({"answer": "#### 1", "id": 7}, "'question', a text (it has 'answer', 'id')"),
        ({"question": "q?", "id": 7}, "'answer'"),
        ({"input": "q?", "code": ""}, "'target'"),
        ({}, "'question', a text (it has none)"),
        ({"question": "q?", "answer": None}, "'answer'"),
        ({"question": " ", "answer": 1}, "'question'"),
        ({"question": 5, "answer": 1}, "'question'"),
        ({"question": "q?", "answer": "So he has 5 left."}, "no answer"),
        ({"question": "q?", "answer": "<<2+3=5>>5\n#### "}, "no answer"),
        ({"question": "q?", "answer": "#### five"}, "no answer"),
        ({"question": "q?", "answer": ""}, "no answer"),
        ({"question": "q?", "answer": True}, "no answer"),
        ('{"question": "q?", "answer": NaN}', "no answer"),
        ({"input": "q?", "target": [5]}, "no answer"),
        ("q?||<<2+3=5>>", "no answer"),
        ("||<<2+3=5>> #### 5", "'question'"),
        ("What is ||v|| for v = (3, 4)?||<<9+16=25>> #### 5", "more than one ||"),
        ("q?||<<5*4=20> <<20+1=21>> #### 21", "broken <<...>>: '<<5*4=20>"),
        ("q?||<5*4=20>> <<20+1=21>> #### 21", "broken <<...>>"),
        ("q?||<<5*4=20 <<20+1=21>>>> #### 21", "broken <<...>>"),
        ({"question": "q?", "answer": "It is <<5*4=20>20.\n<<20+1=21>>21\n#### 21"}, "broken <<...>>"),
        ({"question": "q?", "steps": ["<<5*4=20", "20+1=21>>"], "answer": "21"}, "broken <<...>>"),
    ],
)
def test_a_bad_line_is_named_with_its_file_its_number_and_what_is_wrong(tmp_path, line, says):
    path = write(tmp_path / "x.jsonl", GSM8K, "", line, GSM8K)
    message = error(path, "test")
    assert message.startswith(f"{path}, line 3: ") and says in message and len(message) < 400


def test_a_bad_item_of_a_list_is_named_by_its_number_and_a_list_that_is_cut_off_by_the_line(tmp_path):
    for bad, says in ((3, "object"), ({"question": "q?"}, "'answer'"), ([], "object")):
        path = write(tmp_path / "x.json", json.dumps([GSM8K, bad, GSM8K], indent=1))
        assert error(path, "test").startswith(f"{path}, item 2: ") and says in error(path, "test")
    path.write_text(json.dumps([GSM8K, GSM8K], indent=1)[:-40], encoding="utf-8")
    assert error(path, "test").startswith(f"{path}: not a JSON list") and "line 8" in error(path, "test")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe{\x00", GSM8K["question"].encode("utf-16"), b"PAR1\x80\x00", b"\x1f\x8b\x08"]
)
def test_a_file_that_is_not_utf8_is_named(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(GSM8K).encode() + b"\n" + content)
    assert error(path).startswith(f"{path}: not UTF-8")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"[]\n"])
def test_an_empty_file_is_called_empty(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert error(tmp_path / "x") == f"{tmp_path / 'x'} is empty"


def test_a_missing_file_a_folder_and_an_unknown_name_are_told_apart(tmp_path):
    assert (
        error(tmp_path / "none.jsonl") == f"cannot read {tmp_path / 'none.jsonl'}: No such file or directory"
    )
    assert error(tmp_path).startswith(f"cannot read {tmp_path}: ")
    assert "did you mean gsm8k?" in error("gsm8")
    assert "did you mean mini_svamp?" in error("mini_swamp")


def test_wrong_options_are_errors(tmp_path):
    path = many(tmp_path / "x", 30)
    assert "split" in error(path, "validation")
    assert "chain_style" in error(path, chain_style="words")
    assert "limit" in error(path, limit=0)
    assert "chain_order" in error(path, chain_order="random")
    assert "chain_style" in error("mini_prosqa", chain_style="text")


# --- names --------------------------------------------------------------------------------------------------


def test_a_mini_name_is_generated_and_a_file_called_mini_is_read(tmp_path, monkeypatch):
    examples = load("mini", "val", limit=5, seed=1)
    assert len(examples) == 5 and all(is_correct(e.chain, e.answer) for e in examples)
    assert examples == load("mini", "val", limit=5, seed=1) != load("mini", "val", limit=5, seed=2)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mini.jsonl", GSM8K)
    assert load("mini.jsonl", "test")[0].answer == "72"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`: repositories as {split: rows}, and the calls that were made."""
    calls, splits = [], {}

    def load_dataset(repo, config=None, split=None, data_files=None):
        calls.append((data_files or repo, config, split))
        if not splits:
            raise ConnectionError("no route to host\nand a long traceback")
        return splits[split]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return types.SimpleNamespace(calls=calls, splits=splits)


def rows(n, start=0):
    numbers = range(start, start + n)
    return [{"question": f"Number {i}?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in numbers]


def test_gsm8k_holds_its_validation_out_of_train_and_never_out_of_test(hub):
    hub.splits.update(train=rows(600), test=rows(50, 1000))
    train, val = load("gsm8k", "train"), load("gsm8k", "val")
    assert (len(train), len(val)) == (540, 60) and exclude(train, val) == train
    assert set(hub.calls) == {("openai/gsm8k", "main", "train")}
    assert [e.question for e in load("gsm8k", "test")] == [row["question"] for row in hub.splits["test"]]


def test_the_name_gsm8k_and_its_training_file_give_the_same_split(hub, tmp_path):
    hub.splits.update(train=rows(100))
    assert load("gsm8k", "val") == load(write(tmp_path / "train.jsonl", *rows(100)), "val")


def test_gsm8k_aug_has_its_own_validation_split_and_train_leaves_it_out(hub, capsys):
    row = {"question": "Shared?", "steps": ["<<1+1=2>>"], "answer": "2"}
    hub.splits.update(train=[row, STEPS, {**STEPS, "answer": "unknown"}], validation=[row], test=[STEPS])
    assert [e.question for e in load("gsm8k_aug", "train")] == ["How many?"]
    assert load("gsm8k_aug", "val") == [Example("Shared?", ("<<1+1=2>>",), "2")]
    assert "1 rows skipped" in capsys.readouterr().err  # a bad row of the hub is counted, not fatal


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_network_the_error_says_how_to_do_without(hub, monkeypatch, name):
    for reason in ("no route to host", "datasets"):
        message = error(name, "train" if "train" in SOURCES[name].splits else "test")
        assert reason in message and f"--data path/to/{name}.jsonl" in message and "--data mini" in message
        monkeypatch.setitem(sys.modules, "datasets", None)  # second time: the library is not installed


@pytest.mark.parametrize("name", ["gsm_hard", "svamp", "multiarith", "math500", "aime24"])
def test_a_test_set_cannot_be_trained_or_validated_on(hub, name):
    hub.splits.update({SOURCES[name].splits["test"]: [PAL]})
    assert load(name, "test") == [Example("Each pack costs 76?", (), "51")]
    assert hub.calls[-1][0] == SOURCES[name].repo
    for split in ("train", "val"):
        assert f"eval.py --data {name}" in error(name, split)


MATH = {
    "problem": "Find $\\sin 60^\\circ$.",
    "level": "Level 2",
    "solution": "It is\n$\\boxed{2}/\\ldots$, no, $\\boxed{\\frac{\\sqrt{3}}{2}}.$",
}


def test_maths_rows_come_with_sentences_for_a_chain_and_latex_for_an_answer(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", types.SimpleNamespace())
    hub.splits.update(train=[MATH | {"problem": f"{i}?"} for i in range(20)], test=[MATH])
    (example,) = load("math", "test", chain_style="text")
    assert example.steps == tuple(MATH["solution"].split("\n")) and example.answer == "$\\frac{\\sqrt{3}}{2}$"
    assert (
        len(load("math", "train", chain_style="text")) == 18
        and len(load("math", "val", chain_style="text")) == 2
    )
    assert load("math", "test")[0].steps == ()  # eval.py of a run on equations takes it all the same
    assert load(write(tmp_path / "x.jsonl", MATH), "test", chain_style="text") == [example]
    for bad in ({"problem": "x"}, {"problem": "x", "solution": "no box"}):
        assert "line 1: lacks an 'answer'" in error(write(tmp_path / "bad.jsonl", bad), "test")
    for bad in ({"problem": "", "answer": 3}, {"problem": 3, "answer": 3}):
        assert "line 1: lacks 'problem'" in error(write(tmp_path / "bad.jsonl", bad), "test")


@pytest.mark.parametrize("answer", ["33", 204, "$7$", "-\\frac{1}{2}", "5\\pi", "[1,2)", "\\text{Evelyn}"])
def test_an_answer_of_math_is_kept_in_dollars_for_the_library_to_judge(tmp_path, monkeypatch, answer):
    monkeypatch.setitem(sys.modules, "math_verify", types.SimpleNamespace())
    path = write(tmp_path / "x.jsonl", {"problem": "?", "answer": answer})
    assert load(path, "test")[0].answer == f"${str(answer).strip('$')}$"
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert "pip install math-verify" in error(path, "test")


# --- the real files, where they are -------------------------------------------------------------------------

SHARED = Path(os.environ.get("MINILATENT_SHARED") or Path(__file__).parents[2] / "shared" / "data")
COUNTS = {
    "gsm8k_train.jsonl": 7473,
    "gsm8k_test.jsonl": 1319,
    "gsm8k_aug_valid.txt": 500,
    "gsm8k_aug_test.txt": 1319,
    "gsm_hard_test.jsonl": 1319,
    "svamp_test.jsonl": 1000,
    "multiarith_test.jsonl": 600,
}


def real(name: str, split: str = "test", **options) -> list[Example]:
    if not (SHARED / name).exists():
        pytest.skip(
            f"{name} is not in {SHARED} (set MINILATENT_SHARED to the folder with the published files)"
        )
    return load(SHARED / name, split, **options)


def evaluates(step: str) -> bool:
    """Whether <<left=right>> holds, up to the rounding of the people who wrote it (1/3 = .33)."""
    left, _, right = step.strip("<>").replace("%", "/100").rpartition("=")
    if "**" in left or not re.fullmatch(r"[-+*/().\d]+", left):
        return False
    try:
        value = eval(re.sub(r"(?<![\d.])0+(?=\d)", "", left))
    except (SyntaxError, ZeroDivisionError, TypeError):
        return False
    return abs(value - float(eval(right))) <= 0.01 * max(1.0, abs(value))


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_every_published_file_is_read_whole_and_every_answer_is_a_number(name, count):
    examples = real(name)
    assert len(examples) == count
    assert all(e.question and normalise(e.answer) == e.answer for e in examples)
    assert all(is_correct(f"... #### {e.answer}", e.answer) for e in examples)


@pytest.mark.parametrize("name", [name for name in COUNTS if "gsm8k" in name])
def test_the_equation_chains_are_true_and_end_in_the_answer(name):
    whole = real(name)[:1500]
    examples = [e for e in whole if e.steps]
    steps = [step for e in examples for step in e.steps]
    assert len(examples) > 0.97 * len(whole)
    assert sum(map(evaluates, steps)) > 0.99 * len(steps)
    # In the rest, the author took the last step in words, without a mark.
    assert sum(is_correct(e.chain, e.answer) for e in examples) > 0.92 * len(examples)


def test_gsm8k_has_a_text_chain_for_every_question_and_no_marks_are_left_in_it():
    examples = real("gsm8k_train.jsonl", chain_style="text")
    assert all(e.steps for e in examples)
    assert not any(mark in e.chain for e in examples for mark in ("<<", ">>", "####", "\n"))


def test_gsm8k_splits_into_train_and_500_to_validate_on():
    train, val = real("gsm8k_train.jsonl", "train"), real("gsm8k_train.jsonl", "val")
    assert (len(train), len(val)) == (6973, 500) and exclude(train, val) == train


def test_the_validation_questions_of_gsm8k_aug_are_training_questions_of_gsm8k_and_can_be_left_out():
    train, valid = real("gsm8k_train.jsonl"), real("gsm8k_aug_valid.txt")
    assert len(exclude(train, valid)) == 7473 - 500


def test_no_test_question_is_a_training_question():
    train = real("gsm8k_train.jsonl")
    tests = [e for name in COUNTS if "test" in name for e in real(name)]
    assert exclude(train, tests) == train
    assert exclude(real("gsm8k_aug_test.txt"), real("gsm8k_test.jsonl")) == []
