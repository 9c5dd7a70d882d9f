"""Every section of the report on a sweep that has all of them: its numbers are those of the comparisons."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from graft import runner
from graft.results.arms import arms
from graft.results.comparisons import compare_best, compare_rungs, compare_with_baseline
from graft.results.files import write_table
from graft.results.outcomes import outcomes
from graft.results.predictions import load_predictions
from graft.results.prices import Priced, front
from graft.results.records import load_metrics
from graft.results.report import gather, write_report
from graft.results.resampling import DRAWS
from graft.results.searches import expected_best, load_searches
from graft.results.tables import summary
from graft.results.words import limits, markdown_sentence, p_text, sentence, signed, strong
from graft.spec import Experiment
from graft.storage import open_storage

HEADINGS = (
    "reviews: accuracy",
    "The best arm against the others",
    "More examples",
    "Differences to probe classifier=ridge, 256 labelled examples",
    "Ladder: fiat, 256 labelled examples",
    "Groups of test rows",
    "Costs",
    "Search",
    "Other metrics",
    "Runs that failed",
    "What it was made with",
    "How to read this",
)


@pytest.fixture(scope="module")
def pages(whole_sweep: Path) -> tuple[str, str]:
    page, text = (Path(path).read_text(encoding="utf-8") for path in write_report([str(whole_sweep)]))
    return page, text


@pytest.fixture(scope="module")
def known(answered: tuple[pa.Table, pa.Table]):
    return outcomes(*answered, "accuracy")


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the first Markdown table below a heading."""
    below = text.split(f"### {heading}", 1)[1]
    lines = [line for line in below.split("\n##")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_sections_stand_in_their_order(pages) -> None:
    page, text = pages
    found = [re.sub("<[^>]+>", "", heading) for heading in re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)]
    assert tuple(found) == HEADINGS
    order = [text.index(f"# {heading}") for heading in HEADINGS if heading not in ("Other metrics",)]
    assert order == sorted(order)


def test_the_answer_names_the_best_arm_its_verdicts_and_its_price(pages, known) -> None:
    page, text = pages
    against = {one.arm: one for one in compare_with_baseline(known) if one.examples == 256}
    best = [one for one in compare_best(known) if one.examples == 256]
    own = against["fiat full"]
    assert {one.arm for one in best} == {"fiat full"}
    assert own.verdict == "better"
    lead = text.split("\n- task")[0]
    assert "Use **fiat full**: with 256 labelled examples it has the best mean, accuracy" in lead
    assert (
        f"It is **better than** the strongest simple baseline, probe classifier=ridge: difference "
        f"{signed(own.difference.mean)}, 95 % interval {limits(own.difference, True)}, "
        f"corrected p {p_text(own.corrected_p)}."
    ) in lead
    for one in best:
        assert one.other in lead
    assert "556 answers of a teacher, 222,080 trainable parameters" in lead
    assert "<strong>fiat full</strong>: with 256 labelled examples" in page


def test_the_main_table_has_the_intervals_of_seeds_and_items_and_the_verdicts(pages, known) -> None:
    page, text = pages
    words = {(one.arm, one.examples): one.verdict for one in compare_with_baseline(known)}
    assert len(set(words.values())) >= 2
    for outcome in known:
        interval = outcome.interval()
        number = f"{interval.mean:.3f} ±{interval.half_width:.3f}"
        assert interval.covers == "seeds and groups"
        word = words.get((outcome.cell.arm, outcome.cell.examples), "reference")
        assert f"{number} {word}" in text
        assert f'<b>{interval.mean:.3f}</b> <span class="half">±{interval.half_width:.3f}</span>' in page
        assert f"95 % from {limits(interval)} (covers seeds and groups)" in page
    assert "over seeds and groups of test items" in text


def test_the_differences_are_those_of_compare_with_baseline(pages, known) -> None:
    page, text = pages
    rows = {row[0]: row[1:] for row in rows_of(text, HEADINGS[3]) if len(row) == 9}
    compared = [one for one in compare_with_baseline(known) if one.examples == 256]
    for one in compared:
        assert rows[one.arm] == [
            signed(one.difference.mean),
            limits(one.difference, True),
            one.verdict,
            p_text(one.p),
            p_text(one.corrected_p),
            f"{one.detectable:.3f}",
            "4",
            "300",
        ]
        assert f"{signed(one.difference.mean)}  {one.verdict}" in page  # in the picture
        for test in one.mcnemar:
            assert f"| {one.arm} | {test.seed} | {test.only_arm} | {test.only_other} | {p_text(test.p)} |" in text
    assert page.count("<td>300</td>") >= len(compared)


