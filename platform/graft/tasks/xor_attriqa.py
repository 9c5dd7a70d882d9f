"""XOR-AttriQA: does a passage show that an answer to a question is right?

Muller et al. 2023, arXiv:2305.14332. The data come as two folders of JSON lines, `in-language` and `in-english`; in
each a file per language is the test, `in-language` also has a training and a validation file of all languages. Each
line has `query`, `query_language`, `prediction` (a system's answer), `passage_in_language`, `passage_en`,
`passage_retrieved_language` and `ais` (whether the passage supports the answer), and others that are not read.
"""

from typing import Literal

import pyarrow as pa

from graft.errors import DataError
from graft.tasks import columns, reading, releases
from graft.tasks.dataset import Dataset
from graft.tasks.groups import Chosen, GroupedTask

INPUTS = ("question", "answer", "passage")
LABELS = {"true": "yes", "false": "no", "1": "yes", "0": "no", "yes": "yes", "no": "no"}
"""What `ais` may say, in lower case, to the label."""


class XorAttriQa(GroupedTask):
    """Whether a passage supports an answer: `yes` or `no`. The group is the question's language.

    The authors' split is kept. Training rows that share their input with a row that is asked are left out. The areas
    (auroc, auc_pr) are those of the rarer label over all test rows.
    """

    name: Literal["xor-attriqa"]
    path: str
    """Folder of one setting (in-language or in-english), relative to the current directory."""
    train: str | None = None
    """Folder with the training file; null is `path` (in-english has none of its own)."""
    languages: Chosen = "all"
    """Languages of the questions: `all`, or a list of their codes."""
    split: Literal["test", "validation"] = "test"
    """Which split is asked, all of it; validation while a method is being developed."""
    passages: Literal["retrieved", "in-language", "english"] = "retrieved"
    """Which passage is shown: as it was retrieved (the authors' mixture of languages), or one of its translations."""

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def read(self) -> Dataset:
        """Read the files.

        Raises:
            DataError: the folder or a column is missing, a language has no rows, or `ais` says neither yes nor no.
        """
        folder = self.train or self.path
        train = releases.gather(releases.parts(folder, "test"), "train", self._rows, self.languages, folder)
        found = releases.parts(self.path, "test")
        test = releases.gather(found, self.split, self._rows, self.languages, self.path)
        dataset = releases.dataset(train, test, INPUTS, self.kind, labelled=True)
        self.averaged(dataset.test)
        return dataset

    def _rows(self, table: pa.Table, part: releases.Part) -> pa.Table:
        where = str(part.path)
        wanted = {
            **{"question": "query", "answer": "prediction", "group": "query_language"},
            **{"own": "passage_in_language", "english": "passage_en", "retrieved": "passage_retrieved_language"},
        }
        rows = releases.texts(table, wanted, where)
        said = columns.text(reading.column_of(table, "ais", where), f"{where}, column 'ais'").to_pylist()
        for row, value in enumerate(said, 1):
            if str(value).lower() not in LABELS:
                raise DataError(f"{where}, row {row} (counted from 1): ais is {value!r}; allowed: true, false")
        columns_of = [rows[name].to_pylist() for name in ("own", "english", "retrieved")]
        passages = [self._passage(*values) for values in zip(*columns_of, strict=True)]
        return pa.table(
            {
                "question": rows["question"],
                "answer": rows["answer"],
                "passage": pa.array(passages, pa.string()),
                "target": pa.array([LABELS[str(value).lower()] for value in said], pa.string()),
                "group": rows["group"],
            }
        )

    def _passage(self, own: str, english: str, retrieved: str) -> str:
        if self.passages == "retrieved":
            return english if retrieved == "en" else own
        return own if self.passages == "in-language" else english
