import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from graft.errors import DataError, SpecError
from graft.spec import Experiment
from graft.tasks.dataset import RESERVED, Dataset
from graft.tasks.file import FileTask, question_rows
from graft.tasks.parsers import parse

ROWS = [{"text": f"message {row}", "label": ("ham", "ham", "spam")[row % 3]} for row in range(60)]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def task(**section: Any) -> FileTask:
    return FileTask.model_validate({"name": "file", **section})


def read(**section: Any) -> Dataset:
    return task(**section).read()


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    return sorted([*dataset.train.to_pylist(), *dataset.test.to_pylist()], key=lambda row: row["id"])


def write(name: str, rows: list[dict[str, Any]]) -> str:
    """Write rows in the format that the name says."""
    if name.endswith((".csv", ".tsv")):
        with open(name, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), name)
    else:
        Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "a.json", "a.parquet", "a.CSV"])
def test_every_format_gives_the_same_rows(name: str) -> None:
    odd = [{"text": 'two\nlines, "quoted" — 東京', "label": "ham"}, {"text": "2024-01-01", "label": "spam"}]
    dataset = read(
        path=write(name, ROWS + odd) if name != "a.CSV" else _capital(ROWS + odd), text="text", label="label"
    )
    expected = [{"id": str(i), "text": r["text"], "target": r["label"]} for i, r in enumerate(ROWS + odd)]
    assert rows_of(dataset) == sorted(expected, key=lambda row: row["id"])
    assert (dataset.kind, dataset.inputs, dataset.labels) == ("text", ("text",), ("ham", "spam"))
    assert dataset.test.num_rows == 20
    assert dataset.pool is None


def test_what_questions_bring_beside_their_input_has_the_tasks_names() -> None:
    talk = [{"role": "user", "content": "hello"}]
    rows = [{"id": 7, "chat": json.dumps(talk), "lang": lang, "why": "so"} for lang in ("de", "sw")]
    section = {"messages": "chat", "target": "a", "group": "lang", "item": "id", "rationale": "why"}
    task = FileTask(name="file", path="a.csv", **section)
    found = question_rows(write("a.jsonl", rows), ["chat", "rationale", "group"], "messages", task)
    assert found.to_pylist() == [
        {"id": f"{lang}/7", "chat": talk, "rationale": "so", "group": lang} for lang in ("de", "sw")
    ]
    plain = [{"text": "a", "group": 3.0}, {"text": "b", "group": 4.0}]
    named = FileTask(name="file", path="a.csv", text="text", target="a", group="lang")
    for given in (named, None):
        found = question_rows(write("b.jsonl", plain), ["text", "group"], "text", given)
        assert found["group"].to_pylist() == ["3", "4"]
    with pytest.raises(DataError, match="no column 'lang'"):
        question_rows(write("c.jsonl", [{"text": "a"}]), ["text", "group"], "text", named)
    with pytest.raises(DataError, match="nothing in 'text'"):
        question_rows(write("d.jsonl", [{"text": "", "lang": "de"}]), ["text", "group"], "text", named)


def _capital(rows: list[dict[str, Any]]) -> str:
    return str(Path(write("b.csv", rows)).rename("a.CSV"))


def save_datasets(rows: list[dict[str, Any]], **splits: list[dict[str, Any]]) -> str:
    import datasets

    names = sorted({row["label"] for row in rows})
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.disable_progress_bars()
    made = {key: datasets.Dataset.from_list(value, features) for key, value in {"": rows, **splits}.items()}
    saved = datasets.DatasetDict({k: v for k, v in made.items() if k}) if splits else made[""]
    saved.save_to_disk("saved")
    return "saved"


def test_a_saved_datasets_folder_with_named_labels() -> None:
    dataset = read(path=save_datasets(ROWS), text="text", label="label")
    assert Counter(row["target"] for row in rows_of(dataset)) == {"ham": 40, "spam": 20}


def test_a_saved_dataset_dict_brings_its_own_split() -> None:
    dataset = read(path=save_datasets(ROWS, train=ROWS[:50], test=ROWS[50:]), text="text", label="label")
    assert (dataset.train.num_rows, dataset.test.num_rows) == (50, 10)
    assert dataset.train["id"][0].as_py() == "train-0"


def test_a_saved_dataset_dict_with_one_split_is_one_table() -> None:
    assert read(path=save_datasets(ROWS, all=ROWS), text="text", label="label").test.num_rows == 20


def test_a_saved_dataset_dict_with_other_splits() -> None:
    with pytest.raises(DataError, match=r"saved: holds the splits dev, train; .* name the folder of one split"):
        read(path=save_datasets(ROWS, train=ROWS, dev=ROWS), text="text", label="label")


def test_given_files_are_used_whole() -> None:
    train, test = write("train.csv", ROWS[:50]), write("test.jsonl", ROWS[50:])
    dataset = read(train=train, test=test, text="text", label="label", test_examples=3)
    assert (dataset.train.num_rows, dataset.test.num_rows, dataset.equal_inputs) == (50, 10, 0)
    assert dataset.test["id"].to_pylist()[:2] == ["test-0", "test-1"]


def test_several_fields_keep_their_names_and_order() -> None:
    rows = [{"b": f"b{i}", "a": i, "c": "" if i else "c", "label": "xy"[i % 2]} for i in range(9)]
    dataset = read(path=write("a.jsonl", rows), fields=["b", "a", "c"], label="label")
    assert dataset.inputs == ("b", "a", "c")
    assert rows_of(dataset)[3] == {"id": "3", "b": "b3", "a": "3", "c": "", "target": "y"}


def test_free_text_targets_rationales_and_groups() -> None:
    rows = [{"q": f"{i}+1?", "a": i + 1, "why": f"one after {i}", "lang": "de"} for i in range(60)]
    dataset = read(path=write("a.csv", rows), text="q", target="a", rationale="why", group="lang")
    assert dataset.labels is None
    assert dataset.pool is not None
    assert (dataset.train.num_rows, dataset.test.num_rows, dataset.pool.num_rows) == (32, 20, 8)
    row = dataset.train.to_pylist()[0]
    number = int(row["id"])
    assert row == {
        "id": row["id"],
        "q": f"{number}+1?",
        "target": str(number + 1),
        "rationale": f"one after {number}",
        "group": "de",
    }


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([3, 4] * 6), {"3", "4"}),
        (pa.array([3.0, 4.0] * 6), {"3", "4"}),
        (pa.array([3.5, 4.0] * 6), {"3.5", "4"}),
        (pa.array(["3.0", "4"] * 6), {"3", "4"}),
        (pa.array(["03", "4"] * 6), {"03", "4"}),
        (pa.array(["v1.0", "v2.0"] * 6), {"v1.0", "v2.0"}),
        (pa.array([True, False] * 6), {"true", "false"}),
        (pa.array(["x", "y"] * 6).dictionary_encode(), {"x", "y"}),
    ],
)
def test_labels_are_text(labels: pa.Array, expected: set[str]) -> None:
    parquet.write_table(pa.table({"text": [f"t{i}" for i in range(12)], "label": labels}), "a.parquet")
    assert set(read(path="a.parquet", text="text", label="label").labels or ()) == expected


def test_a_json_file_may_be_one_array() -> None:
    Path("a.json").write_text(json.dumps(ROWS))
    assert read(path="a.json", text="text", label="label").labels == ("ham", "spam")


def test_a_semicolon_file_is_told_so() -> None:
    Path("a.csv").write_text("text;label\na;b\n")
    with pytest.raises(DataError, match="columns are separated by ';'"):
        read(path="a.csv", text="text", label="label")


def test_text_in_a_csv_is_not_respelled() -> None:
    rows = [{"text": f"00{i}", "label": "xy"[i % 2]} for i in range(9)]
    assert rows_of(read(path=write("a.csv", rows), text="text", label="label"))[7]["text"] == "007"
    assert question_rows("a.csv", ["text"], "text").to_pylist()[7] == {"id": "question-7", "text": "007"}


