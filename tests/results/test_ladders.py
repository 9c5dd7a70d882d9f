"""Every rung of a ladder against the one above, as the report says it."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from scipy import stats

from graft.results.comparisons import Comparison, compare_rungs
from graft.results.files import write_table
from graft.results.ladders import ladders
from graft.results.outcomes import outcomes
from graft.results.records import failure_table, metric_table
from graft.results.report import write_report
from graft.results.tables import grids, summary, terminal
from graft.storage import open_storage

LADDER = ("full", "1 method.rationale=none", "2 method.instruction=false", "3 method.adapter=full")
VALUES = {
    LADDER[0]: (0.70, 0.72, 0.74),
    LADDER[1]: (0.60, 0.63, 0.64),
    LADDER[2]: (0.61, 0.60, 0.66),
    LADDER[3]: (0.81, 0.79, 0.86),
}


def table(record, values: Mapping[str, Sequence[float]] = VALUES, metric="accuracy", **fields) -> pa.Table:
    """A sweep with ablations: each rung lacks what those above it lack."""
    settings: dict[str, Any] = {"rationale": "teacher", "instruction": True, "adapter": {"peft_type": "LORA"}}
    tables = []
    for name, found in values.items():
        _, _, item = name.rpartition("method.")
        key, _, value = item.partition("=")
        changed = settings | ({key: yaml.safe_load(value)} if item != "full" else {})
        if name[0].isdigit():
            settings = changed
        for seed, value in enumerate(found):
            run = record("fiat", changed, seed=seed, ablation=name, **fields)
            tables.append(metric_table(run, {metric: value}, n=200))
    return pa.concat_tables(tables)


def found(metrics: pa.Table, metric="accuracy"):
    return ladders(summary(metrics, metric))


def compared(metrics: pa.Table, metric="accuracy") -> dict[str, Comparison]:
    """Label of a rung to its comparison."""
    rungs = compare_rungs(outcomes(metrics, None, metric))
    return {one.arm.removeprefix("fiat "): one for one in rungs}


def test_each_rung_is_compared_with_the_one_above(record) -> None:
    (ladder,) = found(table(record))
    assert (ladder.whole, ladder.examples, ladder.cumulative) == ("fiat", 8, True)
    assert [rung.label for rung in ladder.rungs] == ["full", *(f"- {name[2:]}" for name in LADDER[1:])]
    own = compared(table(record))
    assert [own[rung.label].verdict for rung in ladder.rungs[1:]] == ["worse", "undecided", "better"]
    for above, rung in zip(LADDER, ladder.rungs[1:], strict=False):
        interval = stats.ttest_rel(list(rung.cell.values.values()), VALUES[above]).confidence_interval(0.95)
        difference = own[rung.label].difference
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_a_smaller_loss_is_better(record) -> None:
    own = compared(table(record, metric="log_loss"), "log_loss")
    assert [one.verdict for one in own.values()] == ["better", "undecided", "worse"]


def test_other_ablations_are_compared_with_the_whole(record) -> None:
    alone = {name.lstrip("123 "): values for name, values in VALUES.items()}
    (ladder,) = found(table(record, alone))
    assert not ladder.cumulative
    own = compared(table(record, alone))
    assert [(rung.label, own[rung.label].verdict) for rung in ladder.rungs[1:]] == [
        ("- method.adapter=full", "better"),
        ("- method.instruction=false", "worse"),
        ("- method.rationale=none", "worse"),
    ]


def test_every_arm_and_size_has_its_ladder_and_other_arms_have_none(record) -> None:
    tables = [
        table(record, encoder=f"org/{model}", fingerprint=model * 16, examples=size, run_id=None)
        for model in ("a", "b")
        for size in (8, 64)
    ]
    for place, one in enumerate(tables):
        marked = pa.array([f"{run_id}-{place}" for run_id in one["run_id"].to_pylist()])
        tables[place] = one.set_column(0, "run_id", marked)
    other = metric_table(record("icl", {}), {"accuracy": 0.1}, n=200)
    assert [(ladder.whole[-1], ladder.examples) for ladder in found(pa.concat_tables([*tables, other]))] == [
        ("a", 8),
        ("a", 64),
        ("b", 8),
        ("b", 64),
    ]


def test_where_a_rung_failed_the_next_one_has_nothing_to_be_compared_with(record) -> None:
    metrics = table(record)
    keep = [name != LADDER[1] for name in metrics["ablation"].to_pylist()]
    settings = {"rationale": "none", "instruction": "true", "adapter": "lora"}
    failed = failure_table(record("fiat", settings, ablation=LADDER[1], error="out of memory"))
    own = compared(pa.concat_tables([metrics.filter(pa.array(keep)), failed]))
    assert {label: one.verdict for label, one in own.items()} == {"- method.adapter=full": "better"}


def test_one_seed_decides_nothing(record) -> None:
    own = compared(table(record, {name: values[:1] for name, values in VALUES.items()}))
    assert [one.verdict for one in own.values()] == ["undecided"] * 3
    assert own["- method.rationale=none"].difference.mean == pytest.approx(-0.1)


def test_two_ladders_from_one_whole_have_no_table(record) -> None:
    other = table(record, {LADDER[0]: VALUES[LADDER[0]], "1 method.adapter=full": (0.5, 0.5, 0.5)})
    assert found(pa.concat_tables([table(record), other])) == ()


def test_rungs_stand_in_the_ladders_order_below_their_whole(record) -> None:
    best = pa.concat_tables(
        [metric_table(record("icl", {}, seed=seed), {"accuracy": 0.75}, n=200) for seed in range(3)]
    )
    worst = metric_table(record("tart", {}), {"accuracy": 0.2}, n=200)
    (grid,) = grids(summary(pa.concat_tables([worst, table(record), best]), "accuracy"))
    assert grid.arms == ("icl", "fiat full", *(f"fiat - {name[2:]}" for name in LADDER[1:]), "tart")
    assert grid.ranked(8)[0].arm == "fiat - method.adapter=full"


def test_a_terminal_breaks_no_line_after_the_dash(record) -> None:
    cells = [str(cell) for cell in terminal(summary(table(record), "accuracy")).columns[0].cells]
    assert cells == [
        "fiat full",
        "fiat - method.rationale=none",  # just fits
        "fiat\n- method.instruction=false",
        "fiat - method.adapter=full",
    ]


def test_the_report_has_the_ladder_in_both_files(tmp_path, record) -> None:
    write_table(open_storage(tmp_path), "metrics.parquet", table(record))
    page, text = (Path(path).read_text(encoding="utf-8") for path in write_report([str(tmp_path)]))
    assert "<h3>Ladder: fiat, 8 labelled examples</h3>" in page
    assert "### Ladder: fiat, 8 labelled examples" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| - method.rationale=none | ")]
    difference = stats.ttest_rel(VALUES[LADDER[1]], VALUES[LADDER[0]]).confidence_interval(0.95)
    p = compared(table(record))["- method.rationale=none"].corrected_p
    assert row.endswith(f"| −0.097 | −{-difference.low:.3f} to −{-difference.high:.3f} | {p:.3f} | worse |")
    for words in (page, text):
        assert "Each rung lacks what it names and all that is named above it." in words
        assert "corrected by Holm's method" in html.unescape(words)
