import yaml

from graft.results.listing import details
from graft.results.records import COSTS, METRICS, metric_table, write_table
from graft.storage import open_storage, write_atomic


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
