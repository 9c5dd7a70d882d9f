import json
import logging
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import DataError, StoreError
from graft.results.files import read_table, write_table
from graft.results.predictions import load_predictions
from graft.results.records import (
    METRICS,
    Result,
    each_run_once,
    environment,
    failure_table,
    git_commit,
    load_metrics,
    metric_table,
    with_column,
)
from graft.results.searches import SEARCH, load_searches
from graft.storage import open_storage

SURFACE = (
    "run_id name method task split metric value n examples seed ablation searched status error spec task_sha "
    "equal_inputs prompt_sha versions git_commit seconds tokens forward_passes teacher_calls teacher_reads "
    "peak_memory_bytes parameters_trainable parameters_total models device texts_cut rationales_cut store_reads"
)


VERSION = metadata.version("graft-compose")


def answers(rows=3):
    return pa.table({"id": [f"r{i}" for i in range(rows)], "scores": [{"ham": -0.5, "spam": -0.9}] * rows})


def write_run(root: Path, record, value=0.5) -> Path:
    folder = f"runs/{record.run_id}"
    write_table(open_storage(root), f"{folder}/metrics.parquet", metric_table(record, {"accuracy": value}, n=3))
    return root / folder


def test_the_columns_are_those_of_the_surface() -> None:
    assert " ".join(METRICS.names) == SURFACE


def test_one_row_per_metric_with_the_run_repeated(record) -> None:
    table = metric_table(record(git_commit="abc", texts_cut=4), {"accuracy": 0.75, "auroc": float("nan")}, n=40)
    assert table.schema.equals(METRICS)
    first, second = table.to_pylist()
    assert (first["metric"], first["value"], first["n"], first["split"]) == ("accuracy", 0.75, 40, "test")
    assert (second["metric"], second["value"]) == ("auroc", None)
    assert json.loads(first["spec"])["method"] == {"name": "probe", "classifier": "logistic"}
    assert json.loads(first["models"])["encoder"]["fingerprint"] == "0123456789abcdef"
    assert (first["status"], first["error"], first["texts_cut"], first["seconds"]) == ("done", None, 4, 1.5)


def test_a_failed_run_is_one_row(record) -> None:
    (row,) = failure_table(record(error="DataError: no rows")).to_pylist()
    assert (row["metric"], row["value"], row["n"]) == (None, None, None)
    assert (row["status"], row["error"], row["method"]) == ("failed", "DataError: no rows", "probe")


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), st.floats(allow_nan=False)), max_size=5))
def test_written_tables_read_back(tmp_path_factory, rows) -> None:
    table = pa.table({"text": [text for text, _ in rows], "value": pa.array([v for _, v in rows], pa.float64())})
    files = open_storage(tmp_path_factory.mktemp("tables"))
    write_table(files, "a/b.parquet", table)
    assert read_table(files, "a/b.parquet").to_pylist() == table.to_pylist()


def test_a_table_is_written_with_zstd_and_nothing_is_left_beside_it(tmp_path) -> None:
    write_table(open_storage(tmp_path), "a/b.parquet", answers())
    assert os.listdir(tmp_path / "a") == ["b.parquet"]
    assert pq.read_metadata(tmp_path / "a" / "b.parquet").row_group(0).column(0).compression == "ZSTD"


def test_a_refused_write_leaves_the_old_table(tmp_path, record) -> None:
    folder = tmp_path / "run"
    files = open_storage(folder)
    write_table(files, "metrics.parquet", metric_table(record(), {"accuracy": 0.5}, n=3))
    before = (folder / "metrics.parquet").read_bytes()
    (folder / "metrics.parquet.d").mkdir()
    (folder / "metrics.parquet.d" / "inside").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        write_table(files, "metrics.parquet.d", answers())
    assert (folder / "metrics.parquet").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["metrics.parquet", "metrics.parquet.d"]


def test_a_damaged_table_is_an_error_with_its_cure(tmp_path) -> None:
    files = open_storage(tmp_path)
    values = np.random.default_rng(0).integers(0, 10**9, 3000)
    write_table(files, "m.parquet", pa.table({"n": values}))
    whole = (tmp_path / "m.parquet").read_bytes()
    pages = pq.read_metadata(tmp_path / "m.parquet").row_group(0).column(0).total_compressed_size
    for place in range(60, pages, 211):  # behind the first page's header, inside the data
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (tmp_path / "m.parquet").write_bytes(damaged)
        with pytest.raises(
            StoreError, match=r"m\.parquet: damaged: .*delete its folder and give the same command again"
        ):
            read_table(files, "m.parquet")


