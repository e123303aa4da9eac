"""The one answer extractor and the one judge: evaluation and RL rewards both depend on them."""

import sys
import time

import pytest

from minilatent.config import UserError
from minilatent.tasks.answers import Example, extract_answer, is_correct, normalise


@pytest.mark.parametrize(
    "text, expected",
    [
        ("18", "18"),
        ("18.", "18"),
        ("18.00", "18"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("1,234", "1234"),
        ("1,234,567.80", "1234567.8"),
        ("1{,}234", "1234"),
        (r"1,\!234", "1234"),
        (r"1\,234", "1234"),
        ("$18", "18"),
        ("$ 3", "3"),
        ("£1,000", "1000"),
        ("€5", "5"),
        (r"\$18", "18"),
        ("Rs.500", "500"),
        ("18 dollars", "18"),
        ("5kg", "5"),
        ("50%", "50"),
        (r"50\%", "50"),
        ("**18**", "18"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("= -3", "-3"),
        ("-.5", "-0.5"),
    ],
)
def test_a_number_is_read_in_every_way_it_is_written(text, expected):
    for around in ("{}", "so she has {} left", "The answer is: {}", "#### {}"):
        assert extract_answer(around.format(text)) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1, 2", "2"),
        ("1,2", "2"),
        ("1,2345", "2345"),
        ("12,34", "34"),  # a list is not a number with commas
        ("3-2", "2"),
        ("(1+2)-2", "2"),
        ("5%-10%", "10"),
        ("10-15 apples", "15"),
        ("5 - 2", "2"),
        ("<<3+4=7>> <<7*18", "18"),
        (" <<18", "18"),
        ("x-2", None),
        ("3 and -2", "-2"),
        ("she has 5 ... 6", "6"),
        ("it went on...7", "7"),
        ("25 m2", "25"),
        ("<<16-3=13>>13", "13"),
        ("<<16-18=-2>>", "-2"),
    ],
)
def test_the_last_number_is_told_apart_from_its_neighbours(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{3} then #### 4 and the answer is 5, not 6", "3"),
        ("#### 4 and the answer is 5, not 6", "4"),
        ("The answer is 5, not 6", "5"),
        ("ANSWER: 5 (of 6)", "5"),
        (r"\boxed{3} or rather \boxed{4} of 9", "4"),
        ("#### 3\nQuestion: 7?\n#### 4\n5", "4"),
        ("The answer is 3. No, the answer is 4. 5", "4"),
        (r"\boxed{x = 5} 7", "5"),
        (r"{ \boxed{8} 7", "8"),
        (r"\boxed {8} 7", "8"),
        ("The answer is 9*2 = 18 dollars a day. 7", "18"),
        ("The answer is:\n18\n7", "18"),
        ("The answer is 18. Check: 9*2=17", "18"),
        ("so $x = 4$. The answer is $4$.", "4"),
        ("16-3=13 #### ", "13"),
        (r"it is 13 \boxed{", "13"),
        (r"it is \boxed{3} or \boxed{1", "3"),  # cut off
        ("The answer is not known", None),
        ("", None),
        ("   ", None),
        ("no number", None),
        (None, None),
        (18, None),
    ],
)
def test_marks_come_before_bare_numbers_and_the_last_mark_counts(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "prediction, answer, verdict",
    [
        ("18", "18", True),
        ("#### 1,080", "1080", True),
        ("18.00", "18", True),
        ("18", "18.0", True),
        ("−3", "-3", True),
        ("145", 145.0, True),
        ("18", "81", False),
        ("-18", "18", False),
        ("180", "18", False),
        ("18.001", "18", False),
        ("10000000000000000000001", "10000000000000000000000", False),  # the same float, not the same number
        ("0.1", "0.10000000000000001", False),
        (None, "18", False),
        ("", "18", False),
        ("eighteen", "18", False),
        ("eighteen", "eighteen", True),  # a word is compared as a word
        ("nan", float("nan"), False),
        (None, None, False),
    ],
)
def test_an_answer_is_right_only_if_the_numbers_are_equal(prediction, answer, verdict):
    assert is_correct(prediction, answer) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "1e9999",
        "1e999999999999",
        "1e-999999999",
        "1/0",
        "0/0",
        "1" * 200_000,
        "9/" + "1" * 9000,
        "." * 10_000,
        "1," * 20_000,
        "1 " * 20_000,
        "-" * 20_000,
        r"\boxed{" * 5_000,
        r"\frac{" * 5_000,
        "{" * 20_000,
        "####" * 5_000,
        "1" + " " * 20_000,
        "answer is " * 5_000,
        "\x00\ud800",
        "٣",
        "½",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_no_text_makes_the_extractor_raise_or_hang(text):
    start = time.process_time()
    for around in (text, "#### " + text, r"\boxed{" + text + "}"):
        extract_answer(around)
        assert not is_correct(around, "12345")
    assert time.process_time() - start < 5


