import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import DataError, SpecError
from graft.spec import Experiment
from graft.tasks.parsers import PARSERS, check_targets, choice, number, parse, python, yes_no


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", "18"),
        ("51.0", "51"),
        ("007", "7"),
        (".50", "0.5"),
        ("-0.0", "0"),
        ("The answer is $1,050.0.", "1050"),
        ("12,34,567 rupees", "1234567"),
        ("1.234.567", "1234567"),
        ("70.000", "70"),
        ("3,50 €", "3.5"),
        ("1\u202f234\u00a0567", "1234567"),
        ("50%", "50"),
        ("72kg", "72"),
        ("3 + 4 = 7", "7"),
        ("5-3", "3"),
        ("(-5)", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\N{MINUS SIGN}7", "-7"),
        ("in 2020, 15", "15"),
        ("a, b or 1,2,3", "3"),
        ("9 + 9\n#### 18\n7 more", "18"),
        ("The answer is 5. I hope the answer is clear.", "5"),
        ("Answer: 4 of 9", "4"),
        ("উত্তর হল ১৮।", "18"),
        ("సమాధానం ౭౦,౦౦౦", "70000"),
        ("คำตอบคือ ๔๒", "42"),
        ("答えは１８です", "18"),
        ("H2O", None),
        ("none", None),
        ("", None),
    ],
)
def test_numbers(text: str, expected: str | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(C)", "C"),
        ("c", "C"),
        ("B.", "B"),
        ("B. because it floats", "B"),
        ("(A) is too small, so (D)", "D"),
        ("The answer is (d), not (A).", "D"),
        ("The answer is B because (A) sinks", "B"),
        ("So the answer is **E**.", "E"),
        ("The answer is a dog.", None),
        ("The answer is A dog.", None),
        ("The answer is I think so.", None),
        ("The answer is I\u2019m not sure.", None),
        ("The answer is a.", None),
        ("THE ANSWER IS A", "A"),
        ("The answer is A\nExplanation: red", "A"),
        ("The answer is A\n\nQuestion: 2", "A"),
        ("The answer is A\nbecause it is red", "A"),
        ("The answer is A because it is red", "A"),
        ("The answer is A, since it is red", "A"),
        ("The answer is A as the others sink", "A"),
        ("The answer is A assumption", None),
        ("The answer is I but not (B)", "I"),
        ("I think so", None),
        ("K", None),
        ("", None),
    ],
)
def test_choices(text: str, expected: str | None) -> None:
    assert choice(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("- no", "no"),
        ("No one knows better, so the answer is yes.", "yes"),
        ("Yes, because no fish flies.", "yes"),
        ("It is no fish, but it swims: yes", "yes"),
        ("know", None),
        ("", None),
    ],
)
def test_yes_and_no(text: str, expected: str | None) -> None:
    assert yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here it is:\n```python\ndef f():\n    return 1\n```\nUse it:\n```\nf()\n```", "def f():\n    return 1"),
        ("```py\r\nx = 1\r\ny = 2\r\n```", "x = 1\ny = 2"),
        ("```\n\n```\n```\nb\n```", "b"),
        ("```python\ncut_off(", "cut_off("),
        ("\n\n    return 1\n\n", "    return 1"),
        ("x = '`'", "x = '`'"),
        (" \n", None),
    ],
)
def test_code(text: str, expected: str | None) -> None:
    assert python(text) == expected


@given(st.sampled_from(sorted(PARSERS)), st.text(max_size=40) | st.from_regex(r"[-$€ (]*[0-9.,]{1,9}[A-J)%. ]*"))
def test_what_was_read_is_read_again_as_the_same(parser: str, text: str) -> None:
    found = parse(text, parser)
    if found is not None and "```" not in found:
        assert parse(found, parser) == found


def test_without_a_parser_an_answer_is_what_it_is() -> None:
    assert parse(" a ", None) == " a "
    assert parse(None, "number") is None


def test_a_target_that_cannot_be_read_names_its_row() -> None:
    check_targets(["1", "2 apples"], "number", "a.csv")
    with pytest.raises(DataError, match=r"a\.csv, row 2 .* number finds nothing in the target 'many'; .*choice"):
        check_targets(["1", "many"], "number", "a.csv")


def test_an_unknown_parser_is_answered_with_the_closest() -> None:
    task = {"name": "key-value", "parser": "numbr"}
    spec = {"name": "x", "models": {"base": {"source": "m"}}, "method": {"name": "icl"}, "task": task}
    with pytest.raises(SpecError, match=r"task\.parser: unknown parser; did you mean 'number'\?"):
        Experiment.from_mapping(spec)
