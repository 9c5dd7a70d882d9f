"""FIAT's ladder and its controls with the smallest models that can run them, on flan_cot's own rationales.

    python benchmarks/rationales.py [--storage rationales] [--page docs/fiat.md]

Teacher and student are graft-nano, the rows are CREAK's claims (true or not: yes or no) as flan_cot has them. Models of
this size write no useful rationale: the ladder shows that the path is whole, and the controls whether a student uses
what it is given. The settings were chosen on seed 1000, which is not reported, by the oracle alone. What was run before
is read.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from graft.results.comparisons import Comparison, compare_rungs
from graft.results.ladders import Ladder, ladders
from graft.results.outcomes import outcomes
from graft.results.records import load_metrics
from graft.results.tables import Cell, cell_text, summary
from machine import machine

LADDER, SWITCHES = Path("jobs/specs/fiat-ladder.yaml"), Path("jobs/specs/fiat-switches.yaml")
DATA = Path("../shared/data/flan_cot.parquet")
METRIC = "accuracy"
SEEDS = 3
SETTINGS = (
    "name=rationales",
    f"task.path={DATA}",
    "task.where={source: creak}",
    "task.target=null",
    "task.label=answer",
    "task.test_examples=1000",
    "regime.examples=512",
    "training.max_steps=400",
    "training.learning_rate=2.0e-3",
    "training.tokens_per_batch=1024",
    f"sweep.seeds={SEEDS}",
)
FIAT = ("method.exemplars=2", "method.max_rationale_tokens=48")
ADAPTER = "{peft_type: LORA, r: 16, lora_alpha: 32, target_modules: all-linear}"
LIMITS = f"exemplars: 2, max_rationale_tokens: 48, adapter: {ADAPTER}"
CONTROLS = {
    "oracle": f"{{name: fiat, rationale: oracle, {LIMITS}}}",
    "answer_only": f"{{name: fiat, rationale: answer_only, {LIMITS}}}",
    "shuffled": f"{{name: fiat, rationale: shuffled, {LIMITS}}}",
    "self": f"{{name: fiat, rationale: self, {LIMITS}}}",
}
BEGIN, END = "<!-- ladder: begin -->", "<!-- ladder: end -->"


def main() -> None:
    """Run what was not run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="rationales", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/fiat.md"), help="where the tables are written")
    options = parser.parse_args()
    methods = f"sweep.axes={{method: [{', '.join(CONTROLS.values())}]}}"
    swept = [
        sweep(LADDER, (*SETTINGS, *FIAT, f"method.adapter={ADAPTER}"), options.storage),
        sweep(SWITCHES, (*SETTINGS, methods), options.storage),
    ]
    text = page(swept)
    print(text)
    before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
    options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def sweep(spec: Path, words: Sequence[str], storage: str) -> Path:
    """The folder of a sweep, carried out."""
    command = [sys.executable, "-m", "graft.cli", "sweep", str(spec), *words, "--storage", storage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")
    report = next(line for line in done.stdout.splitlines() if line.startswith("report: "))
    return Path(report.removeprefix("report: ")).parent


def page(swept: Sequence[Path]) -> str:
    """The ladder, the controls, and what they cost."""
    metrics = [load_metrics([str(folder)]) for folder in swept]
    rungs, controls = (summary(table, METRIC) for table in metrics)
    (ladder,) = ladders(rungs)
    compared = {one.arm: one for one in compare_rungs(outcomes(metrics[0], None, METRIC))}
    rows = [row for table in metrics for row in table.to_pylist() if row["metric"] == METRIC]
    written = [row for folder in swept for row in pq.read_table(folder / "shared.parquet").to_pylist()]
    minutes = sum(row["seconds"] for row in [*rows, *written]) / 60
    calls = sum(row["teacher_calls"] for row in [*rows, *written])
    lines = [
        *table_of(ladder, compared),
        "",
        *controls_of(controls),
        "",
        f"{METRIC} of {rows[0]['n']} test rows, the mean of {SEEDS} seeds ± half its 95 % interval; "
        f"{rows[0]['examples']} examples. Teacher and student: graft-nano. {calls:,} rationales were "
        f"written in all, and read {sum(row['teacher_reads'] for row in rows):,} times; {silent(swept[0]):.1%} of "
        f"those about test rows are empty. All runs: {minutes:.0f} minutes, two at a time, on {machine()}.",
    ]
    return "\n".join(lines)


def silent(ladder: Path) -> float:
    """The share of test rows about which the teacher wrote nothing."""
    rows = pq.read_table(ladder / "predictions.parquet", columns=["rationale", "rationale_whole"]).to_pylist()
    asked = [row["rationale"] for row in rows if row["rationale_whole"] is not None]
    return sum(not text for text in asked) / len(asked)


def table_of(ladder: Ladder, compared: Mapping[str, Comparison]) -> list[str]:
    """The ladder: each rung lacks what it names and all that is named above it."""
    lines = ["| rung | " + METRIC + " | difference to the rung above | |", "|---|---:|---:|---|"]
    for rung in ladder.rungs:
        one = compared.get(rung.cell.arm)
        gap = "" if one is None else f"{one.difference.mean:+.3f} ±{one.difference.half_width:.3f}"
        lines.append(f"| {rung.label} | {cell_text(rung.cell, SEEDS)} | {gap} | {one.verdict if one else ''} |")
    return lines


def controls_of(cells: Sequence[Cell]) -> list[str]:
    """What the student reads in place of the teacher's text."""
    lines = [f"| control | {METRIC} |", "|---|---:|"]
    return [*lines, *(f"| {cell.arm} | {cell_text(cell, SEEDS)} |" for cell in cells)]


if __name__ == "__main__":
    main()