PARTS = [
    r"4\sqrt{2}",
    r"\sqrt{4}",
    r"\sqrt 4",
    r"\frac{4}{3}",
    r"\frac34",
    r"4\pi",
    r"4 \pi",
    "4x",
    "4^2",
    "4!",
    "4(x+1)",
    "4/3",
    "3/4",
    "4 / 3",
    "x+4",
    "x - 4",
    "4 - x",
    "4 + 5i",
    "4*5",
    "2 1/4",
    "4e3",
    "(4, 5)",
    "x^4",
    "x_4",
    r"4\cdot 5",
    "4√2",
    "√4",
    "4π",
    "4²",
    "3:4",
    "4:30",
    r"3 \times 4",
]


@pytest.mark.parametrize("text", PARTS)
def test_a_part_of_an_expression_never_passes_for_the_whole(text):
    arounds = [r"\boxed{{{}}}", "#### {}", "The answer is {}", "The answer is ${}$."]
    for around in arounds if text == "4*5" else ["{}", "it is ${}$", *arounds]:
        for part in ("3", "4", "5", "-4"):
            assert not is_correct(around.format(text), part), around


@pytest.mark.parametrize("text", [r"\boxed{4 x}", r"\boxed{x > 4}", r"\boxed{4, 6}", r"\boxed{4 or 6}"])
def test_a_box_holds_a_number_alone(text):
    assert extract_answer(text) is None


def test_nothing_is_taken_in_the_place_of_what_is_no_number():
    assert extract_answer("5 and 1e99999") is None
    assert extract_answer("5 and 1/0") is None
    assert extract_answer("5 and " + "1" * 200) is None


@pytest.mark.parametrize(
    "value, expected",
    [
        (145.0, "145"),
        (18, "18"),
        (-9867630.0, "-9867630"),
        (3244047.0999999996, "3244047.1"),
        (1e20, "1" + "0" * 20),
        (0.1 + 0.2, "0.3"),
        (2.0107e-06, "0.0000020107"),
        (9284017268534.4, "9284017268534.4"),
        (-0.0, "0"),
        (109844510400, "109844510400"),
        ("145.0", "145"),
        (" 18 ", "18"),
        ("18 dollars.", "18"),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (None, None),
        ([18], None),
        ("", None),
        ("16-3=13", None),
        ("1, 2", None),
        ("she has 5", None),
    ],
)
def test_normalise_gives_one_text_to_a_number_and_none_to_anything_else(value, expected):
    assert normalise(value) == expected


def test_an_example_is_a_value_and_joins_its_steps():
    example = Example("q", ("<<1+1=2>>", "<<2*3=6>>"), "6")
    assert example.chain == "<<1+1=2>> <<2*3=6>>" and example.chains == ()
    assert Example("q", (), "6").chain == ""
    assert len({example, Example("q", ("<<1+1=2>>", "<<2*3=6>>"), "6")}) == 1
    with pytest.raises(AttributeError):
        example.answer = "7"


@pytest.mark.parametrize(
    "answer, right, wrong",
    [
        (
            r"$\frac{\sqrt{3}}{2}$",
            [r"$\sqrt3/2$", r"so it is \boxed{\frac{\sqrt{3}}{2}}.", r"\frac{\sqrt{3}}{2}"],
            ["3/2", r"$\sqrt{3}$"],
        ),
        (r"$[1,2)$", ["$[1, 2)$"], ["$(1, 2)$", "1"]),
        (r"$\{1,2\}$", [r"$\{2,1\}$"], [r"$\{1,3\}$"]),
        (r"$5\pi$", [r"5\pi", r"The answer is $5\pi$."], ["5", r"$\pi$", "", None]),
        (r"$(3, \frac{\pi}{2})$", [r"$\left(3,\frac{\pi}{2}\right)$"], [r"$(\frac{\pi}{2}, 3)$"]),
        (r"$x^2+1$", ["$1+x^2$"], ["$x^2-1$"]),
        (r"$\text{Evelyn}$", [r"$\text{Evelyn}$"], [r"$\text{Mary}$"]),
    ],
)
def test_answers_in_latex_are_judged_by_their_value(answer, right, wrong):
    pytest.importorskip("math_verify")
    assert all(is_correct(text, answer) for text in right) and not any(
        is_correct(text, answer) for text in wrong
    )


