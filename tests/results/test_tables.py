import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from scipy import stats

from graft.results.records import failure_table, metric_table
from graft.results.tables import (
    grids,
    main_metric,
    markdown,
    markdown_text,
    metric_names,
    number,
    summary,
    terminal,
)


def joined(*records, value=0.5) -> pa.Table:
    return pa.concat_tables([metric_table(record, {"accuracy": value}, n=200) for record in records])


def shown(table, width=160) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_cell_is_the_mean_over_seeds_with_scipys_interval(sweep, accuracy) -> None:
    cells = summary(sweep(), "accuracy")
    assert len(cells) == 15
    cell = next(cell for cell in cells if cell.arm == "probe classifier=knn" and cell.examples == 64)
    values = [accuracy(2, 64, seed) for seed in range(5)]
    assert cell.interval.mean == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (cell.interval.low, cell.interval.high) == pytest.approx((low, high))
    assert (cell.seeds, cell.n, cell.failed, cell.runs) == ((0, 1, 2, 3, 4), 200, 0, 5)
    assert [(c.arm, c.examples) for c in cells] == sorted((c.arm, c.examples) for c in cells)


def test_failed_runs_are_counted_where_they_belong(sweep) -> None:
    cells = summary(
        sweep(failing=lambda arm, size, seed: "memory" if arm == 4 and size == 512 and seed != 3 else None), "accuracy"
    )
    failed = {(cell.arm, cell.examples): (cell.failed, cell.seeds) for cell in cells if cell.failed}
    assert failed == {("probe classifier=logistic", 512): (4, (3,))}


def test_an_arm_that_only_fails_keeps_its_row(sweep) -> None:
    cells = summary(sweep(failing=lambda arm, size, seed: "memory" if arm == 4 else None), "accuracy")
    (grid,) = grids(cells)
    assert grid.arms[-1] == "probe classifier=logistic"
    assert "failed" in markdown(cells).splitlines()[-1]
    assert grid.ranked(512)[0].arm == "probe classifier=ridge"


def test_where_everything_fails_there_is_no_cell(sweep) -> None:
    metrics = sweep(failing=lambda *_: "memory")
    assert metric_names(metrics) == []
    assert summary(metrics, main_metric(metrics)) == []
    assert markdown([]) == ""
    assert "examples" in shown(terminal([]))


def test_undefined_values_and_other_splits_are_left_out(record) -> None:
    metrics = pa.concat_tables(
        [
            metric_table(record(seed=0), {"auroc": float("nan")}, n=9),
            metric_table(record(seed=1), {"auroc": 0.75}, n=9),
            metric_table(record(seed=2), {"auroc": 0.25}, n=9, split="validation"),
        ]
    )
    (cell,) = summary(metrics, "auroc")
    assert dict(cell.values) == {1: 0.75}


def test_runs_that_share_a_seed_count_once(record) -> None:
    metrics = pa.concat_tables(
        [metric_table(record(run_id=name), {"accuracy": value}, n=9) for name, value in (("a", 0.4), ("b", 0.6))]
    )
    (cell,) = summary(metrics, "accuracy")
    assert (cell.interval.mean, cell.interval.n, cell.runs) == (0.5, 1, 2)


def test_a_run_that_the_table_holds_twice_counts_once(record) -> None:
    done = metric_table(record(seed=0), {"accuracy": 0.4}, n=9)
    failed = failure_table(record(seed=1, error="memory"))
    (cell,) = summary(pa.concat_tables([done, failed, failed, done]), "accuracy")
    assert (cell.runs, cell.failed) == (1, 1)


def test_the_same_spec_on_edited_rows_is_another_task(record) -> None:
    runs = [record(seed=seed, task_sha=sha, run_id=f"{seed}{sha}") for seed in (0, 1) for sha in ("a" * 32, "b" * 32)]
    tables = [metric_table(run, {"accuracy": 0.9 if run.task_sha[0] == "a" else 0.1}, n=9) for run in runs]
    cells = summary(pa.concat_tables(tables), "accuracy")
    assert [(cell.task, cell.interval.mean, cell.runs) for cell in cells] == [
        ("python-docs #aaaaaa", 0.9, 2),
        ("python-docs #bbbbbb", 0.1, 2),
    ]


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "ece"])
def test_arms_stand_from_best_to_worst_at_the_largest_size(sweep, metric) -> None:
    (grid,) = grids(summary(sweep(), metric))
    assert [arm.partition("=")[2] for arm in grid.arms] == ["logistic", "ridge", "knn", "centroid", "majority"]
    assert [cell.arm for cell in grid.ranked(512)] == list(grid.arms)


def test_markdown_holds_the_numbers_and_the_best_is_bold(sweep, accuracy) -> None:
    text = markdown(summary(sweep(), "accuracy"))
    mean = np.mean([accuracy(4, 512, seed) for seed in range(5)])
    half = stats.sem([accuracy(4, 512, seed) for seed in range(5)]) * stats.t.ppf(0.975, 4)
    lines = text.splitlines()
    assert lines[0] == (
        "**python-docs**: accuracy, higher is better; mean ± half its 95 % interval over 5 seeds; 200 test rows"
    )
    assert lines[2] == "| examples | 8 | 64 | 512 |"
    assert lines[4].startswith("| probe classifier=logistic | ")
    assert lines[4].endswith(f"| **{mean:.3f} ±{half:.3f}** |")
    assert [line.count("**") for line in lines[5:]] == [0, 0, 0, 0]


def test_one_seed_says_so(sweep) -> None:
    text = markdown(summary(sweep(seeds=1), "accuracy"))
    assert "one seed, so no interval" in text
    assert "±" not in text


def test_a_cell_with_fewer_seeds_says_so(sweep) -> None:
    metrics = sweep()
    lost = [not (row["seed"] > 0 and row["examples"] == 8) for row in metrics.to_pylist()]
    assert "(one seed)" in markdown(summary(metrics.filter(pa.array(lost)), "accuracy"))


def test_the_terminal_shows_what_markdown_shows(sweep) -> None:
    cells = summary(sweep(), "accuracy")
    wide, narrow = shown(terminal(cells)), shown(terminal(cells), width=60)
    for cell in cells:
        for part in (number(cell.interval.mean), f"±{number(cell.interval.half_width)}"):
            assert part in wide
            assert part in narrow


def test_the_terminal_names_several_tasks(sweep) -> None:
    text = shown(terminal(summary(sweep(tasks=("digits", "wine")), "accuracy")))
    assert text.count("digits") == 6
    assert text.count("wine") == 6


def test_the_terminal_takes_names_literally(record) -> None:
    runs = [record(settings={"classifier": name}) for name in ("[red]x[/red]", "y")]
    assert "[red]x[/red]" in shown(terminal(summary(joined(*runs), "accuracy")))


def test_markdown_text_holds_no_markup() -> None:
    assert markdown_text("a|b\n<script>`x`*y*[z](u)\\") == "a\\|b &lt;script>\\`x\\`\\*y\\*\\[z\\](u)\\\\"


@pytest.mark.parametrize(
    ("value", "text"), [(0.81249, "0.812"), (-1.0, "-1.000"), (1234.5, "1,234"), (99.9994, "99.999")]
)
def test_numbers(value, text) -> None:
    assert number(value) == text


def test_metrics_follow_the_surface_and_unknown_ones_come_last(record) -> None:
    metrics = metric_table(record(), {"mine": 1.0, "ece": 0.1, "accuracy": 0.5}, n=1)
    assert metric_names(metrics) == ["accuracy", "ece", "mine"]
    assert main_metric(metrics) == "accuracy"