def test_rows_to_answer_are_checked_like_a_tasks_own() -> None:
    with pytest.raises(DataError, match=r"no column 'text'; did you mean 'txet'"):
        question_rows(write("a.csv", [{"txet": "a"}]), ["text"], "text")
    with pytest.raises(DataError, match=r"1 of 2 rows have nothing"):
        question_rows(write("b.csv", [{"text": "a"}, {"text": " "}]), ["text"], "text")
    vectors = pa.table({"vector": [[1.0, 2.0], [3.0, 4.0]]})
    parquet.write_table(vectors, "v.parquet")
    assert question_rows("v.parquet", ["vector"], "vector")["vector"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
    parquet.write_table(pa.table({"vector": [[1.0, 2.0], [3.0]]}), "w.parquet")
    with pytest.raises(DataError, match="2 numbers"):
        question_rows("w.parquet", ["vector"], "vector")


def test_the_files_own_ids_are_used() -> None:
    rows = [{"id": 100 + i, **row} for i, row in enumerate(ROWS)]
    for name in ("a.csv", "a.parquet"):
        assert rows_of(read(path=write(name, rows), text="text", label="label"))[0]["id"] == "100"


PNG = [b"\x89PNG %d" % row for row in range(9)]


def test_images_are_bytes_paths_or_both() -> None:
    labels = ["a", "b", "c"] * 3
    Path("data").mkdir()
    for row, content in enumerate(PNG):
        Path(f"data/{row}.png").write_bytes(content)
    paths = [f"{row}.png" for row in range(9)]
    columns = {
        "bytes": pa.array(PNG),
        "paths": pa.array(paths),
        "both": pa.array(
            [{"bytes": content, "path": None} for content in PNG[:5]] + [{"bytes": None, "path": p} for p in paths[5:]]
        ),
    }
    parquet.write_table(pa.table({**columns, "label": labels}), "data/a.parquet")
    for column in columns:
        dataset = read(path="data/a.parquet", image=column, label="label")
        assert [row[column] for row in rows_of(dataset)] == PNG
        assert dataset.kind == "image"
        assert dataset.train.schema.field(column).metadata == {b"kind": b"image"}
        assert dataset.train.schema.field(column).type == pa.binary()
    assert read(path="data/a.parquet", audio="paths", label="label").kind == "audio"
    Path("data/4.png").unlink()
    with pytest.raises(DataError, match=r"data/a.parquet, column 'paths', row 5: 4.png: .*relative to the data file"):
        read(path="data/a.parquet", image="paths", label="label")


def talk(row: int) -> list[dict[str, str]]:
    return [{"content": f"Hello {row}", "role": "user"}]


def test_messages_are_lists_or_their_json() -> None:
    lists = write("a.jsonl", [{"talk": talk(row), "answer": "Hi"} for row in range(9)])
    texts = write("b.csv", [{"talk": json.dumps(talk(row)), "answer": "Hi"} for row in range(9)])
    found = [read(path=path, messages="talk", target="answer") for path in (lists, texts)]
    assert rows_of(found[0]) == rows_of(found[1])
    assert rows_of(found[0])[2]["talk"] == [{"role": "user", "content": "Hello 2"}]
    assert found[0].kind == "messages"
    assert found[0].train.schema.equals(found[1].train.schema, check_metadata=True)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("not json", "row 9: not JSON"),
        ('{"role": "user"}', "row 9: give a list of messages"),
        ('[{"role": "wizard", "content": "x"}]', "row 9: role 'wizard'; allowed: system, user, assistant, tool"),
        ('[{"role": "user", "content": 3}]', "row 9: a message's content is 3; give text"),
        ("[]", "1 of 9 rows have nothing in 'talk', the first is row 9"),
    ],
)
def test_conversations_that_are_none(conversation: str, message: str) -> None:
    rows = [{"talk": json.dumps(talk(row)), "answer": "Hi"} for row in range(8)]
    path = write("a.csv", [*rows, {"talk": conversation, "answer": "Hi"}])
    with pytest.raises(DataError, match=message):
        read(path=path, messages="talk", target="answer")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"text": "t", "label": "l"}, r"give path:, or both train: and test:"),
        ({"path": "a.csv", "train": "b.csv", "test": "c.csv", "text": "t", "label": "l"}, r"give path:, or both"),
        ({"train": "b.csv", "text": "t", "label": "l"}, r"give path:, or both train: and test:"),
        ({"path": "a.csv", "label": "l"}, r"give exactly one of text, fields, .*given: none"),
        ({"path": "a.csv", "text": "t", "image": "i", "label": "l"}, r"exactly one of .*given: \['text', 'image'\]"),
        ({"path": "a.csv", "text": "t"}, r"give either label: \(classification\) or target: \(generation\)"),
        ({"path": "a.csv", "text": "t", "label": "l", "target": "a"}, r"give either label:"),
        ({"path": "a.csv", "text": "t", "label": "t"}, r"column 't' is named 2 times"),
        ({"path": "a.csv", "fields": ["t", "t"], "label": "l"}, r"column 't' is named 2 times"),
        ({"path": "a.csv", "fields": [], "label": "l"}, r"task.*fields"),
        ({"path": "a.csv", "text": "group", "label": "l", "group": "g"}, r"an input column is called 'group'"),
        ({"path": "a.csv", "texts": "t", "label": "l"}, r"unknown key 'texts'; did you mean 'text'\?"),
        *(
            ({"path": "a.csv", "text": name, "label": "l"}, f"input column '{name}' bears a name that graft writes")
            for name in RESERVED
        ),
    ],
)
def test_sections_that_are_refused(section: dict[str, Any], message: str) -> None:
    spec = {"name": "x", "task": {"name": "file", **section}, "method": {"name": "probe"}}
    with pytest.raises(SpecError, match=message):
        Experiment.from_mapping(spec)


