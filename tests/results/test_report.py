import html.parser
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from graft.errors import DataError
from graft.results.files import write_table
from graft.results.records import failure_table, metric_table
from graft.results.report import gather, write_report
from graft.storage import open_storage

VOID = {"meta", "br", "link", "img", "hr", "input"}
NASTY = "<script>alert(1)</script> & 'quotes\" | `code`"


class Page(html.parser.HTMLParser):
    """Tags balance, and everything that a browser would fetch or run is collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag, attrs) -> None:
        self._attributes(attrs)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)

    def _attributes(self, attrs) -> None:
        found = dict(attrs)
        self.references += [found[key] for key in ("href", "src", "xlink:href", "srcset", "action") if key in found]
        self.ids += [found["id"]] if "id" in found else []
        assert not any(key.startswith("on") for key in found)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def report_of(folder: Path, *tables) -> tuple[str, str]:
    write_table(open_storage(folder), "metrics.parquet", pa.concat_tables(tables))
    html_path, md_path = write_report([str(folder)])
    return Path(html_path).read_text(encoding="utf-8"), Path(md_path).read_text(encoding="utf-8")


def test_both_files_hold_the_numbers_of_the_table(tmp_path, sweep, accuracy) -> None:
    page, text = report_of(tmp_path / "s", sweep())
    words = Page(page).text
    for arm in range(5):
        for size in (8, 64, 512):
            values = [accuracy(arm, size, seed) for seed in range(5)]
            half = stats.sem(values) * stats.t.ppf(0.975, 4)
            assert f"{np.mean(values):.3f} ±{half:.3f}" in words
            assert f"{np.mean(values):.3f} ±{half:.3f}" in text
            loss = np.mean([2 * (1 - value) for value in values])
            assert f"{loss:.3f} ±{2 * half:.3f}" in words
            assert f"{loss:.3f} ±{2 * half:.3f}" in text
    for fact in (
        "python-docs, 200 test rows",
        "75 done, 0 failed",
        "org/encoder (fingerprint 0123456789ab)",
        "torch 2.13.0",
    ):
        assert fact in words
        assert fact in text


def test_the_page_is_well_formed_and_fetches_nothing(tmp_path, sweep) -> None:
    page, _ = report_of(tmp_path / "s", sweep(tasks=("digits", "wine")))
    found = Page(page)
    assert found.references
    assert all(reference.startswith("#") for reference in found.references)
    assert {reference[1:] for reference in found.references} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not found.tags & {"script", "link", "img", "iframe", "object"}
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert page.count("<svg") == 2 * len(("accuracy", "log loss", "differences", "costs"))
    assert "prefers-color-scheme: dark" in page


def test_text_from_outside_is_escaped(tmp_path, record) -> None:
    arms = [record(settings={"classifier": NASTY}, name=NASTY, task=NASTY, seed=seed) for seed in (0, 1)]
    failed = failure_table(record(settings={"classifier": "b"}, task=NASTY, error=NASTY))
    page, text = report_of(tmp_path / "s", *(metric_table(arm, {"accuracy": 0.5}, n=200) for arm in arms), failed)
    found = Page(page)
    assert "script" not in found.tags
    assert found.text.count(NASTY) >= 4
    assert "<script" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def test_the_same_runs_give_the_same_bytes(tmp_path, sweep) -> None:
    metrics = sweep()
    first = report_of(tmp_path / "a", metrics)
    assert report_of(tmp_path / "b", metrics) == first
    shuffled = metrics.take(np.random.default_rng(0).permutation(metrics.num_rows))
    assert report_of(tmp_path / "c", shuffled) == first


def test_the_best_arm_stands_as_its_comparisons_say(record) -> None:
    def rows(arm: str, size: int, values: list[float]):
        for seed, value in enumerate(values):
            yield metric_table(record(settings={"classifier": arm}, examples=size, seed=seed), {"accuracy": value}, n=9)

    steady, near = [0.7, 0.5, 0.6], [0.69, 0.49, 0.585]
    tables = [
        *rows("a", 8, steady),
        *rows("b", 8, near),
        *rows("a", 64, [0.7, 0.5, 0.6]),
        *rows("b", 64, [0.5, 0.7, 0.5]),
    ]
    standings = gather(pa.concat_tables(tables)).sections[0].standings
    assert [(one.examples, one.best.cell.arm[-1], one.others[0].verdict) for one in standings] == [
        (8, "a", "better"),
        (64, "a", "undecided"),
    ]
    reference = stats.ttest_rel(steady, near).confidence_interval(0.95)
    difference = standings[0].others[0].difference
    assert (difference.low, difference.high) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize(
    ("failed", "held_against", "differences_to"),
    [
        ((), "the strongest simple baseline of its column", "the strongest simple baseline,"),
        ((8,), "baseline (where none has results, the best arm) of its", "the strongest simple baseline,"),
        (
            (64,),
            "baseline (where none has results, the best arm) of its",
            "the best arm (no simple baseline has results),",
        ),
        ((8, 64), "the best arm (no simple baseline has results) of", "the best arm (no simple baseline has results),"),
    ],
)
def test_the_reference_is_called_what_it_is_in_its_own_column(
    tmp_path, record, failed: tuple[int, ...], held_against: str, differences_to: str
) -> None:
    tables = []
    for size, seed in [(size, seed) for size in (8, 64) for seed in range(3)]:
        for method, value in (("probe", 0.6), ("icl", 0.7), ("full", 0.65)):
            lost = "too long" if method == "probe" and size in failed else None
            one = record(method, {}, examples=size, seed=seed, error=lost)
            values = {"accuracy": value + 0.01 * seed}
            tables.append(failure_table(one) if lost else metric_table(one, values, n=100))
    for text in report_of(tmp_path / "s", *tables):
        words = " ".join(text.split())
        assert held_against in words
        assert f"Paired differences in accuracy to {differences_to} with p corrected" in words


def test_what_the_interval_covers_is_said_and_nothing_beats(tmp_path, sweep) -> None:
    for text in report_of(tmp_path / "s", sweep()):
        words = " ".join(text.split())
        assert "one fixed test set" in words
        assert "corrected by Benjamini" in words
        assert "beats" not in words


def test_failed_runs_are_listed_with_their_error(tmp_path, sweep) -> None:
    metrics = sweep(failing=lambda arm, size, seed: "out of memory" if (arm, size) == (4, 512) else None)
    page, text = report_of(tmp_path / "s", metrics)
    entry = "probe classifier=logistic on python-docs, 512 examples, seeds 0, 1, 2, 3, 4: out of memory"
    assert entry in Page(page).text
    assert entry in text
    assert "70 done, 5 failed" in text


def test_costs_are_means_over_the_runs(record) -> None:
    tables = [
        metric_table(record(seed=seed, seconds=seed + 1.0), {"accuracy": 0.5, "ece": 0.1}, n=9) for seed in (0, 1, 2)
    ]
    report = gather(pa.concat_tables(tables))
    (row,) = report.sections[0].costs
    assert (row["seconds"], row["tokens"], row["runs"]) == (2.0, 1200.0, 3)
    assert "teacher_calls" not in report.cost_columns


def test_what_is_no_cost_of_an_arm_is_not_shown_as_one(tmp_path, record) -> None:
    for text in report_of(tmp_path / "s", metric_table(record(peak_memory_bytes=987), {"accuracy": 0.5}, n=9)):
        costs = " ".join(text.rpartition("Costs")[2].rpartition("How to read this")[0].split())
        assert "memory" not in text
        assert "therefore not comparable between arms that share a store" in costs
        assert "seconds, tokens and forward passes are therefore not comparable between arms" in costs
        assert "first run of an arm" not in text


def test_equal_inputs_are_a_fact(tmp_path, record) -> None:
    for text in report_of(tmp_path / "s", metric_table(record(equal_inputs=12), {"accuracy": 0.5}, n=9)):
        assert "python-docs: 12 rows share their input with another row; kept on one side of the split" in text
    assert "equal inputs" not in gather(metric_table(record(), {"accuracy": 0.5}, n=9)).facts


def test_runs_on_edited_rows_are_neither_averaged_nor_paired(record) -> None:
    tables = [
        metric_table(record(settings={"classifier": arm}, seed=seed, task_sha=sha), {"accuracy": value}, n=9)
        for arm, sha, value in (("a", "1" * 32, 0.9), ("b", "2" * 32, 0.1))
        for seed in range(3)
    ]
    sections = gather(pa.concat_tables(tables)).sections
    assert [section.task for section in sections] == ["python-docs #111111", "python-docs #222222"]
    assert [standing.others for section in sections for standing in section.standings] == [(), ()]


@pytest.mark.parametrize("shape", ["one run", "one seed", "one size", "all failed", "generation", "one metric missing"])
def test_any_shape_of_results_makes_a_report(tmp_path, record, sweep, shape) -> None:
    tables = {
        "one run": [metric_table(record(), {"accuracy": 0.5}, n=9)],
        "one seed": [sweep(seeds=1)],
        "one size": [sweep(sizes=(8,))],
        "all failed": [sweep(failing=lambda *_: "memory")],
        "generation": [
            metric_table(record(task="qa", seed=seed), {"exact_match": 0.2, "f1": 0.3}, n=9) for seed in (0, 1)
        ],
        "one metric missing": [sweep(), metric_table(record("icl", {}), {"accuracy": 0.4}, n=9)],
    }[shape]
    page, text = report_of(tmp_path / "s", *tables)
    Page(page)
    assert text.startswith("# quickstart: graft report\n")
    assert "\n\n\n" not in text
    assert ("One seed per cell" in text) == (shape in ("one run", "one seed"))
    if shape == "generation":
        assert text.index("## qa: f1") < text.index("### exact_match")


def test_the_report_lies_with_the_sweep_or_at_the_root_of_the_runs(tmp_path, record, sweep) -> None:
    files = open_storage(tmp_path)
    write_table(files, "sweeps/s/metrics.parquet", sweep())
    write_table(files, "runs/r/metrics.parquet", metric_table(record(), {"accuracy": 0.5}, n=9))
    cases = {"sweeps/s": "sweeps/s", "runs/r": "", "runs": "", "": "", "sweeps/s/": "sweeps/s"}
    for path, home in cases.items():
        found = write_report([f"{tmp_path}/{path}"])
        assert [Path(name) for name in found] == [tmp_path / home / "report.html", tmp_path / home / "report.md"]
        assert all(Path(name).exists() for name in found)
    uri = write_report([f"{tmp_path.as_uri()}/runs/r"], out=f"{tmp_path.as_uri()}/elsewhere")
    assert uri[0] == f"{tmp_path.as_uri()}/elsewhere/report.html"
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["report.html", "report.md"]


def test_no_runs_means_no_report(tmp_path) -> None:
    with pytest.raises(DataError, match="no run that is done"):
        write_report([str(tmp_path)])
    with pytest.raises(DataError, match="no such folder"):
        write_report([str(tmp_path / "sweeps" / "s")])
    with pytest.raises(DataError, match="no such folder"):
        write_report([f"{tmp_path.as_uri()}/s"], out=str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []
