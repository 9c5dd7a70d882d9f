import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft.errors import DataError
from graft.spec import Experiment
from graft.tasks.templates import template_for
from graft.tasks.xtreme_up import XtremeUpQa


def line(split: str, language: str, row: int, **changes: Any) -> dict[str, Any]:
    target = "No Answer" if row % 4 == 0 else f"answer {row}"
    question = f"{language} {split} question {row}?"
    return {"question": question, "title": f"Title {row}", "context": f"It is {target}.", "target": target, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, rows in (("train", 6), ("validation", 4), ("test", 8)):
        for language in ("bn", "te", "ta"):
            write(tmp_path / split / f"{language}.jsonl", [line(split, language, row) for row in range(rows)])
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def task(folder: Path, **fields: Any) -> XtremeUpQa:
    return XtremeUpQa(name="xtreme-up-qa", path=str(folder), **fields)


def test_the_authors_split_and_languages(folder: Path) -> None:
    dataset = task(folder).read()
    assert (dataset.train.num_rows, dataset.test.num_rows) == (18, 24)
    assert set(dataset.test["group"].to_pylist()) == {"bn", "te", "ta"}
    assert dataset.labels is None
    ids = [*dataset.train["id"].to_pylist(), *dataset.test["id"].to_pylist()]
    assert len(set(ids)) == 42
    few = task(folder, languages=["ta", "bn"], split="validation").read()
    assert (few.train.num_rows, few.test.num_rows) == (12, 8)
    assert {row["question"].split()[1] for row in few.test.to_pylist()} == {"validation"}


def test_files_named_by_language_and_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"te.{split}.jsonl", [line(split, "te", row) for row in range(5)])
    assert set(task(tmp_path).read().test["group"].to_pylist()) == {"te"}


def test_a_row_is_shown_as_to_the_authors_baselines(folder: Path) -> None:
    dataset = task(folder).read()
    template = template_for(task(folder).template, dataset.inputs, dataset.kind, generation=True)
    row = dataset.test.to_pylist()[1]
    shown = f"question: {row['question']} title: {row['title']} context: {row['context']}\n"
    assert template.query(row) == shown
    assert template.candidate(row["target"]) == row["target"]


def test_what_the_test_asks_is_in_no_languages_training_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = line("test", "te", 3)
    write(folder / "train" / "te.jsonl", [copied, line("train", "te", 0)])
    with caplog.at_level(logging.WARNING):
        dataset = task(folder).read()
    assert dataset.train.num_rows == 13
    assert "1 training rows ask what the test asks" in caplog.text
    for split in ("train", "validation", "test"):
        for language in ("bn", "te", "ta"):
            rows = [line(split, language, row, id=f"{'test' if row == 2 else split}-{row}") for row in range(5)]
            write(folder / split / f"{language}.jsonl", rows)
    aligned = task(folder).read()
    assert aligned.train.num_rows == 3 * 4
    assert aligned.test.num_rows == 3 * 5
    assert "item" not in aligned.test.column_names


def test_abstentions_are_told_from_answers(folder: Path) -> None:
    rows = pa.table({"target": ["No Answer", "No Answer", "x", "x"], "prediction": ["No Answer", "x", "y", None]})
    assert task(folder).judged(rows) == {"boolean_accuracy": 0.75}


def test_averages_over_languages(folder: Path) -> None:
    dataset = task(folder, macro=["ta", "te"]).read()
    assert task(folder, macro=["ta", "te"]).averaged(dataset.test) == ("ta", "te")
    with pytest.raises(DataError, match=r"task\.macro: no row belongs to 'tee'; did you mean 'te'\?"):
        task(folder, macro=["tee"]).read()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answers": "x"}, r"te\.jsonl: no column 'target'; .*known: answers, context, question, title"),
        ({"target": ""}, r"te\.jsonl, row 1 \(counted from 1\): nothing in column 'target'"),
    ],
)
def test_lines_that_are_otherwise(folder: Path, changes: dict[str, Any], expected: str) -> None:
    row = {**line("test", "te", 0), **changes}
    if "answers" in changes:
        del row["target"]
    write(folder / "test" / "te.jsonl", [row])
    with pytest.raises(DataError, match=expected):
        task(folder).read()


def test_folders_that_are_otherwise(folder: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        task(folder / "nowhere").read()
    with pytest.raises(DataError, match=r"task\.languages \(.*, train\): no row belongs to 'tam'; did you mean 'ta'"):
        task(folder, languages=["tam"]).read()
    with pytest.raises(DataError, match="its name says no single split"):
        task(folder / "train").read()
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.jsonl files; .*it holds nothing"):
        task(folder / "empty").read()
    write(folder / "test.jsonl", [line("test", "te", 0)])
    with pytest.raises(DataError, match="its name says no language"):
        task(folder).read()


def test_it_is_a_task_of_the_catalogue() -> None:
    section = {"name": "xtreme-up-qa", "path": "qa_cross_lang", "languages": ["te"], "macro": "all"}
    spec = {"name": "x", "models": {"base": {"source": "m"}}, "method": {"name": "icl"}, "task": section}
    assert isinstance(Experiment.from_mapping(spec).task, XtremeUpQa)