def test_the_kind_is_known_before_anything_is_read() -> None:
    assert [task(path="no such file", label="l", **{kind: "c"}).kind for kind in ("text", "messages", "image")] == [
        "text",
        "messages",
        "image",
    ]


BAD_FILES = {
    "empty.csv": b"",
    "header.csv": b"text,label\n",
    "ragged.csv": b"text,label\nyes, but no,ham\n",
    "latin.csv": "text,label\nna\xefve,ham\n".encode("latin-1"),
    "twice.csv": b"text,text,label\na,b,ham\n",
    "torn.parquet": b"PAR1 this is not Parquet",
    "array.json": b'[{"text": "a", "label": "b"}',
    "torn.jsonl": b'{"text": "a", "label": "b"}\n{"text": \n',
    "mixed.jsonl": b'{"text": "a", "label": "b"}\n{"text": "b", "label": 3}\n',
    "latin.jsonl": '{"text": "na\xefve", "label": "b"}\n'.encode("latin-1"),
    "sheet.xlsx": b"PK",
    "folder/notes.txt": b"",
}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent.csv", r"absent.csv: no such file \(looked in /.*\); paths are relative to the current directory"),
        ("empty.csv", r"empty.csv: cannot be read as .csv: Empty CSV file"),
        ("header.csv", r"header.csv: no rows; give a file with rows"),
        (
            "ragged.csv",
            r"ragged.csv: cannot be read as .csv: CSV parse error: Expected 2 columns, got 3.*; save it as UTF-8",
        ),
        ("latin.csv", r"latin.csv: cannot be read as .csv: .*utf"),
        ("twice.csv", r"twice.csv: 2 columns 'text'; rename all but one"),
        ("torn.parquet", r"torn.parquet: cannot be read as .parquet: Parquet magic bytes not found"),
        (
            "array.json",
            r"array.json: cannot be read as .json: Expecting .*; write one JSON object per line",
        ),
        ("torn.jsonl", r"torn.jsonl: cannot be read as .jsonl: JSON parse error"),
        ("mixed.jsonl", r"mixed.jsonl: .* changed from string to number in row 1"),
        ("latin.jsonl", r"latin.jsonl: cannot be read as .jsonl: .*UTF8"),
        ("sheet.xlsx", r"sheet.xlsx: unknown format '.xlsx'; give .csv, .tsv, .jsonl, .ndjson, .json, .parquet, or"),
        ("folder", r"folder: a folder that datasets did not save \(no state.json\); give a file, or use save_to_disk"),
    ],
)
def test_files_that_cannot_be_read(path: str, message: str) -> None:
    Path("folder").mkdir()
    for name, content in BAD_FILES.items():
        Path(name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path=path, text="text", label="label")
    assert "\n" not in str(caught.value)


