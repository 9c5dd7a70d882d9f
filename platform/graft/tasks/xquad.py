"""Stand-ins for FIAT's two tasks, made of XQuAD: they show that a method works, and compare with no published number.

    question in language X, English passage                  ─► the English answer                (xquad-qa)
    question in language X, its answer, a passage of its article ─► does the passage hold it?     (xquad-attribution)

XQuAD: Artetxe et al. 2020, arXiv:1910.11856: 1,190 questions about 48 articles, each in 12 languages. FIAT's own data
(Wang et al. 2023, arXiv:2309.04663) are XTREME-UP and XOR-AttriQA: tasks xtreme-up-qa and xor-attriqa read them. The
stand-ins have other languages, all questions have an answer, and no passage was retrieved by a system.

One file holds all: columns `lang`, `id` (the same question has the same one in every language), `article`,
`paragraph`, `context`, `question`, `answer`. A question that is asked in the test is in no language's training rows;
its passage may be, with another question.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from graft import seeds
from graft.errors import DataError
from graft.tasks import reading, releases
from graft.tasks.dataset import Dataset
from graft.tasks.groups import Chosen, GroupedTask, named
from graft.tasks.split import SEED, divide

Row = Mapping[str, Any]
COLUMNS = ("lang", "id", "article", "paragraph", "context", "question", "answer")
ENGLISH = "en"


class _Xquad(GroupedTask):
    """What both tasks read. The group is the question's language."""

    path: str
    """The file, relative to the current directory."""
    languages: Chosen = "all"
    """Languages of the questions: `all`, or a list of their codes."""

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def _asked(self) -> tuple[list[Row], dict[tuple[str, str], Row]]:
        """The rows in the chosen languages, and every row by its language and id.

        Raises:
            DataError: the file or a column is missing, a language has no rows, or a question has no English row.
        """
        table = next(iter(reading.read_tables(self.path).values()))
        rows = releases.texts(table, {name: name for name in COLUMNS}, self.path).to_pylist()
        known = {(row["lang"], row["id"]): row for row in rows}
        if len(known) < len(rows):
            raise DataError(f"{self.path}: an id is twice in one language; ids are unique in each")
        chosen = named(self.languages, sorted({row["lang"] for row in rows}), "task.languages")
        asked = [row for row in rows if row["lang"] in chosen]
        for row in asked:
            if (ENGLISH, row["id"]) not in known:
                raise DataError(f"{self.path}: question {row['id']!r} has no row in {ENGLISH!r}, whose passage is read")
        return asked, known

    def _dataset(self, rows: list[dict[str, str]], inputs: tuple[str, ...], labelled: bool) -> Dataset:
        """Rows with `item`, split so that an item stays on one side."""
        items = [row["item"] for row in rows]
        names = ("id", *inputs, "target", "group")
        table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})
        found = divide(table, inputs, self.kind, self.test_examples, labelled=labelled, items=items)
        self.averaged(found.test)
        return found


class XquadQa(_Xquad):
    """A stand-in for XTREME-UP's cross-lingual QA: the English answer to a question in any language."""

    name: Literal["xquad-qa"]
    template: str = "question: {question} context: {context}\n{target}"
    """As XTREME-UP's baselines are given a row, which has a title too."""

    def read(self) -> Dataset:
        """Read the questions, put the English passages beside them, and split them.

        Raises:
            DataError: see the class.
        """
        asked, known = self._asked()
        rows = [
            {
                "id": f"{row['lang']}/{row['id']}",
                "item": row["id"],
                "question": row["question"],
                "context": known[ENGLISH, row["id"]]["context"],
                "target": known[ENGLISH, row["id"]]["answer"],
                "group": row["lang"],
            }
            for row in asked
        ]
        return self._dataset(rows, ("question", "context"), labelled=False)


class XquadAttribution(_Xquad):
    """A stand-in for XOR-AttriQA: does a passage support an answer? Half of the rows say `yes`, half `no`.

    Each question gives two rows: one with its own passage, one with another passage of the same article, which is the
    same in every language, drawn by a fixed seed among those that do not hold the answer's words. The two, in all
    languages, stay on one side of the split.
    """

    name: Literal["xquad-attribution"]
    passages: Literal["english", "in-language"] = "english"
    """Language of the passage and the answer."""

    def read(self) -> Dataset:
        """Read the questions, give each a passage that supports its answer and one that does not, and split them.

        Raises:
            DataError: see the class.
        """
        asked, known = self._asked()
        others = _other_passages([row for (language, _), row in known.items() if language == ENGLISH])
        rows = []
        for row in asked:
            if row["id"] not in others:
                continue
            language = ENGLISH if self.passages == "english" else row["lang"]
            own = known[language, row["id"]]
            for label, passage in (("yes", own), ("no", known.get((language, others[row["id"]])))):
                if passage is None:
                    raise DataError(f"{self.path}: question {others[row['id']]!r} has no row in {language!r}")
                rows.append(
                    {
                        "id": f"{row['lang']}/{row['id']}/{label}",
                        "item": row["id"],
                        "question": row["question"],
                        "answer": own["answer"],
                        "passage": passage["context"],
                        "target": label,
                        "group": row["lang"],
                    }
                )
        return self._dataset(rows, ("question", "answer", "passage"), labelled=True)


def _other_passages(english: list[Row]) -> dict[str, str]:
    """For each question the id of one about another passage of its article, one without the answer's words.

    A question without such a passage is left out.
    """
    of_article: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in english:
        of_article[row["article"]].setdefault(row["paragraph"], row)
    found = {}
    random = seeds.generator(SEED, "other-passages")
    for row in sorted(english, key=lambda row: str(row["id"])):
        fitting = [
            other["id"]
            for paragraph, other in sorted(of_article[row["article"]].items())
            if paragraph != row["paragraph"] and row["answer"].lower() not in other["context"].lower()
        ]
        if fitting:
            found[row["id"]] = fitting[random.integers(len(fitting))]
    return found