def test_the_ladder_is_that_of_compare_rungs(pages, known) -> None:
    page, text = pages
    compared = [one for one in compare_rungs(known) if one.examples == 256]
    assert len(compared) == 2
    rows = {row[0]: row for row in rows_of(text, HEADINGS[4])}
    for one in compared:
        row = rows[one.arm.removeprefix("fiat ")]
        assert row[2:] == [
            signed(one.difference.mean),
            limits(one.difference, True),
            p_text(one.corrected_p),
            one.verdict,
        ]
    assert 'aria-label="Ladder of fiat on reviews, 256 examples"' in page
    assert "<details><summary>Ladder: fiat, 16 labelled examples</summary>" in page


def test_other_ablations_are_bars(answered) -> None:
    metrics, _ = answered
    names = [name and name.lstrip("12 ") for name in metrics["ablation"].to_pylist()]
    place = metrics.column_names.index("ablation")
    (part,) = [
        part
        for part in gather(metrics.set_column(place, "ablation", pa.array(names, pa.string()))).sections[0].ladders
        if part.last
    ]
    assert not part.ladder.cumulative
    assert len(part.comparisons) == 2
    assert 'aria-label="Ablations of fiat on reviews, 256 examples"' in part.picture


def test_groups_have_their_averages_and_gains(pages, answered) -> None:
    page, text = pages
    for cell in summary(answered[0], "accuracy", "test/macro"):
        assert f"{cell.interval.mean:.3f} ±{cell.interval.half_width:.3f}" in text.split("Groups of test rows")[1]
    of_arm = {
        cell.arm: cell.interval.mean for cell in summary(answered[0], "accuracy", "test/ja") if cell.examples == 256
    }
    picture = page.split('aria-label="Gain of fiat full over probe classifier=ridge in each group of reviews')[1]
    gain = of_arm["fiat full"] - of_arm["probe classifier=ridge"]
    assert f">{signed(gain)}<" in picture.split("</svg>")[0]


def test_learning_curves_say_how_many_examples_match_the_baseline(whole_sweep, known) -> None:
    section = gather(load_metrics([str(whole_sweep)])).sections[0]
    laws = {law.arm: law for law in section.laws}
    assert laws["probe classifier=ridge"].match is None
    assert str(laws["probe classifier=majority"].match) == "not within the measured sizes"
    assert laws["fiat full"].match.examples <= 64
    assert laws["fiat full"].fit.c > 0
    assert "icl" not in laws


def test_the_front_is_what_nothing_is_as_good_as_for_less() -> None:
    arms = [
        Priced(name, score, {"seconds": cost})
        for name, score, cost in (
            ("a", 0.5, 1),
            ("b", 0.7, 2),
            ("c", 0.7, 3),
            ("d", 0.6, 4),
            ("e", 0.9, 9),
            ("f", 0.4, 0),
        )
    ]
    assert [one.arm for one in front(arms, "seconds", "accuracy")] == ["f", "a", "b", "e"]
    assert [one.arm for one in front(arms, "seconds", "log_loss")] == ["f"]


def test_the_search_is_that_of_its_table(whole_sweep, pages) -> None:
    page, text = pages
    rows = [row for row in load_searches([str(whole_sweep)]).to_pylist() if row["examples"] == 256]
    own = [row["value"] for row in rows if row["method"] == "lora" and row["status"] == "done"]
    chosen = next(row for row in rows if row["method"] == "lora" and row["chosen"])
    assert expected_best(own)[-1] == pytest.approx(chosen["value"])
    (line,) = [row for row in rows_of(text, "Search") if row[:2] == ["lora", "256"]]
    assert line[3:] == [f"accuracy {chosen['value']:.3f}", "6", "1", "0", "12"]
    assert 'aria-label="Search on reviews: the best setting to be expected, 256 examples"' in page
    assert "6 settings for each arm and amount of data" in text


def test_failures_and_provenance_come_last(pages) -> None:
    for text in pages:
        ending = text.split("Runs that failed")[-1]
        for words in ("out of memory", "0" * 40, "abc123", "margin: null", "torch 2.13.0"):
            assert words in ending
        assert "- a\n- b" not in ending  # the list of runs is no part of the spec


