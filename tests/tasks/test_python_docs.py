import re
import sysconfig
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from graft.errors import DataError
from graft.tasks.dataset import Dataset
from graft.tasks.python_docs import LEAST_WORDS, MASK, TOPICS, PythonDocs, _rows


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return PythonDocs(name="python-docs").read()


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> list[dict[str, str]]:
    return [*dataset.train.to_pylist(), *dataset.test.to_pylist()]


def test_there_are_enough_rows_in_balanced_topics(dataset: Dataset, rows: list) -> None:
    topics = Counter(row["target"] for row in rows)
    assert set(topics) == set(TOPICS) == set(dataset.labels or ())
    assert len(topics) >= 6
    assert len(rows) >= 2500
    assert max(topics.values()) < 5 * min(topics.values())
    assert dataset.test.num_rows == 1000
    assert dataset.kind == "text"


def test_no_module_is_named_in_any_text(rows: list) -> None:
    names = {name for modules in TOPICS.values() for name in modules}
    for row in rows:
        assert not names & set(re.findall(r"[A-Za-z0-9]+", row["text"].lower())), row
        words = set(re.findall(r"\w+", row["text"].lower()))
        assert not names & words, row


def test_no_text_names_the_module_it_comes_from(rows: list) -> None:
    """A row's id is module.Object.name: the parts that are a module's file or folder must not be readable."""
    library = Path(sysconfig.get_path("stdlib"))
    for row in rows:
        folder, own = library, []
        for part in row["id"].split("."):
            folder = folder / part
            if not (folder.is_dir() or folder.with_suffix(".py").is_file()):
                break
            own.append(part.lower())
        assert own, row
        assert not set(own) & set(re.findall(r"[^\W_]+", row["text"].replace(MASK, " ").lower())), row


def test_texts_are_distinct_and_say_something(dataset: Dataset, rows: list) -> None:
    normal = [" ".join(re.findall(r"\w+", row["text"].lower())) for row in rows]
    assert len(set(normal)) == len(rows)
    assert dataset.equal_inputs == 0
    for row in rows:
        assert len(re.findall(r"\w+", row["text"].replace(MASK, " "))) >= LEAST_WORDS
        assert "\n" not in row["text"]


def test_rows_are_public_and_in_order(dataset: Dataset, rows: list) -> None:
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(table["id"].to_pylist() == sorted(table["id"].to_pylist()) for table in (dataset.train, dataset.test))
    assert not any(id.split(".")[-1].startswith("__") for id in ids)
    assert not any(re.match(r"\w+\.tests?\.\w+\.|idlelib|lib2to3|test\.", id) for id in ids)


def test_a_row_is_the_opening_of_the_docstring(rows: list) -> None:
    by_id = {row["id"]: row for row in rows}
    expected = textwrap.dedent.__doc__.strip().split("\n\n")[0]
    assert by_id["textwrap.dedent"]["text"] == " ".join(expected.split())
    assert by_id["textwrap.dedent"]["target"] == "text-and-formats"


def test_sources_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "__init__.py").write_text('"""Encode a JSON value as plain bytes for you.\n\nMore."""\n')
    (tmp_path / "json" / "tests" / "__init__.py").write_text('"""Tests are no documentation of anything here."""\n')
    (tmp_path / "csv.py").write_text(
        "raise RuntimeError('sources are parsed, not run')\n"
        "try:\n"
        "    def read(x):\n"
        '        """Say what json.decoder reads from every single row."""\n'
        "except ImportError:\n"
        "    pass\n"
        "class Table:\n"
        "    def _hidden(self):\n"
        '        """This one is private and has to stay away."""\n'
        "    def width(self):\n"
        '        """Too short a line."""\n'
        "    def copy(self):\n"
        '        """Return a copy that shares nothing with us."""\n'
    )
    (tmp_path / "heapq.py").write_text('def copy():\n    """Return a copy, that shares nothing with us."""\n')
    assert _rows(tmp_path).to_pylist() == [
        {
            "id": "csv.read",
            "text": f"Say what {MASK}.decoder reads from every single row.",
            "target": "text-and-formats",
        },
        {"id": "json", "text": f"Encode a {MASK} value as plain bytes for you.", "target": "text-and-formats"},
    ]


def test_a_python_without_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sources of the standard library; install a Python that carries"):
        _rows(tmp_path)
