"""XTREME-UP's question answering: a question in one language, a passage, and the passage's words that answer it.

Ruder et al. 2023, arXiv:2305.11938. The data come as a folder of JSON lines for each task, `qa_cross_lang` (questions
in 26 languages, passages and answers in English) and `qa_in_lang` (passages in the question's language), with folders
`train`, `validation` and `test` of `LANGUAGE.jsonl`. Each line has `question`, `title`, `context` and `target`.
"""

from typing import Literal

import pyarrow as pa

from graft.errors import DataError
from graft.tasks import metrics, releases
from graft.tasks.dataset import Dataset
from graft.tasks.groups import Chosen, GroupedTask

COLUMNS = ("question", "title", "context", "target")
INPUTS = ("question", "title", "context")


class XtremeUpQa(GroupedTask):
    """A passage's answer to a question, or `No Answer` where the passage holds none. The group is the language.

    The authors' split is kept; their validation rows are left out unless they are what is asked. Training rows that
    share their input, or an `id` where the files have one, with a row that is asked in any language are left out.
    Beside exact_match and f1 (`No Answer` is an answer of its own) stands the benchmark's boolean_accuracy: whether
    the rows without an answer are told from the others.
    """

    name: Literal["xtreme-up-qa"]
    path: str
    """Folder of one of the two tasks (qa_cross_lang or qa_in_lang), relative to the current directory."""
    languages: Chosen = "all"
    """Languages of the questions: `all`, or a list of their codes as the files are named."""
    split: Literal["test", "validation"] = "test"
    """Which split is asked, all of it; validation while a method is being developed."""
    template: str = "question: {question} title: {title} context: {context}\n{target}"
    """As the authors' baselines are given a row."""

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def read(self) -> Dataset:
        """Read the files.

        Raises:
            DataError: the folder or a column is missing, or a language has no rows.
        """
        found = releases.parts(self.path)
        train, test = (
            releases.gather(found, split, _rows, self.languages, self.path) for split in ("train", self.split)
        )
        dataset = releases.dataset(train, test, INPUTS, self.kind, labelled=False)
        self.averaged(dataset.test)
        return dataset

    def judged(self, rows: pa.Table) -> dict[str, float]:
        """`boolean_accuracy`: the share of rows where the answer and the target both abstain, or neither does."""
        pairs = zip(rows["target"].to_pylist(), rows["prediction"].to_pylist(), strict=True)
        right = [metrics.ROW_SCORES["boolean_accuracy"](target, answer) for target, answer in pairs]
        return {"boolean_accuracy": sum(right) / len(right)} if right else {}


def _rows(table: pa.Table, part: releases.Part) -> pa.Table:
    if part.language is None:
        raise DataError(f"{part.path}: its name says no language; call it LANGUAGE.jsonl, in a folder of its split")
    items = {"item": "id"} if "id" in table.column_names else {}
    rows = releases.texts(table, {**{name: name for name in COLUMNS}, **items}, str(part.path))
    empty = [row for row, target in enumerate(rows["target"].to_pylist(), 1) if not target]
    if empty:
        raise DataError(
            f"{part.path}, row {empty[0]} (counted from 1): nothing in column 'target'; where a passage has no answer "
            "it says No Answer"
        )
    return rows