def test_a_margin_that_the_spec_states_is_the_reports(whole_sweep, tmp_path, answered) -> None:
    from graft.results.provenance import load_plans, margin_of

    assert margin_of(load_plans([str(whole_sweep)])) is None
    told = gather(answered[0]).notes
    assert any(
        "smaller than the margin, 0.01 for accuracy, which is the default since no spec states" in one for one in told
    )
    for margin in (0.3, 0.01):  # the default too, where it is stated
        text = (whole_sweep / "sweep.yaml").read_text().replace("margin: null", f"margin: {margin}")
        (tmp_path / "sweep.yaml").write_text(text)
        plans = load_plans([str(tmp_path), str(whole_sweep)])
        assert margin_of(plans) == margin
        page = gather(answered[0], plans=plans)
        assert {one.margin for one in page.sections[0].differences} == {margin}
        assert any(f"the margin of {margin} in the metric's unit, which the spec states" in one for one in page.notes)


def test_the_page_says_how_many_draws_were_taken(answered, monkeypatch) -> None:
    from graft.results import report

    metrics, predictions = answered
    metrics = metrics.filter(pc.is_in(metrics["metric"], pa.array(["accuracy", "log_loss"])))
    taken = {}

    def counted(metrics, predictions, metric, draws=DRAWS):
        found = outcomes(metrics, predictions, metric, draws)
        taken[metric] = {len(one.spread.draws_SB[0]) for one in found}
        return found

    monkeypatch.setattr(report, "outcomes", counted)
    told = gather(metrics, predictions=predictions).notes
    assert taken == {"accuracy": {2000}, "log_loss": {500}}
    assert any(
        "2,000 bootstrap draws of the predictions (500 for metrics beside a task's main one)" in one for one in told
    )


def test_predictions_are_read_where_they_are_and_no_more_of_them_than_needed(whole_sweep, tmp_path, answered) -> None:
    metrics, predictions = answered
    run_ids = sorted(set(metrics["run_id"].to_pylist()))
    found = load_predictions([str(whole_sweep)], run_ids)
    assert "text" not in found.column_names
    assert found.num_rows == predictions.num_rows
    assert load_predictions([str(whole_sweep)], run_ids[:2])["run_id"].unique().to_pylist() == run_ids[:2]
    # A sweep without a joint table, beside the runs' own folders; then a run's folder, and a storage.
    files = open_storage(tmp_path)
    write_table(files, "sweeps/s/metrics.parquet", metrics)
    for run_id in run_ids[:2]:
        own = predictions.filter(pc.equal(predictions["run_id"], run_id)).drop_columns(["run_id"])
        write_table(files, f"runs/{run_id}/predictions.parquet", own)
        write_table(files, f"runs/{run_id}/metrics.parquet", metrics.filter(pc.equal(metrics["run_id"], run_id)))
    for paths in (["sweeps/s"], ["runs"], [""], [f"runs/{run_id}" for run_id in run_ids[:2]], ["", "sweeps/s"]):
        again = load_predictions([f"{tmp_path}/{path}" for path in paths], run_ids)
        assert again.num_rows == 2 * 300
        assert sorted(again["run_id"].unique().to_pylist()) == run_ids[:2]
    assert load_predictions([str(tmp_path / "nowhere")], run_ids) is None
    (tmp_path / "runs" / run_ids[0] / "predictions.parquet").write_bytes(b"damaged")
    assert load_predictions([str(tmp_path)], run_ids).num_rows == 300


def test_runs_that_graft_made_are_compared_with_their_test_items(tmp_path) -> None:
    for classifier in ("majority", "ridge"):
        for seed in (0, 1):
            values = {
                "name": "wines",
                "task": {"name": "wine"},
                "regime": {"examples": 24, "seed": seed},
                "training": {"seed": seed},
                "method": {"name": "probe", "classifier": classifier},
            }
            runner.run(Experiment.from_mapping(values), tmp_path)
    page, text = (Path(path).read_text(encoding="utf-8") for path in write_report([str(tmp_path)]))
    metrics = load_metrics([str(tmp_path)])
    predictions = load_predictions([str(tmp_path)], set(arms(metrics)))
    assert predictions.num_rows == sum(
        pq.read_metadata(path).num_rows for path in tmp_path.glob("runs/*/predictions.parquet")
    )
    own = outcomes(metrics, predictions, "accuracy")
    (best,) = compare_best(own)
    assert best.difference.covers == "seeds and items"
    assert "over seeds and test items" in text
    for outcome in own:
        assert f"{outcome.interval().mean:.3f} ±{outcome.interval().half_width:.3f}" in text
    assert "It is itself a simple baseline" in text
    assert "Groups of test rows" not in page
    assert "Search" not in page


def test_a_sentence_keeps_its_spaces_in_markdown() -> None:
    assert markdown_sentence(sentence("Use ", strong("a|b"), ": it ", "is.")) == "Use **a\\|b**: it is."
