import json
from pathlib import Path
from typing import Any

import pytest

from graft.errors import DataError
from graft.tasks.xor_attriqa import XorAttriQa


def line(part: str, language: str, row: int, **changes: Any) -> dict[str, Any]:
    return {
        "query": f"{language} {part} query {row}?",
        "query_language": language,
        "prediction": f"prediction {row}",
        "passage_in_language": f"{language} passage {row}",
        "passage_en": f"English passage {row}",
        "passage_retrieved_language": "en" if row % 2 else language,
        "ais_vote": 0.8,
        "ais": row % 3 == 0,
        **changes,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name, rows in (("train", 6), ("validation", 3)):
        mixed = [line(name, language, row) for language in ("bn", "te") for row in range(rows)]
        write(tmp_path / "in-language" / f"{name}.jsonl", mixed)
    for folder in ("in-language", "in-english"):
        for language in ("bn", "te"):
            write(tmp_path / folder / f"{language}.jsonl", [line(folder, language, row) for row in range(9)])
    return tmp_path


def task(release: Path, folder: str = "in-language", **fields: Any) -> XorAttriQa:
    return XorAttriQa(name="xor-attriqa", path=str(release / folder), **fields)


def test_the_languages_files_are_the_test(release: Path) -> None:
    dataset = task(release).read()
    assert (dataset.train.num_rows, dataset.test.num_rows) == (12, 18)
    assert dataset.labels == ("no", "yes")
    assert dataset.inputs == ("question", "answer", "passage")
    for row in dataset.test.to_pylist():
        number = int(row["answer"].split()[1])
        assert row["target"] == ("no", "yes")[number % 3 == 0]
        assert row["passage"] == (f"English passage {number}" if number % 2 else f"{row['group']} passage {number}")
    assert task(release, split="validation", languages=["te"]).read().test.num_rows == 3


@pytest.mark.parametrize(("passages", "begin"), [("english", {"English"}), ("in-language", {"bn", "te"})])
def test_either_translation_of_the_passage(release: Path, passages: str, begin: set[str]) -> None:
    dataset = task(release, passages=passages).read()
    assert {text.split()[0] for text in dataset.test["passage"].to_pylist()} == begin


def test_the_english_setting_learns_from_the_other_folder(release: Path) -> None:
    dataset = task(release, "in-english", train=str(release / "in-language"), macro="all").read()
    assert (dataset.train.num_rows, dataset.test.num_rows) == (12, 18)
    with pytest.raises(DataError, match="no rows of the split 'train'; it holds test"):
        task(release, "in-english").read()


@pytest.mark.parametrize(("said", "label"), [("True", "yes"), ("false", "no"), (1, "yes")])
def test_spellings_of_the_label(release: Path, said: Any, label: str) -> None:
    write(release / "in-language" / "bn.jsonl", [line("in-language", "bn", 0, ais=said)])
    dataset = task(release).read()
    assert [row["target"] for row in dataset.test.to_pylist() if row["group"] == "bn"] == [label]


def test_lines_that_are_otherwise(release: Path) -> None:
    write(release / "in-language" / "bn.jsonl", [line("in-language", "bn", 0, ais="perhaps")])
    with pytest.raises(DataError, match=r"bn\.jsonl, row 1 \(counted from 1\): ais is 'perhaps'"):
        task(release).read()
    row = line("in-language", "bn", 0)
    del row["query"]
    write(release / "in-language" / "bn.jsonl", [row])
    with pytest.raises(DataError, match=r"bn\.jsonl: no column 'query'; .*known: ais, ais_vote, passage_en"):
        task(release).read()