def test_a_torn_datasets_folder() -> None:
    save_datasets(ROWS)
    next(Path("saved").glob("*.arrow")).write_bytes(b"torn")
    with pytest.raises(DataError, match="saved: cannot be read as a saved datasets folder: ") as caught:
        read(path="saved", text="text", label="label")
    assert "\n" not in str(caught.value)


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    return [{**row, **(values if position == index else {})} for position, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "section", "message"),
    [
        (ROWS, {"text": "texts"}, r"a.csv: no column 'texts'; did you mean 'text'\? known: label, text"),
        (ROWS, {"label": "class"}, r"a.csv: no column 'class'; known: label, text"),
        (ROWS, {"group": "lang"}, r"a.csv: no column 'lang'"),
        (ROWS, {"rationale": "why"}, r"a.csv: no column 'why'"),
        (changed(7, text="  "), {}, r"1 of 60 rows have nothing in 'text', the first is row 8 \(counted from 1"),
        (changed(7, label=""), {}, r"a.csv: 1 of 60 rows have nothing in 'label', the first is row 8"),
        (changed(0, text=None), {}, r"a.csv: 1 of 60 rows have nothing in 'text', the first is row 1"),
        ([{**row, "label": "ham"} for row in ROWS], {}, r"every row has the label 'ham'; a classification needs"),
        (ROWS[1:3], {}, r"2 rows are too few to give a test set"),
        ([{"id": i // 2, **row} for i, row in enumerate(ROWS)], {}, r"a.csv: id '0' is on 2 rows; make ids unique, or"),
        ([{"id": i or "", **row} for i, row in enumerate(ROWS)], {}, r"1 of 60 rows have nothing in 'id'"),
    ],
)
def test_rows_that_make_no_task(rows: list, section: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**{"path": write("a.csv", rows), "text": "text", "label": "label", **section})


def test_null_labels_and_lists_as_text() -> None:
    parquet.write_table(pa.table({"text": ["a", "b"], "label": pa.array([1.0, float("nan")])}), "a.parquet")
    with pytest.raises(DataError, match="1 of 2 rows have nothing in 'label', the first is row 2"):
        read(path="a.parquet", text="text", label="label")
    parquet.write_table(pa.table({"text": [["a"], ["b"]], "label": ["x", "y"]}), "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' holds list<.*>, not text; name a text column"):
        read(path="a.parquet", text="text", label="label")
    with pytest.raises(DataError, match=r"column 'text' holds list<.*>; give bytes, or paths"):
        read(path="a.parquet", image="text", label="label")


def test_rows_that_training_and_test_files_share() -> None:
    train, test = write("train.csv", ROWS[:50]), write("test.csv", ROWS[48:])
    with pytest.raises(
        DataError, match=r"test.csv: 2 rows have the same input as a row of train.csv, the first is row 1"
    ):
        read(train=train, test=test, text="text", label="label")


def test_ids_that_training_and_test_files_share() -> None:
    train = write("train.csv", [{"id": i, **row} for i, row in enumerate(ROWS[:50])])
    test = write("test.csv", [{"id": i, **row} for i, row in enumerate(ROWS[50:], 49)])
    with pytest.raises(DataError, match=r"id '49' is in train.csv and in test.csv; ids are unique over both"):
        read(train=train, test=test, text="text", label="label")


def test_equal_inputs_are_counted_and_stay_together() -> None:
    dataset = read(path=write("a.csv", ROWS + ROWS[:5]), text="text", label="label")
    assert dataset.equal_inputs == 10
    assert not set(dataset.train["text"].to_pylist()) & set(dataset.test["text"].to_pylist())


def test_the_fingerprint_is_of_the_rows_and_not_of_the_file() -> None:
    first = read(path=write("a.csv", ROWS), text="text", label="label")
    second = read(path=write("b.parquet", ROWS), text="text", label="label")
    other = read(path=write("c.csv", changed(9, label="eggs")), text="text", label="label")
    assert first.fingerprint == second.fingerprint != other.fingerprint


def shared(name: str) -> str:
    path = SHARED / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not here: it comes with the development machines, not with a clone")
    return str(path)


def test_real_text_messages() -> None:
    dataset = read(path=shared("sms_spam"), text="text", label="label")
    assert dataset.labels == ("ham", "spam")
    assert (dataset.train.num_rows, dataset.test.num_rows) == (4574, 1000)
    assert dataset.equal_inputs > 500, "many of these messages were sent more than once"
    assert dataset.test["target"].to_pylist().count("spam") == pytest.approx(134, abs=2)


def test_real_text_in_many_languages() -> None:
    path = shared("sib200")
    with pytest.raises(DataError, match=r"id '\d+' is on 25 rows; make ids unique, or rename the column"):
        read(path=path, text="text", label="label", group="lang")
    table = parquet.read_table(path).drop_columns(["id"])
    parquet.write_table(table, "sib200.parquet")
    dataset = read(path="sib200.parquet", text="text", label="label", group="lang")
    assert len(dataset.labels or ()) == 7
    assert len(dataset.train["group"].unique()) == 25


def test_real_questions_with_answers() -> None:
    table = parquet.read_table(shared("xquad"), filters=[("lang", "=", "en")])
    parquet.write_table(table, "xquad.parquet")
    dataset = read(path="xquad.parquet", fields=["context", "question"], target="answer")
    assert dataset.labels is None
    assert dataset.train.num_rows + dataset.test.num_rows == 1190
    assert set(dataset.test["id"].to_pylist()) <= set(table["id"].to_pylist())


def test_real_images_and_sounds() -> None:
    images = read(path=shared("mnist_t10k"), image="image", label="label")
    assert images.labels == tuple("0123456789")
    assert {len(image) for image in images.test["image"].to_pylist()} == {784}
    sounds = read(path=shared("spoken_digits"), audio="wav", label="label", group="speaker")
    assert sounds.kind == "audio"
    assert sounds.test["wav"][0].as_py()[:4] == b"RIFF"


def test_only_the_rows_asked_for_are_used() -> None:
    rows = [
        {"text": f"t{row}", "label": "ab"[row % 2], "lang": ("bn", "te", "de")[row % 3], "level": row % 5}
        for row in range(90)
    ]
    dataset = read(path=write("a.parquet", rows), text="text", label="label", where={"lang": ["bn", "te"], "level": 3})
    kept = {row["text"] for row in rows if row["lang"] != "de" and row["level"] == 3}
    assert {row["text"] for row in rows_of(dataset)} == kept
    section = {"path": "a.parquet", "text": "text", "label": "label"}
    with pytest.raises(DataError, match=r"a\.parquet, column 'lang': no row has 'bnn'; did you mean 'bn'\?"):
        read(**section, where={"lang": "bnn"})
    with pytest.raises(DataError, match=r"no column 'lng'; did you mean 'lang'\?"):
        read(**section, where={"lng": "bn"})
    rows = [{"t": "x", "l": "a", "c": "1"}, {"t": "y", "l": "b", "c": "2"}]
    with pytest.raises(DataError, match=r"column 'l': no row has 'b'; known: a"):
        read(path=write("b.csv", rows), text="t", label="l", where={"c": "1", "l": "b"})


def test_ids_that_are_unique_in_each_part_of_a_file_name_the_column_of_the_parts() -> None:
    rows = [
        {"id": row, "q": f"{part} {row}", "note": f"{part}{row}", "split": part, "a": "x" if row % 2 else "y"}
        for part in ("train", "test")
        for row in range(30)
    ]
    with pytest.raises(
        DataError, match=r"id '0' is on 2 rows; .*column 'split' .*use one: task\.where: {split: train}"
    ):
        read(path=write("a.parquet", rows), text="q", label="a")
    taken = read(path="a.parquet", text="q", label="a", where={"split": "train"})
    assert taken.train.num_rows + taken.test.num_rows == 30
    more = [*rows, {**rows[0], "q": "the same id in the same part"}]
    with pytest.raises(DataError, match="id '0' is on 3 rows") as caught:
        read(path=write("b.parquet", more), text="q", label="a")
    assert "where" not in str(caught.value).replace("where it is one item", "")


def test_an_item_in_several_languages_stays_on_one_side() -> None:
    rows = [
        {"id": row, "lang": lang, "q": f"{lang} {row}", "a": str(row)} for lang in ("bn", "de") for row in range(60)
    ]
    section = {"text": "q", "target": "a", "group": "lang"}
    dataset = read(path=write("a.parquet", rows), **section, item="id", test_examples=20)
    asked = [row["id"].split("/") for row in dataset.test.to_pylist()]
    assert sorted(lang for lang, _ in asked) == ["bn"] * 10 + ["de"] * 10
    assert not {id for _, id in asked} & {id.split("/")[1] for id in dataset.train["id"].to_pylist()}
    assert dataset.items == {f"{row['lang']}/{row['id']}": str(row["id"]) for row in rows}
    with pytest.raises(DataError, match=r"id '0' is on 2 rows; .*item: id"):
        read(path="a.parquet", **section)
    parts = {lang: write(f"{lang}.csv", [row for row in rows if row["lang"] == lang]) for lang in ("bn", "de")}
    with pytest.raises(DataError, match=r"item '0' is in bn\.csv and in de\.csv"):
        read(train=parts["bn"], test=parts["de"], **section, item="id")


def test_groups_to_average_over_are_those_of_the_test_rows() -> None:
    rows = [{"text": f"t{row}", "label": "ab"[row % 2], "lang": ("bn", "te")[row // 2 % 2]} for row in range(60)]
    section = {"path": write("a.csv", rows), "text": "text", "label": "label"}
    read(**section, group="lang", macro=["te"])
    with pytest.raises(DataError, match=r"task\.macro: no row belongs to 'tee'; did you mean 'te'\?"):
        read(**section, group="lang", macro=["tee"])


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"label": "label", "parser": "number"}, "parser reads free text, not labels"),
        ({"label": "label", "macro": "all"}, "macro averages over groups: name their column"),
        ({"target": "label", "item": "id"}, "item: id needs group:"),
        ({"target": "label", "parser": "numer"}, "unknown parser; did you mean 'number'"),
        ({"target": "label", "where": {"label": []}}, "where.label"),
    ],
)
def test_parsers_and_groups_where_they_mean_nothing(section: dict[str, Any], expected: str) -> None:
    spec = {"name": "x", "models": {"base": {"source": "m"}}, "method": {"name": "icl"}}
    with pytest.raises(SpecError, match=expected):
        Experiment.from_mapping({**spec, "task": {"name": "file", "path": "a.csv", "text": "text", **section}})


def test_a_target_that_the_parser_cannot_read_names_its_row() -> None:
    rows = [{"q": f"q{row}", "a": f"#### {row}"} for row in range(9)] + [{"q": "last", "a": "many"}]
    with pytest.raises(DataError, match=r"a\.csv, column 'a', row 10 .*'many'"):
        read(path=write("a.csv", rows), text="q", target="a", parser="number")


def test_real_word_problems() -> None:
    section = {"text": "question", "target": "answer", "rationale": "rationale", "parser": "number"}
    with pytest.raises(DataError, match=r"id '0' is on 2 rows; .*use one: task\.where: {split: t"):
        read(path=shared("gsm8k"), **section)
    dataset = read(path=shared("gsm8k"), **section, where={"split": "train"})
    assert dataset.pool is not None
    assert (dataset.train.num_rows, dataset.test.num_rows, dataset.pool.num_rows) == (6409, 1000, 64)
    original = [
        {"question": row["question"], "answer": f"{row['rationale']}\n#### {row['target']}"}
        for row in dataset.test.to_pylist()
    ]
    whole = read(path=write("gsm8k.jsonl", original), text="question", target="answer", parser="number")
    asked = {row["question"]: row["target"] for row in dataset.test.to_pylist()}
    for row in rows_of(whole):
        assert parse(row["target"], "number") == parse(asked[row["question"]], "number")


def test_real_word_problems_in_many_languages() -> None:
    section = {"text": "question", "target": "answer", "group": "lang", "item": "id", "parser": "number"}
    dataset = read(path=shared("mgsm"), **section, macro=["bn", "te", "th", "sw"], test_examples=220)
    assert dataset.test.num_rows == 220
    items = [{id.partition("/")[2] for id in part["id"].to_pylist()} for part in (dataset.train, dataset.test)]
    assert not items[0] & items[1]
    assert Counter(dataset.test["group"].to_pylist())["bn"] == 20
    svamp = read(path=shared("svamp"), fields=["body", "question"], target="answer", parser="number", group="type")
    assert svamp.inputs == ("body", "question")


def test_real_rationales_of_several_tasks() -> None:
    section = {"text": "question", "target": "answer", "rationale": "rationale", "group": "source"}
    dataset = read(path=shared("flan_cot"), **section, where={"source": ["creak", "strategyqa"]}, parser="yes_no")
    assert set(dataset.train["group"].to_pylist()) == {"creak", "strategyqa"}
    with pytest.raises(DataError, match="yes_no finds nothing in the target"):
        read(path=shared("flan_cot"), **section, parser="yes_no")
