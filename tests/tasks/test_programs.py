import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft.errors import DataError
from graft.tasks.parsers import parse
from graft.tasks.programs import HumanEval, Mbpp, ProgramTask

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef double(x):\n    """ Twice x """\n',
    "entry_point": "double",
    "canonical_solution": "    y = math.floor(2)\n    return half(x) * 2 * y\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
}


def humaneval(tmp_path: Path, count: int = 4, **fields: Any) -> HumanEval:
    rows = [{**DOUBLE, "task_id": f"HumanEval/{row}"} for row in range(count)]
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return HumanEval(name="humaneval", path=str(tmp_path / "HumanEval.jsonl"), **fields)


def mbpp(tmp_path: Path, numbers: list[int], **changes: Any) -> Mbpp:
    row = {
        "text": "Write a function to add.",
        "code": "def sum(a, b):\r\n  return a + b",
        "test_list": ["assert sum(1, 2) == 3", "assert sum(0, 0) == 0"],
        "test_setup_code": "",
        **changes,
    }
    lines = [json.dumps({**row, "task_id": number}) + "\n" for number in numbers]
    (tmp_path / "mbpp.jsonl").write_text("".join(lines))
    return Mbpp(name="mbpp", path=str(tmp_path / "mbpp.jsonl"))


def passed(task: ProgramTask, *answers: str | None) -> float:
    """`pass_at_1` of these answers to the first test problem."""
    row = task.read().test.slice(0, 1)
    rows = pa.concat_tables([row] * len(answers))
    read = [parse(answer, task.parser) for answer in answers]
    rows = rows.append_column("prediction", pa.array(read, pa.string()))
    marked = task.marked(rows)
    assert marked.drop_columns(["passed"]).equals(rows)
    assert task.judged(marked)["pass_at_1"] == sum(marked["passed"].to_pylist()) / len(answers)
    return task.judged(rows)["pass_at_1"]


def test_problems_of_humaneval(tmp_path: Path) -> None:
    dataset = humaneval(tmp_path, test_examples=3).read()
    assert (dataset.train.num_rows, dataset.test.num_rows) == (1, 3)
    assert dataset.train.column_names == ["id", "prompt", "target", "checks"]
    assert dataset.inputs == ("prompt",)
    assert dataset.labels is None
    with pytest.raises(DataError, match="1 problems are too few"):
        humaneval(tmp_path, 1).read()


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (DOUBLE["canonical_solution"].strip(), True),
        ("    return 2 * x", True),
        ("return 2 * x\n\ndef another(\n", True),
        ("return 2 * x\nprint(double(", True),
        ("```python\ndef double(x):\n    return int(half(4)) * x\n```\nThat is all.", True),
        ("def double(x):\n    return 4 * half(x)", True),
        ("return x", False),
        ("import sys; sys.exit(0)", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
        (None, False),
    ],
)
def test_an_answer_continues_the_prompt_or_is_the_whole_function(tmp_path: Path, answer: str, right: bool) -> None:
    assert passed(humaneval(tmp_path), answer) == float(right)


def test_problems_of_mbpp_in_their_authors_split(tmp_path: Path) -> None:
    dataset = mbpp(tmp_path, [1, 10, 11, 510, 511, 600, 601, 974]).read()
    assert dataset.train["id"].to_pylist() == ["mbpp/601", "mbpp/974"]
    assert dataset.test["id"].to_pylist() == ["mbpp/11", "mbpp/510"]
    assert dataset.test["target"][0].as_py() == "def sum(a, b):\n  return a + b"
    assert dataset.inputs == ("text", "tests")
    assert dataset.train.column_names == dataset.test.column_names
    with pytest.raises(DataError, match=r"'task_id' has 0 problems from 11 to 510"):
        mbpp(tmp_path, [601]).read()


def test_a_function_may_bear_a_builtins_name(tmp_path: Path) -> None:
    task = mbpp(tmp_path, [11, 601])
    assert (
        passed(task, "```python\ndef sum(a, b):\n    return a + b\n```", "def sum(a, b):\n    return a", None) == 1 / 3
    )
    listed = mbpp(tmp_path, [11, 601], test_list='["assert sum(1, 2) == 3"]', test_setup_code="one = 1")
    assert passed(listed, "def sum(a, b):\n    return a + b") == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_list": []}, "test_list"),
        ({"test_list": "[1"}, "'test_list': not JSON"),
        ({"code": ""}, r"row 1 \(counted from 1\): nothing in column 'code'"),
    ],
)
def test_problems_that_cannot_be_judged(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        mbpp(tmp_path, [11, 601], **changes).read()


def test_a_missing_column_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"task_id": "0", "prompt": "p"}\n')
    with pytest.raises(DataError, match=r"no column 'entry_point'; .*known: prompt, task_id"):
        HumanEval(name="humaneval", path=str(tmp_path / "a.jsonl")).read()


@pytest.mark.parametrize(("name", "kind"), [("humaneval", HumanEval), ("mbpp", Mbpp)])
def test_the_authors_solutions_pass(name: str, kind: type[ProgramTask]) -> None:
    path = SHARED / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    task = kind(name=name, path=str(path), seconds=60)  # a busy machine is no failure
    test = task.read().test
    sample = test.take(list(range(0, test.num_rows, test.num_rows // 25)))
    # As a model's answers are kept: without white space around them.
    answers = [parse(text.strip(), task.parser) for text in sample["target"].to_pylist()]
    assert task.judged(sample.append_column("prediction", pa.array(answers))) == {"pass_at_1": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("humaneval", HumanEval), pytest.param("mbpp", Mbpp, marks=pytest.mark.long)]
)
def test_all_the_authors_solutions_pass(name: str, kind: type[ProgramTask]) -> None:
    path = SHARED / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    task = kind(name=name, path=str(path), seconds=60)  # a busy machine is no failure
    test = task.read().test
    assert task.judged(test.append_column("prediction", test["target"])) == {"pass_at_1": 1.0}