def test_an_answer_in_latex_is_the_whole_expression_too():
    pytest.importorskip("math_verify")
    assert not any(is_correct(text, "$4$") for text in [r"\boxed{4\sqrt{2}}", r"4\sqrt{2}", "$4x$", "4 or 5"])
    assert all(
        is_correct(text, "$4$") for text in [r"\boxed{\frac{8}{2}}", "$4$", "4", r"\boxed{4\text{ cm}}"]
    )


def test_without_the_library_an_answer_in_latex_says_what_to_install_and_numbers_do_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for prediction in ("$5$", ""):
        with pytest.raises(UserError, match="pip install math-verify"):
            is_correct(prediction, r"$5\pi$")
    assert is_correct("$5", "5")


# --- a table of answers and verdicts, compared with math-verify --------------------------------------------

# Gold -> predictions, separated by ¦.
RIGHT = {
    "18": r"18 ¦ 18. ¦ 18.0 ¦ 18.00 ¦ 018 ¦ 18 eggs ¦ $18 ¦ $18$ ¦ **18** ¦ 18% ¦ 18\% ¦ £18 ¦ €18 ¦ ¥18 ¦ "
    r"18 € ¦ \(18\) ¦ \[18\] ¦ \boxed{18} ¦ \boxed{+18} ¦ $\boxed{18}$ ¦ \boxed{\$18} ¦ "
    r"\boxed{18\%} ¦ \boxed{\text{18}} ¦ \boxed{\textbf{18}} ¦ \boxed{18 \text{ cm}} ¦ "
    r"\boxed{18\,\mathrm{cm}} ¦ \boxed{18^\circ} ¦ \boxed{x = 18} ¦ \boxed{9 \times 2 = 18} ¦ "
    r"#### 18 ¦ #### $18 ¦ #### 18 eggs ¦ #### 18.00 ¦ The answer is 18. ¦ The answer is: 18 ¦ "
    r"The answer is $18$. ¦ The answer is $18. ¦ Answer: 18 ¦ **Answer**: 18 eggs (9 boxes of 2) ¦ "
    r"**Answer:** 18 ¦ *Answer:* 18 ¦ Final answer: **18** ¦ 9 * 2 = 18 ¦ <<9*2=18>> ¦ "
    r"She has 9 boxes of 2, so 18. ¦ The answer is 9 + 9 = 18 dollars.",
    "-18": r"-18 ¦ -18.0 ¦ $-18 ¦ \boxed{-18} ¦ \boxed{- 18} ¦ \boxed{−18} ¦ #### -18",
    "12500": r"12500 ¦ 12,500 ¦ 12 500 ¦ $12,500 ¦ $12 500 ¦ #### 12 500 ¦ \boxed{12{,}500} ¦ 12,500.00 ¦ "
    r"\boxed{1.25 \times 10^{4}}",
    "1500000": r"1,500,000 ¦ 1 500 000",
    "2.5": r"2.5 ¦ 2.50 ¦ 02.5 ¦ $2.50 ¦ \boxed{2.5} ¦ The answer is 2.5.",
    "0.5": r".5 ¦ 0.5 ¦ 0.50 ¦ #### .5",
}
WRONG = {
    "18": r"81 ¦ 180 ¦ -18 ¦ 18.001 ¦ 1.8 ¦ 18^2 ¦ \boxed{18\sqrt{2}} ¦ \boxed{18\pi} ¦ \boxed{18^{2}} ¦ "
    r"\boxed{[18,20)} ¦ \boxed{(18,20)} ¦ \boxed{18, 20} ¦ \boxed{18 \text{ and } 20} ¦ "
    r"\boxed{18 \text{ or } 20} ¦ \boxed{x > 18} ¦ #### 18, 20 ¦ #### 18 or 20 ¦ #### 18 and 20 ¦ "
    r"#### 18 to 20 ¦ #### 18-20 ¦ #### 18/20 ¦ #### (18, 20) ¦ The answer is 9 eggs, not 18 ¦ "
    r"eighteen ¦ no number ¦ 18 or 20 ¦ 3.18 ¦ \frac{18}{5} ¦ 18/5 ¦ \boxed{3} or 18 ¦ 18.0000001 ¦ "
    r"17.9999999",
    "-18": r"18 ¦ −1.8 ¦ 20-18 is 18 ¦ \boxed{18}",
    "1.5": r"15 ¦ 1½ thousand",
    "500": r"12 500 ¦ -¥500 ¦ 1,500",
    "5": r"5 \times 10^{3} ¦ \boxed{5 \times 10^{3}} ¦ ½5",
    "2": r"\boxed{2^{10}} ¦ \boxed{[2,5)} ¦ ½ ¦ 1/2",
    "3": r"\boxed{(3,5)} ¦ \frac{3}{-4} ¦ \frac{3}{4} ¦ 3/4 ¦ x_3",
    "1331": r"\boxed{1331 \text{ and } 1728}",
    "0.5": r"5 ¦ 0.05",
    "-0.75": r"0.75",
    "0.1": r"1",
}
# The same where math-verify reads another number, or none.
RIGHT_HERE = {
    "18": r"+18 ¦ \$18 ¦ *18* ¦ _18_ ¦ __18__ ¦ `18` ¦ １８ ¦ १८ ¦ ١٨ ¦ #### +18 ¦ ####18 ¦ "
    r"The answer is _18_. ¦ The answer is 18 (9 boxes of 2)",
    "-18": r"- 18 ¦ −18 ¦ ‐18 ¦ ‑18 ¦ ‒18 ¦ –18 ¦ ﹣18 ¦ －18 ¦ -$18 ¦ -¥18 ¦ -£18 ¦ - $18 ¦ #### - 18 ¦ "
    r"#### –18 ¦ The answer is −18. ¦ The answer is - 18 ¦ x = - 18",
    "12500": r"12\ 500 ¦ 12\,500 ¦ 12{,}500 ¦ 12,\!500 ¦ 12~500 ¦ 12'500 ¦ \boxed{12\,500} ¦ 12.5 thousand ¦ "
    r"1.25e4 ¦ 1.25 \times 10^4 ¦ 1.25 × 10^4",
    "1500000": r"1.5 million ¦ 1.5 million dollars ¦ $1.5 million ¦ #### 1.5 million ¦ 15 hundred thousand ¦ "
    r"\boxed{1.5 \text{ million}} ¦ 1.5e6",
    "2.5": r"2½ ¦ 2 ½ ¦ #### 2½",
    "0.5": r"½",
}
# What math-verify takes for a part of the text, or calculates.
WRONG_HERE = {
    "18": r"18² ¦ 18! ¦ 18x ¦ 18k ¦ 18\pi ¦ 18\sqrt{2} ¦ #### 18–20 ¦ #### 18:30 ¦ #### 18 million ¦ "
    r"The answer is between 18 and 20. ¦ The answer is 18 hours and 20 minutes. ¦ #### 3 of 18 ¦ "
    r"36/2 ¦ \boxed{6 \times 3} ¦ \boxed{\sqrt{324}}",
    "1.5": r"1.5 million ¦ 1,5",
    "500": r"12\ 500",
    "5": r"5e3 ¦ 5 thousand ¦ 5½ ¦ 5⅓",
    "2": r"2½",
    "3": r"3:4",
    "0.5": r"1/2 ¦ \frac{1}{2} ¦ \boxed{\frac12} ¦ 50%",
    "-0.75": r"\frac{3}{-4} ¦ \boxed{-\frac{3}{4}}",
    "0.1": r"0.10000000000000001",
}


def pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(answer, text) for answer, texts in table.items() for text in texts.split(" ¦ ")]


BLANKS = [("12500", f"12{blank}500") for blank in "\u00a0\u202f\u2009"]
JUDGED = [(*pair, True) for pair in [*pairs(RIGHT), *pairs(RIGHT_HERE), *BLANKS]]
JUDGED += [(*pair, False) for pair in [*pairs(WRONG), *pairs(WRONG_HERE), ("500", "12\u00a0500"), ("18", "")]]


def test_a_table_of_answers_and_verdicts():
    assert len(set(JUDGED)) >= 150
    assert [row for row in JUDGED if is_correct(row[1], row[0]) is not row[2]] == []
    read = [(text, normalise(text), extract_answer(text)) for _, text, right in JUDGED if right]
    assert [row for row in read if row[1] not in (None, row[2])] == []  # the gold side reads the same


def test_the_library_gives_the_same_verdicts_but_where_the_table_says_that_it_does_not():
    library = pytest.importorskip("math_verify")

    def verdict(answer, text):
        return library.verify(library.parse(f"${answer}$"), library.parse(text))

    assert [pair for pair in pairs(RIGHT) if not verdict(*pair)] == []
    assert [pair for pair in pairs(WRONG) if verdict(*pair)] == []
    # It is older or newer if it has come round to some of these.
    assert sum(verdict(*pair) for pair in pairs(RIGHT_HERE)) < len(pairs(RIGHT_HERE)) / 2
    assert sum(verdict(*pair) for pair in pairs(WRONG_HERE)) > len(pairs(WRONG_HERE)) / 2
