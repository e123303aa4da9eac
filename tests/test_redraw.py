"""GSM8K redrawn: what is traced, what a drawn problem keeps, and that it is right."""

import json
import random
import re
from fractions import Fraction

import pytest
from test_published import SHARED

from minilatent.config import UserError
from minilatent.tasks import load
from minilatent.tasks.published import read
from minilatent.tasks.redraw import Tracer, main, redraw, templates
from minilatent.tasks.template import Untraceable, scan, show

CLIPS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many "
    "clips did Natalia sell altogether?",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips.",
    "72",
)
SHOP = (
    "A shop sells 1,200 pens at $2.50 each. Three clerks share 20% of the money, which is paid after 5 days.",
    "The pens bring 1200*2.5 = $<<1200*2.5=3000>>3,000.\nThe clerks get 20/100*3000 = "
    "$<<20/100*3000=600>>600.\nEach of the 3 gets $<<600/3=200>>200 after <<200*5=1000>>1000",
    "1000",
)
HOURS = (
    "Weng works 8 hours on each of 5 days a week. How many minutes is that?",
    "That is 8*5 = <<8*5=40>>40 hours.\nIn minutes it is 40*60 = <<40*60=2400>>2400.",
    "2400",
)
RECORDS = [CLIPS, SHOP, HOURS]


def drawn(record, n=40, seed=0):
    return list(redraw([Tracer(*record).made], n, seed))


def exact(text: str) -> Fraction:
    """The value of an equation's left side, by Python's own arithmetic on fractions."""
    assert re.fullmatch(r"[-+*/().\d]+", text)
    return eval(re.sub(r"(\d*\.\d+|\d+)", r"Fraction('\1')", text))


def check(row: dict) -> None:
    marks = [mark.partition("=") for mark in re.findall(r"<<(.*?)>>", row["answer"])]
    assert marks and all(exact(left) == Fraction(right) for left, _, right in marks), row
    assert Fraction(row["answer"].rpartition("#### ")[2].replace(",", "")) == Fraction(marks[-1][2]), row


@pytest.mark.parametrize("record", RECORDS)
def test_drawn_problems_are_right_different_and_never_the_original(record):
    rows = drawn(record)
    assert len({row["question"] for row in rows} | {record[0]}) == len(rows) + 1 > 10
    for row in rows:
        check(row)
        assert row["template"] == record[0]


def test_numbers_change_in_the_question_the_equations_and_the_prose_alike():
    for row in drawn(CLIPS):
        friends = int(re.search(r"to (\d+) of", row["question"])[1])
        may, both = friends // 2, friends + friends // 2
        assert row["answer"] == (
            f"Natalia sold {friends}/2 = <<{friends}/2={may}>>{may} clips in May.\n"
            f"Natalia sold {friends}+{may} = <<{friends}+{may}={both}>>{both} clips.\n#### {both}"
        )
        assert friends % 2 == 0 and 24 <= friends <= 96 and "half" in row["question"]


def test_a_number_keeps_its_form_percentages_stay_below_100_and_days_in_their_week():
    form = r"A shop sells [\d,]+ pens at \$\d\.\d\d each. (\w+) clerks share (\d+)% .* after (\d+) days."
    for row in drawn(SHOP):
        words, percent, days = re.fullmatch(form, row["question"]).groups()
        assert words.istitle() and 0 < int(percent) <= 95 and 2 <= int(days) <= 7


def test_facts_and_constants_stay():
    for row in drawn(HOURS):
        assert "*60=" in row["answer"] and 2 <= int(re.search(r"of (\d+) days", row["question"])[1]) <= 7


@pytest.mark.parametrize(
    "question, solution, answer, why",
    [
        ("He has 5 red and 7 blue pens.", "<<5+8=13>>13", "13", "from nowhere"),
        ("He has 5 red and 7 blue pens.", "<<5+7=12>>12", "13", "not the last result"),
        ("He has 10 pens for 3 kids.", "<<10/3=3.33>>3.33", "3.33", "rounded"),
        ("He has 5 red and 7 blue pens.", "So 12.", "12", "no equation"),
        ("He has 5 red pens, 7 blue pens and 30 red caps.", "<<5+7=12>>12", "12", "not used"),
        ("The most of 5 and 7 is wanted.", "<<5+7=12>>12 <<7=7>>7", "7", "without an operation"),
        ("Twice 2 pens.", "<<2*2=4>>4", "4", "no number is free"),
        ("He has 5 pens.", "<<5+=5>>5", "5", "cannot be read"),
    ],
)
def test_what_cannot_be_traced_is_given_up(question, solution, answer, why):
    with pytest.raises(Untraceable, match=why):
        Tracer(question, solution, answer)


