import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from graft.errors import DataError
from graft.results.files import write_table
from graft.results.listing import details, run_table
from graft.results.records import COSTS, METRICS, metric_table
from graft.storage import open_storage, write_atomic


def listed(storage) -> dict[str, list[str]]:
    """The cells of each line of `graft ls`, by its id, without the empty ones at its end."""
    columns = run_table(str(storage)).columns
    lines = zip(*([str(cell) for cell in (column.header, *column.cells)] for column in columns), strict=True)
    return {name: " | ".join(cells).rstrip(" |").split(" | ") for name, *cells in lines}


def write_run(storage, record, **metrics: float) -> None:
    files = open_storage(storage)
    write_atomic(files, f"runs/{record.run_id}/spec.yaml", yaml.safe_dump(record.spec).encode())
    write_atomic(files, f"runs/{record.run_id}/graph/graph.json", b'{"nodes": []}')
    if metrics:
        write_table(files, f"runs/{record.run_id}/metrics.parquet", metric_table(record, metrics, n=3))


def test_a_sweep_counts_equal_members_once(tmp_path, record) -> None:
    files = open_storage(tmp_path)
    write_atomic(files, "sweeps/s/sweep.yaml", yaml.safe_dump({"runs": ["a", "b", "a"]}).encode())
    write_table(files, "runs/a/metrics.parquet", metric_table(record(run_id="a"), {"accuracy": 0.5}, n=3))
    assert list(details("s", str(tmp_path))) == ["not done: 1 of 2 runs; the same command goes on"]


def test_a_run_shows_its_costs(tmp_path, record) -> None:
    files = open_storage(tmp_path)
    write_atomic(files, "runs/a/spec.yaml", b"name: a")
    write_atomic(files, "runs/a/graph/graph.json", b'{"nodes": []}')
    write_table(files, "runs/a/metrics.parquet", metric_table(record(run_id="a"), {"accuracy": 0.5}, n=3))
    shown = [line.split() for line in details("a", str(tmp_path))]
    assert set(COSTS) <= set(METRICS.names)
    assert [line[0] for line in shown[-len(COSTS) :]] == list(COSTS)
    assert ["tokens", "1,200"] in shown


def test_runs_are_called_by_what_they_have_other_than_the_others(tmp_path, record) -> None:
    shared = {"num_shots": 4, "selection": "random", "order": "given", "calibrate": False, "samples": 1}
    for run_id, settings, values in (
        ("a", shared, {"accuracy": 0.5}),
        ("b", shared | {"calibrate": True}, {"accuracy": 0.75, "ece": 0.1}),
        ("c", shared | {"calibrate": True, "num_shots": 8}, {}),
    ):
        write_run(tmp_path, record("icl", settings, run_id=run_id), **values)
    assert listed(tmp_path) == {
        "id": ["status", "task", "arm", "examples", "seed", "metric", "value"],
        "a": ["done", "python-docs", "icl calibrate=false num_shots=4", "8", "0", "accuracy", "0.5000"],
        "b": ["done", "python-docs", "icl calibrate=true num_shots=4", "8", "0", "accuracy", "0.7500"],
        "c": ["not done", "python-docs", "icl calibrate=true num_shots=8", "8", "0"],
    }


def test_one_line_cannot_take_the_others_with_it(tmp_path, record) -> None:
    write_run(tmp_path, record(settings={"classifier": "[bold]"}, run_id="a"), accuracy=0.5)
    for run_id in ("other", "torn"):
        write_run(tmp_path, record(run_id=run_id), accuracy=0.5)
    (tmp_path / "runs/torn/metrics.parquet").write_bytes(b"PAR1")
    table = pq.read_table(tmp_path / "runs/other/metrics.parquet").append_column("joules", pa.array([1.0]))
    pq.write_table(table.replace_schema_metadata({"graft": "9.1"}), tmp_path / "runs/other/metrics.parquet")
    (tmp_path / "runs" / "empty").mkdir()
    found = listed(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    console.print(run_table(str(tmp_path)))
    assert "classifier=[bold]" in console.file.getvalue()
    assert found["a"][:3] == ["done", "python-docs", "probe classifier=[bold]"]
    assert found["other"] == ["of another graft", "python-docs", "probe classifier=logistic", "8", "0"]
    assert found["torn"] == ["damaged", "python-docs", "probe classifier=logistic", "8", "0"]
    assert found["empty"][0] == "not done"
    with pytest.raises(DataError, match=r"other/metrics\.parquet: column 'joules' is not known .* graft 9\.1 wrote it"):
        list(details("other", str(tmp_path)))


def test_what_limits_have_cut_is_shown_where_they_have(tmp_path, record) -> None:
    write_run(tmp_path, record(run_id="a", rationales_cut=1200), accuracy=0.5)
    write_run(tmp_path, record(run_id="b"), accuracy=0.5)
    shown = [line.split() for line in details("a", str(tmp_path))]
    assert ["rationales_cut", "1,200"] in shown
    assert "_cut" not in "".join(details("b", str(tmp_path)))


def test_a_cost_that_an_older_graft_did_not_count_is_not_zero(tmp_path, record) -> None:
    write_run(tmp_path, record(run_id="a"), accuracy=0.5)
    table = metric_table(record(run_id="a"), {"accuracy": 0.5}, n=3).drop_columns(["store_reads", "rationales_cut"])
    pq.write_table(table, tmp_path / "runs/a/metrics.parquet")
    assert ["store_reads", "not", "counted"] in [line.split() for line in details("a", str(tmp_path))]