def test_damage_anywhere_raises_nothing_else(tmp_path, record) -> None:
    files = open_storage(tmp_path)
    table = metric_table(record(), {"accuracy": 0.5, "ece": 0.1}, n=3)
    write_table(files, "m.parquet", table)
    whole = (tmp_path / "m.parquet").read_bytes()
    reported = 0
    for place in range(0, len(whole), 29):
        (tmp_path / "m.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_table(files, "m.parquet")
        except StoreError:
            reported += 1
    assert reported > 100


@pytest.mark.parametrize("size", [0, 3, 100])
def test_a_torn_table_is_an_error(tmp_path, size) -> None:
    files = open_storage(tmp_path)
    write_table(files, "m.parquet", answers())
    (tmp_path / "m.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:size])
    with pytest.raises(StoreError, match="damaged"):
        read_table(files, "m.parquet")


def test_a_missing_table_is_an_error(tmp_path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        read_table(open_storage(tmp_path), "m.parquet")


def test_the_environment_names_the_installed_versions() -> None:
    found = environment()
    assert found["graft"] == metadata.version("graft-compose")
    assert found["torch"] == metadata.version("torch")
    assert set(found) == {"graft", "python", "torch", "transformers", "scikit-learn", "pyarrow", "numpy"}


def test_the_git_commit_is_that_of_the_current_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    git("tag", "v1")
    assert git_commit() == commit
    (tmp_path / "a").write_text("2")
    assert git_commit() == f"{commit}-dirty"


def test_without_git_there_is_no_commit(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_a_result_reads_its_graph_once_and_when_asked(record) -> None:
    calls = []
    metrics = metric_table(record(), {"accuracy": 0.75, "auroc": float("nan")}, n=4)
    result = Result("r", metrics, answers(), "runs/r", lambda: calls.append(1) or "graph")
    assert result.metric("accuracy") == 0.75
    assert np.isnan(result.metric("auroc"))
    assert not calls
    assert (result.graph, result.graph) == ("graph", "graph")
    assert calls == [1]
    with pytest.raises(DataError, match="no metric 'accuraci'; did you mean 'accuracy'"):
        result.metric("accuraci")


def test_a_failed_result_says_why(record) -> None:
    result = Result("r", failure_table(record(error="out of memory")), answers(), "runs/r", lambda: None)
    with pytest.raises(DataError, match="r: the run failed and has no metrics: out of memory"):
        result.metric("accuracy")


def test_runs_sweeps_and_roots_load_alike(tmp_path, record) -> None:
    records = [record(seed=seed) for seed in range(3)]
    folders = [write_run(tmp_path, item, 0.5 + item.seed / 10) for item in records]
    files = open_storage(tmp_path)
    joined = pa.concat_tables(read_table(files, f"runs/{item.run_id}/metrics.parquet") for item in records)
    write_table(files, "sweeps/s/metrics.parquet", joined)

    ways = [folders, [tmp_path], [tmp_path / "sweeps" / "s"], [tmp_path, *folders, tmp_path / "sweeps" / "s"]]
    ways += [[tmp_path.as_uri()], [tmp_path / "runs"], [tmp_path / "sweeps"]]
    for paths in ways:
        metrics = load_metrics([str(path) for path in paths])
        assert sorted(metrics["run_id"].to_pylist()) == sorted(item.run_id for item in records)
        assert sorted(metrics["value"].to_pylist()) == [0.5, 0.6, 0.7]


def test_a_run_that_is_not_done_is_skipped_and_named(tmp_path, record, caplog) -> None:
    write_run(tmp_path, record())
    open_storage(tmp_path / "runs" / "half-way")
    with caplog.at_level(logging.WARNING):
        assert load_metrics([str(tmp_path)]).num_rows == 1
    assert "1 not done, skipped" in caplog.text
    assert "half-way" in caplog.text


def test_a_failed_run_gives_way_to_the_same_run_done_later(tmp_path, record) -> None:
    failed = failure_table(record(run_id="r", error="out of memory"))
    write_table(open_storage(tmp_path), "sweeps/s/metrics.parquet", failed)
    write_run(tmp_path, record(run_id="r"), 0.8)
    metrics = load_metrics([str(tmp_path / "sweeps" / "s"), str(tmp_path)])
    assert metrics["value"].to_pylist() == [0.8]
    assert load_metrics([str(tmp_path / "sweeps" / "s")])["error"].to_pylist() == ["out of memory"]


def test_a_run_that_a_table_holds_twice_is_taken_once(tmp_path, record) -> None:
    done = metric_table(record(run_id="r"), {"accuracy": 0.5, "ece": 0.1}, n=3)
    failed = failure_table(record(run_id="r", error="out of memory"))
    assert each_run_once(pa.concat_tables([failed, done, done, failed])).equals(done)
    assert each_run_once(pa.concat_tables([failed, failed])).equals(failed)
    # What a sweep calls a run is kept, whichever table comes first; of several names a ladder's.
    named = [
        with_column(done, "ablation", {"r": name}) for name in ("method.rationale=none", "1 method.rationale=none")
    ]
    assert each_run_once(pa.concat_tables([failed, done, *named])).equals(named[1])
    write_table(open_storage(tmp_path), "sweeps/s/metrics.parquet", pa.concat_tables([done, done]))
    assert load_metrics([str(tmp_path / "sweeps" / "s")]).num_rows == 2


def test_a_table_says_which_graft_wrote_it(tmp_path) -> None:
    files = open_storage(tmp_path)
    write_table(files, "a.parquet", answers())
    older = answers().replace_schema_metadata({"graft": "0.0.1", "mine": "kept"})
    write_table(files, "b.parquet", older)
    for name, more in (("a", {}), ("b", {b"mine": b"kept"})):
        assert pq.read_schema(tmp_path / f"{name}.parquet").metadata == {b"graft": VERSION.encode(), **more}


def written(path: Path, table: pa.Table, version: str | None = None) -> None:
    """As another graft writes it: today's does not have its say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"graft": version} if version else None), path)


def test_columns_that_an_older_graft_did_not_write_are_null(tmp_path, record) -> None:
    old = metric_table(record(run_id="old"), {"accuracy": 0.5}, n=3).drop_columns(["task_sha", "store_reads"])
    written(tmp_path / "runs/old/metrics.parquet", old.select(old.column_names[::-1]))
    write_run(tmp_path, record(run_id="new"))
    metrics = load_metrics([str(tmp_path)])
    assert metrics.schema.equals(METRICS)
    assert dict(zip(metrics["run_id"].to_pylist(), metrics["store_reads"].to_pylist(), strict=True)) == {
        "new": 208,
        "old": None,
    }
    assert metrics["value"].to_pylist() == [0.5, 0.5]
    searched = pa.table({"method": ["icl"], "trial": pa.array([0], pa.int32()), "value": [0.5]})
    written(tmp_path / "search.parquet", searched)
    found = load_searches([str(tmp_path)])
    assert found.schema.equals(SEARCH)
    assert (found["trial"].to_pylist(), found["runs"].to_pylist()) == ([0], [None])


def test_types_that_mean_the_same_are_cast(tmp_path, record) -> None:
    table = metric_table(record(), {"accuracy": 1.0}, n=3)
    for name, kind in (("value", pa.int8()), ("n", pa.int32()), ("name", pa.large_string())):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(kind))
    written(tmp_path / "metrics.parquet", table)
    assert read_table(open_storage(tmp_path), "metrics.parquet", METRICS).equals(
        metric_table(record(), {"accuracy": 1.0}, n=3)
    )


@pytest.mark.parametrize(
    ("name", "values", "version", "said"),
    [
        ("joules", [3.5], "9.1", r"column 'joules' is not known to graft {own}; graft 9\.1 wrote it"),
        ("joules", [3.5], None, r"column 'joules' is not known to graft {own}; another graft wrote it"),
        ("seconds", ["long"], "9.1", r"column 'seconds' is string, which is no double as in graft {own}; graft 9\.1"),
        ("n", [0.5], "9.1", r"column 'n' is double, which is no int64 as in graft {own}"),
        ("seed", [{"data": 1}], "9.1", r"column 'seed' is struct<data: int64>, which is no int64"),
    ],
)
def test_what_only_another_graft_understands_is_refused(tmp_path, record, name, values, version, said) -> None:
    known = metric_table(record(run_id="r"), {"accuracy": 0.5}, n=3)
    kept = known.drop_columns([name]) if name in known.column_names else known
    path = tmp_path / "runs" / "r" / "metrics.parquet"
    written(path, kept.append_column(name, pa.array(values)), version)
    with pytest.raises(DataError) as caught:
        load_metrics([str(tmp_path)])
    message = str(caught.value)
    assert re.match(re.escape(f"{path}: ") + said.format(own=re.escape(VERSION)), message)
    assert message.endswith("read it with that one, or run the spec again in another --storage")
    assert "\n" not in message


def test_the_same_holds_for_searches_and_predictions(tmp_path, record) -> None:
    write_run(tmp_path, record(run_id="r"))
    told = {"id": ["a"], "target": ["yes"], "prediction": ["no"], "mood": [3]}
    predictions = tmp_path / "runs" / "r" / "predictions.parquet"
    written(predictions, pa.table({**told, "target_tokens": pa.array([2], pa.int8())}), "9.1")
    found = load_predictions([str(tmp_path)], ["r"])
    assert found is not None
    # A task has columns of its own, so one that is not known is no reason to refuse.
    assert found.to_pylist() == [{"run_id": "r", "id": "a", "target": "yes", "prediction": "no", "target_tokens": 2}]
    written(predictions, pa.table({**told, "target_tokens": ["many"]}), "9.1")
    with pytest.raises(
        DataError, match=r"r/predictions\.parquet: column 'target_tokens' is string, .* graft 9\.1 wrote"
    ):
        load_predictions([str(tmp_path)], ["r"])
    written(tmp_path / "search.parquet", pa.table({"method": ["icl"], "rung": [1]}), "9.1")
    with pytest.raises(DataError, match=r"search\.parquet: column 'rung' is not known"):
        load_searches([str(tmp_path)])


@pytest.mark.parametrize("paths", [["nowhere"], [], ["."], ["file:///nowhere/at/all"]])
def test_nothing_found_is_an_error_and_makes_no_folder(tmp_path, monkeypatch, paths) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_metrics(paths)
    assert os.listdir(tmp_path) == []