def test_a_doubt_keeps_values_equal():
    """6 is the number of friends or the bags' sum: as long as both are equal, it does not matter which."""
    record = (
        "Ann buys 2 bags of 3 kiwis, and 6 pears. Bo has 9 kiwis.",
        "<<2*3=6>>6 <<6+9=15>>15 <<6+15=21>>21",
        "21",
    )
    for row in drawn(record):
        check(row)
        bags, kiwis, pears, _ = map(int, re.findall(r"\d+", row["question"]))
        assert bags * kiwis == pears


def test_the_prose_gives_way_where_a_number_in_it_cannot_be_told():
    record = (CLIPS[0], CLIPS[1].replace("clips in May", "clips in May, or 999 or so"), CLIPS[2])
    lines = drawn(record, 1)[0]["answer"].split("\n")
    assert re.fullmatch(r"(\d+/2) = <<\1=(\d+)>>\2", lines[0]) and "Natalia" in lines[1]


def test_a_number_is_written_as_the_original_wrote_its_own():
    assert [show(1300, "1,200"), show(5, "Three"), show(Fraction(5, 2), "2.25"), show(3, "2.50")] == [
        "1,300",
        "Five",
        "2.50",
        "3.00",
    ]
    assert [show(Fraction(1, 4), ".5"), show(-3, "2"), show(Fraction(5, 4), "2")] == [".25", "-3", "1.25"]
    found = scan("Twenty-five of 1,200 cost $2.50, 20% less.", re.compile("$^"))
    assert [(t.value, t.kind) for t in found] == [(25, ""), (1200, ""), (Fraction(5, 2), "$"), (20, "%")]


def write(path, records):
    rows = [{"question": q, "answer": f"{s}\n#### {a}"} for q, s, a in records]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_seed_gives_the_same_bytes_and_the_loader_reads_them_divided_by_template(tmp_path, capsys):
    source = write(tmp_path / "gsm8k.jsonl", RECORDS)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main([str(source), "--n", "60", "--seed", str(seed), "--out", str(tmp_path / name)])
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c and a.count(b"\n") == 60 and "3 questions traced" in capsys.readouterr().err
    train, val = (load(tmp_path / "a", split) for split in ("train", "val"))
    opening = lambda examples: {e.question[:5] for e in examples}
    assert len(train) + len(val) == 60 and not opening(train) & opening(val)
    assert len(opening(train)) == 2 and len(opening(val)) == 1


def test_the_name_draws_from_the_training_questions_and_validates_on_the_real_ones(tmp_path):
    source = write(tmp_path / "gsm8k.jsonl", RECORDS)
    name = f"gsm8k_redrawn={source}"
    train, val = load(name, "train", limit=30, seed=3), load(name, "val")
    assert val == load(source, "val") and len(train) == 30 and all(e.steps for e in train)
    assert train == load(name, "train", limit=30, seed=3) != load(name, "train", limit=30, seed=4)
    assert not {e.question[:5] for e in train} & {e.question[:5] for e in val}
    with pytest.raises(UserError, match="no question can be traced"):
        load(f"gsm8k_redrawn={write(tmp_path / 'x', [('Q1?', '', '1'), ('Q2?', '', '2')])}", "train")


def test_of_the_real_questions_at_least_6000_can_be_traced():
    path = SHARED / "gsm8k_train.jsonl"
    if not path.exists():
        pytest.skip(f"gsm8k_train.jsonl is not in {SHARED} (set MINILATENT_SHARED to its folder)")
    records = list(read(path))
    made, reasons = templates(random.Random(0).sample(records, 400))
    assert len(made) >= 400 * 6000 / 7473 - 15 and len(made) + sum(reasons.values()) == 400
    for row in redraw(made, 400):
        check(row)
