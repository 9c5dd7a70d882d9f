from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from graft.errors import DataError
from graft.tasks.dataset import Dataset
from graft.tasks.xquad import XquadAttribution, XquadQa

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "xquad.parquet"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Two articles of three paragraphs, two questions each, in three languages."""
    rows = [
        {
            "lang": language,
            "id": f"{article}{paragraph}{question}",
            "article": article,
            "paragraph": paragraph,
            "context": f"{language} passage {article}{paragraph} with word{article}{paragraph}{question % 2}.",
            "question": f"{language} question {article}{paragraph}{question}?",
            "answer": f"{language} word{article}{paragraph}{question}",
            "answer_start": 0,
        }
        for language in ("en", "hi", "th")
        for article in range(4)
        for paragraph in range(3)
        for question in range(2)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "xquad.parquet")
    return str(tmp_path / "xquad.parquet")


def items(rows: pa.Table) -> set[str]:
    return {id.split("/")[1] for id in rows["id"].to_pylist()}


def check_sides(dataset: Dataset) -> None:
    assert not items(dataset.train) & items(dataset.test)
    assert len({*dataset.train["id"].to_pylist(), *dataset.test["id"].to_pylist()}) == (
        dataset.train.num_rows + dataset.test.num_rows
    )


def test_a_question_in_any_language_with_the_english_passage(path: str) -> None:
    dataset = XquadQa(name="xquad-qa", path=path, macro=["hi", "th"]).read()
    check_sides(dataset)
    assert dataset.train.num_rows + dataset.test.num_rows == 72
    assert dataset.labels is None
    for row in dataset.test.to_pylist():
        language, item = row["id"].split("/")
        assert row["group"] == language
        assert row["question"] == f"{language} question {item}?"
        assert row["context"].startswith(f"en passage {item[:2]}")
        assert row["target"] == f"en word{item}"


@pytest.mark.parametrize("passages", ["english", "in-language"])
def test_a_passage_that_supports_and_one_that_does_not(path: str, passages: Any) -> None:
    dataset = XquadAttribution(name="xquad-attribution", path=path, languages=["hi", "th"], passages=passages).read()
    check_sides(dataset)
    rows = dataset.train.to_pylist() + dataset.test.to_pylist()
    assert sorted(row["target"] for row in rows) == ["no"] * 48 + ["yes"] * 48
    false: dict[str, set[str]] = {}
    for row in rows:
        language, item, label = row["id"].split("/")
        said = "en" if passages == "english" else language
        assert (row["group"], row["target"]) == (language, label)
        assert row["answer"] == f"{said} word{item}"
        begin, _, place = row["passage"].split()[:3]
        assert begin == said
        assert place[0] == item[0], "of the same article"
        assert (place == item[:2]) == (label == "yes")
        if label == "no":
            false.setdefault(item, set()).add(place)
    assert all(len(places) == 1 for places in false.values()), "the same passage in every language"


def test_the_same_rows_every_time(path: str) -> None:
    first, second = (XquadAttribution(name="xquad-attribution", path=path).read() for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_files_that_are_otherwise(path: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.languages: no row belongs to 'hin'; did you mean 'hi'"):
        XquadQa(name="xquad-qa", path=path, languages=["hin"]).read()
    table = parquet.read_table(path)
    parquet.write_table(table.drop_columns(["article"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'article'; .*known: answer"):
        XquadQa(name="xquad-qa", path=str(tmp_path / "a.parquet")).read()
    parquet.write_table(table.slice(24), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="question '000' has no row in 'en'"):
        XquadQa(name="xquad-qa", path=str(tmp_path / "b.parquet")).read()
    parquet.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="an id is twice in one language"):
        XquadQa(name="xquad-qa", path=str(tmp_path / "c.parquet")).read()


def test_the_real_questions() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not on this machine")
    dataset = XquadQa(name="xquad-qa", path=str(SHARED), languages=["hi", "th", "en"]).read()
    check_sides(dataset)
    assert dataset.train.num_rows + dataset.test.num_rows == 3570
    attribution = XquadAttribution(name="xquad-attribution", path=str(SHARED), languages=["hi"]).read()
    check_sides(attribution)
    supported = [row for row in attribution.test.to_pylist() if row["target"] == "yes"]
    assert all(row["answer"] in row["passage"] for row in supported)
    assert not any(
        row["answer"].lower() in row["passage"].lower() for row in attribution.test.to_pylist() if row["target"] == "no"
    )
