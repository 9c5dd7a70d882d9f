"""A sweep over runs that another graft has carried out."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from graft.errors import DataError
from graft.results.pairs import compare_pair
from graft.results.records import METRICS
from graft.results.report import write_report
from graft.spec import Experiment
from graft.sweeps.axes import expand
from graft.sweeps.sweep import run_sweep

SWEPT = Experiment.from_mapping(
    {
        "name": "wines",
        "task": {"name": "wine"},
        "regime": {"examples": 16},
        "method": {"name": "probe"},
        "sweep": {"axes": {"method.classifier": ["ridge", "knn"]}},
    }
)


def test_runs_of_an_older_graft_are_read_and_those_of_a_newer_one_refused(tmp_path: Path) -> None:
    storage = str(tmp_path)
    done = [one.run(tmp_path) for one in expand(SWEPT)]
    older = Path(done[0].folder) / "metrics.parquet"
    parquet.write_table(done[0].metrics.drop_columns(["store_reads", "seconds", "searched"]), older)
    before = older.read_bytes()
    swept = run_sweep(SWEPT, tmp_path)
    assert swept.metrics.schema.equals(METRICS)
    assert set(swept.metrics["run_id"].to_pylist()) == {one.run_id for one in done}
    assert older.read_bytes() == before  # read, not carried out again

    newer = Path(done[1].folder) / "predictions.parquet"
    rows = parquet.read_table(newer).drop_columns(["prediction"])
    told = rows.append_column("prediction", pa.array([[1]] * len(rows)))
    parquet.write_table(told.replace_schema_metadata({"graft": "9.1"}), newer)
    before = newer.read_bytes()
    reading = (
        lambda: run_sweep(SWEPT, tmp_path),
        lambda: expand(SWEPT)[1].run(tmp_path),
        lambda: write_report([f"{storage}/runs"]),
        lambda: compare_pair(done[0].run_id, done[1].run_id, storage=storage),
    )
    for read in reading:
        with pytest.raises(
            DataError, match=r"column 'prediction' is list<.*graft 9\.1 wrote it: read it with that"
        ) as e:
            read()
        assert str(newer) in str(e.value)
    assert newer.read_bytes() == before
