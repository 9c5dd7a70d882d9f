"""Programs to be written, judged by running their tests: HumanEval and MBPP.

    prompt ─► a model writes ─► prompt + answer, tests ─► graft.tasks.sandbox ─► pass_at_1

HumanEval: Chen et al. 2021, arXiv:2107.03374. MBPP: Austin et al. 2021, arXiv:2108.07732. One program is written for
each problem (greedily, where the method writes so), so `pass_at_1` is the share of problems whose program passes.
"""

import ast
import json
import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from graft.errors import DataError
from graft.seeds import generator
from graft.spec import Task
from graft.tasks import columns, reading, sandbox
from graft.tasks.dataset import Dataset
from graft.tasks.split import SEED

Row = Mapping[str, Any]

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ", "\n```")
"""What begins after a function that continues a prompt has ended; HumanEval's own, and others as clear."""


class ProgramTask(Task):
    """Problems with tests. What judges stands in the column `checks`: no model ever reads it."""

    path: str
    """The benchmark's file, as it is released (JSON lines) or as Parquet."""
    parser: str | None = "python"
    """How a written answer is read: the code in its first ``` block, or all of it."""
    seconds: int = Field(10, ge=1)
    """Processor time that a program may take with its tests."""

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def marked(self, rows: pa.Table) -> pa.Table:
        """The rows with `passed`: whether the row's program passes its tests, run in a sandbox.

        Raises:
            DataError: programs cannot be run on this system.
        """
        outcomes = sandbox.run_all([self._job(row) for row in rows.to_pylist()], self.seconds)
        return rows.append_column("passed", pa.array([outcome.passed for outcome in outcomes], pa.bool_()))

    def judged(self, rows: pa.Table) -> dict[str, float]:
        """`pass_at_1`: the share of rows whose program passes its tests; run here where no column says so.

        Raises:
            DataError: programs cannot be run on this system.
        """
        passed = (rows if "passed" in rows.column_names else self.marked(rows))["passed"].to_pylist()
        return {"pass_at_1": sum(passed) / len(passed)} if passed else {}

    def _job(self, row: Row) -> sandbox.Job:
        """The program of an answered row, and what it must pass."""
        checks = json.loads(row["checks"])
        program = self.program(row, row["prediction"] or "", checks)
        return sandbox.Job(program, checks["tests"], tuple(checks["names"]))

    @abstractmethod
    def program(self, row: Row, answer: str, checks: Row) -> str:
        """What is run for an answer, before the tests."""


class HumanEval(ProgramTask):
    """HumanEval: complete a function of which the signature and the docstring are given.

    Columns: `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test`. The benchmark has test problems alone;
    methods need a few to learn from, so ten of its 164, drawn by a fixed seed, are no test problems here, and scores
    are over the 154 others. A plain model continues the prompt; a chat model may as well write the whole function.
    """

    name: Literal["humaneval"]
    test_examples: int = Field(154, ge=1)
    """Problems in the test set, drawn by a fixed seed; the others may be learned from."""
    template: str = "{prompt}{target}"
    """As the benchmark asks: the answer continues the prompt."""

    @property
    def stops(self) -> tuple[str, ...]:
        """What begins after the function has ended."""
        return STOPS

    def read(self) -> Dataset:
        """Read the problems and set the test aside.

        Raises:
            DataError: the file or a column is missing, or there are too few rows.
        """
        names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
        found = _columns(self.path, names)
        checks = [
            {"tests": f"{test}\n\ncheck({entry})\n", "names": [entry]}
            for test, entry in zip(found["test"], found["entry_point"], strict=True)
        ]
        rows = _table(found["task_id"], {"prompt": found["prompt"]}, found["canonical_solution"], checks)
        count = min(self.test_examples, rows.num_rows - 1)
        if count < 1:
            raise DataError(f"{self.path}: {rows.num_rows} problems are too few; give at least 2")
        order = generator(SEED, "test").permutation(rows.num_rows)
        learned, asked = rows.take(sorted(order[count:])), rows.take(sorted(order[:count]))
        return Dataset(learned, asked, ("prompt",), self.kind, None)

    def program(self, row: Row, answer: str, checks: Row) -> str:
        """The prompt continued by the answer, up to where its function ends; or the function that the answer holds."""
        (entry,) = checks["names"]
        if re.search(rf"^(async )?def {re.escape(entry)}\b", answer, re.M):
            # What stands before the function in the prompt, imports and other functions, may be left out.
            before = re.split(rf"^def {re.escape(entry)}\b", row["prompt"], maxsplit=1, flags=re.M)[0]
            return f"{before}\n{answer}\n"
        body = min((answer.split(stop, 1)[0] for stop in STOPS), key=len)
        # Answers are kept without white space around them: the first line has lost its indentation.
        indented = body if body[:1] in (" ", "\t") else f"    {body}"
        return f"{row['prompt'].rstrip()}\n{indented}\n"


class Mbpp(ProgramTask):
    """MBPP: write a function that a sentence describes; its tests are shown, since they say how it is called.

    Columns: `text`, `code`, `task_id`, `test_list`, and `test_setup_code` where there is one. The authors' split:
    problems 11 to 510 are the test, 601 to 974 are to learn from, the others (their prompt's and for validation) are
    left out.
    """

    name: Literal["mbpp"]
    test_examples: int = Field(500, ge=1)
    """Problems in the test set, drawn by a fixed seed from the authors' test."""
    template: str = "{text}\nYour code should pass these tests:\n{tests}\n{target}"
    """The authors' words about the tests, in their prompt's order."""

    @property
    def stops(self) -> tuple[str, ...]:
        """A blank line and the beginning of another problem; functions may be several."""
        return ("\n\n\n", "\nassert ", "\nprint(", "\n```")

    def read(self) -> Dataset:
        """Read the problems as their authors split them.

        Raises:
            DataError: the file or a column is missing, a problem has no tests, or a part of the split is empty.
        """
        found = _columns(self.path, ("text", "code", "task_id", "test_list"), ("test_setup_code",))
        tests = [_test_list(value, self.path) for value in found["test_list"]]
        setups = found.get("test_setup_code") or [""] * len(tests)
        checks = [
            {"tests": "\n".join([setup or "", *own]), "names": _defined(code)}
            for setup, own, code in zip(setups, tests, found["code"], strict=True)
        ]
        inputs = {"text": found["text"], "tests": ["\n".join(own) for own in tests]}
        codes = [code.replace("\r\n", "\n").rstrip() for code in found["code"]]
        rows = _table([f"mbpp/{number}" for number in found["task_id"]], inputs, codes, checks)
        numbers = [int(number) for number in found["task_id"]]
        learned, asked = (
            rows.filter(pa.array([first <= number <= last for number in numbers], pa.bool_()))
            for first, last in ((601, 974), (11, 510))
        )
        if not (learned.num_rows and asked.num_rows):
            raise DataError(
                f"{self.path}: column 'task_id' has {asked.num_rows} problems from 11 to 510 (the test) and "
                f"{learned.num_rows} from 601 to 974 (to learn from); give the whole benchmark"
            )
        drawn = generator(SEED, "test").permutation(asked.num_rows)[: self.test_examples]
        return Dataset(learned, asked.take(sorted(drawn)), tuple(inputs), self.kind, None)

    def program(self, row: Row, answer: str, checks: Row) -> str:
        """The answer, as it is."""
        return f"{answer}\n"


def _columns(path: str, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """The named columns of a file; text as text, lists as they are.

    Raises:
        DataError: the file or a column is missing.
    """
    tables = reading.read_tables(path)
    table = next(iter(tables.values()))
    found = {}
    for name in (*names, *(name for name in optional if name in table.column_names)):
        column = reading.column_of(table, name, path)
        if not pa.types.is_nested(column.type):
            column = columns.text(column, f"{path}, column {name!r}")
            if name in names and column.null_count:
                row = column.is_null().index(True).as_py() + 1
                raise DataError(f"{path}, row {row} (counted from 1): nothing in column {name!r}; remove the row")
        found[name] = column.to_pylist()
    return found


def _table(ids: list[str], inputs: Mapping[str, list[str]], targets: list[str], checks: list[Any]) -> pa.Table:
    texts = {"id": ids, **inputs, "target": targets, "checks": [json.dumps(check) for check in checks]}
    return pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})


def _test_list(value: Any, path: str) -> list[str]:
    """The tests of a problem: a list, or JSON text of one."""
    try:
        tests = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"{path}, column 'test_list': not JSON: {error}; give lists of assert statements") from error
    if not tests or not all(isinstance(test, str) for test in tests):
        raise DataError(f"{path}, column 'test_list': {value!r} is no list of assert statements")
    return list(tests)


def _defined(code: str) -> list[str]:
    """Names that the authors' solution defines: tests mean these, even where they are a builtin's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the benchmark's own style, which is not ours to change
        try:
            tree = ast.parse(code)
        except SyntaxError:
            return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
