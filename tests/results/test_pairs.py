"""`graft compare`: two runs or arms, with the numbers of the comparisons, or one line that says what is wrong."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from graft import cli
from graft.errors import DataError
from graft.results.comparisons import compare_named
from graft.results.files import write_table
from graft.results.outcomes import outcomes
from graft.results.pairs import compare_pair
from graft.results.records import failure_table
from graft.results.words import limits, p_text, signed
from graft.storage import open_storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory, answered):
    """The runs of the sweep, each in its own folder."""
    folder = tmp_path_factory.mktemp("runs")
    files = open_storage(folder)
    metrics, predictions = answered
    for run_id in ("2-64-0", "3-64-0", "3-64-1", "3-16-0"):
        for name, table in (("metrics", metrics), ("predictions", predictions)):
            own = table.filter(pc.equal(table["run_id"], run_id))
            write_table(
                files, f"runs/{run_id}/{name}.parquet", own.drop_columns(["run_id"] if name != "metrics" else [])
            )
    return folder


def test_two_arms_of_a_sweep_are_compared_at_every_size(whole_sweep, answered) -> None:
    said = CliRunner().invoke(cli.app, ["compare", "lora", "probe classifier=ridge", "--sweep", str(whole_sweep)])
    assert said.exit_code == 0, said.output
    for one in compare_named(outcomes(*answered, "accuracy"), "lora", "probe classifier=ridge"):
        assert f"reviews, {one.examples} labelled examples: accuracy (higher is better)" in said.output
        assert one.verdict in said.output
        assert (
            f"{signed(one.difference.mean)}, 95 % interval {limits(one.difference, True)} over seeds and" in said.output
        )
        assert f"p                     {p_text(one.p)}, of no difference" in said.output
        assert f"smallest detectable   {one.detectable:.3f}" in said.output
        for test in one.mcnemar:
            assert f"right on {test.only_arm:,} rows, only the second on {test.only_other:,}: p" in said.output


def test_two_runs_are_compared_by_id_by_folder_and_inside_a_sweep(storage, whole_sweep) -> None:
    by_id = compare_pair("2-64-0", "3-64-0", storage=str(storage))
    folders = compare_pair(f"{storage}/runs/2-64-0", f"{storage}/runs/3-64-0")
    inside = compare_pair("2-64-0", "3-64-0", sweep=str(whole_sweep))
    assert list(by_id.lines()) == list(folders.lines()) == list(inside.lines())
    (one,) = by_id.comparisons
    assert (one.arm, one.other, one.seeds, one.items) == ("lora", "head", (0,), 300)
    assert one.difference.covers == "groups"
    loss = compare_pair("2-64-0", "3-64-0", storage=str(storage), metric="log_loss")
    assert "log_loss (lower is better)" in "\n".join(loss.lines())


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("2-64-0", "9"), {}, r"9: no run of this name under .*--sweep"),
        (("2-64-0", "2-64-0"), {}, "compared with itself; name two different runs"),
        (("2-64-0", "3-64-1"), {}, r"different seed, 0 and 1; run both with the same regime\.seed"),
        (("2-64-0", "3-16-0"), {}, "different examples, 64 and 16"),
        (("3-64-0", "3-64-1"), {}, "different seed"),
        (("2-64-0", "3-64-0"), {"metric": "accuracyy"}, "--metric: there is no metric 'accuracyy'; did you mean"),
    ],
)
def test_what_cannot_be_compared_is_said_with_the_cure(storage, names, options, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        compare_pair(*names, storage=str(storage), **options)
    assert "\n" not in str(caught.value)


def test_a_name_that_a_sweep_lacks_is_guessed(whole_sweep) -> None:
    with pytest.raises(DataError, match="there is no arm 'lorra'; did you mean 'lora'"):
        compare_pair("lorra", "head", sweep=str(whole_sweep))


def test_a_failed_run_and_a_folder_of_many_are_refused(storage, tmp_path, record, answered) -> None:
    files = open_storage(tmp_path)
    metrics = answered[0].filter(pc.equal(answered[0]["run_id"], "2-64-0"))
    broken = failure_table(record("icl", {}, task="reviews", examples=64, error="out of memory", run_id="x"))
    write_table(files, "metrics.parquet", pa.concat_tables([metrics, broken]))
    with pytest.raises(DataError, match="x: this run failed: out of memory"):
        compare_pair("2-64-0", "x", sweep=str(tmp_path))
    with pytest.raises(DataError, match="holds 4 runs; name one of them"):
        compare_pair(str(storage), str(storage))
