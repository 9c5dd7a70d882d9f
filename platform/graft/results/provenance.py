"""What was compared and with which budget, what failed, what it was made with, and how the numbers are to be read."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from graft.errors import SpecError, StoreError
from graft.results.arms import Arm
from graft.results.comparisons import BASELINES, Comparison
from graft.results.resampling import DRAWS, DRAWS_BESIDE, LEAST_GROUPS
from graft.results.shared import Shared
from graft.results.tables import Cell
from graft.results.words import names, numbers, plural
from graft.storage import exists, open_storage, read_bytes

Run = Mapping[str, Any]

SHORT = 8
"""Names that a list of facts still spells out."""


@dataclass(frozen=True)
class Plan:
    """The spec of a sweep, as its folder has it."""

    text: str
    """YAML, without the list of runs."""
    margin: float | None
    """Of equivalence, in the metric's unit; None where the spec states none."""


def load_plans(paths: Iterable[str]) -> tuple[Plan, ...]:
    """The specs of the sweeps in these folders; none of what is no sweep.

    Raises:
        StoreError: a spec is damaged.
    """
    found = []
    for path in paths:
        try:
            files = open_storage(path, create=False)
        except SpecError:
            continue  # that it is not there is for the reader of the metrics to say
        if not exists(files, "sweep.yaml"):
            continue
        try:
            values = yaml.safe_load(read_bytes(files, "sweep.yaml"))
            values.pop("runs", None)
            margin = (values.get("sweep") or {}).get("margin")
        except (OSError, AttributeError, yaml.YAMLError) as error:
            raise StoreError(f"{path}/sweep.yaml: damaged: {error}; give the sweep's command again") from error
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        found.append(Plan(text, margin))
    return tuple(found)


def margin_of(plans: Iterable[Plan]) -> float | None:
    """The margin of equivalence that these sweeps state, of several the smallest; None where none states one."""
    return min((plan.margin for plan in plans if plan.margin is not None), default=None)


def runs_of(metrics: pa.Table, of_run: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """The run-level columns, one row per run, its arm, and the numbers of test rows it was measured on."""
    found: dict[str, dict[str, Any]] = {}
    for row in metrics.drop_columns(["versions", "spec"]).to_pylist():
        new = row | {"test_rows": set(), "arm": of_run[row["run_id"]]}
        run = found.setdefault(row["run_id"], new)
        if row["split"] == "test" and row["n"]:
            run["test_rows"].add(row["n"])
    return list(found.values())


def facts(
    runs: Sequence[Run], shared: Sequence[Shared], searches: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, ...]]:
    """What was compared and with which budget; each value once, in order."""
    failed = sum(run["status"] == "failed" for run in runs)
    tested = sorted({(run["arm"].task, n) for run in runs for n in run["test_rows"]})
    equal = sorted({(run["arm"].task, run["equal_inputs"]) for run in runs if run["equal_inputs"]})
    arms = sorted({run["arm"].name for run in runs})
    models = {
        f"{role}: {model.get('source')} (fingerprint {str(model.get('fingerprint'))[:12]})"
        for run in runs
        for role, model in json.loads(run["models"] or "{}").items()
    }
    found = {
        "task": tuple(f"{task}, {n:,} test rows" for task, n in tested),
        "equal inputs": tuple(
            f"{task}: {n:,} rows share their input with another row; kept on one side of the split" for task, n in equal
        ),
        "arms": (f"{len(arms)}: {'; '.join(arms)}" if len(arms) <= SHORT else f"{len(arms)}",),
        "labelled examples": (", ".join(f"{size:,}" for size in sorted({run["examples"] for run in runs})),),
        "seeds": (_seeds(runs),),
        "search": _tried(searches),
        "runs": (f"{len(runs) - failed:,} done, {failed:,} failed",),
        "models": tuple(sorted(models)),
        "computed once": tuple(
            f"{cost.graph}: {cost.rows:,} rows for all runs, {cost.forward_passes:,} forward passes, "
            f"{cost.tokens:,} tokens, {cost.seconds:,.0f} s"
            + (f", {cost.teacher_calls:,} rationales" if cost.teacher_calls else "")
            for cost in shared
        ),
    }
    return {name: values for name, values in found.items() if any(values)}


def made_with(runs: Sequence[Run], metrics: pa.Table) -> dict[str, tuple[str, ...]]:
    """What the numbers were made with; each value once, in order."""
    versions: dict[str, set[str]] = defaultdict(set)
    for text in set(metrics["versions"].to_pylist()):
        for package, version in json.loads(text or "{}").items():
            versions[package].add(version)
    found = {
        "device": tuple(sorted({run["device"] for run in runs if run["device"]})),
        "versions": (", ".join(f"{name} {' / '.join(sorted(known))}" for name, known in sorted(versions.items())),),
        "git commit": tuple(sorted({run["git_commit"] for run in runs if run["git_commit"]})),
        "rows": tuple(sorted({f"{run['arm'].task}: {run['task_sha']}" for run in runs if run["task_sha"]})),
        "prompts": tuple(sorted({f"{run['method']}: {run['prompt_sha']}" for run in runs if run["prompt_sha"]})),
    }
    return {name: values for name, values in found.items() if any(values)}


def failures(runs: Sequence[Run]) -> tuple[Mapping[str, Any], ...]:
    """Failed runs, one entry per arm, size and error with its seeds."""
    seeds: dict[tuple[Arm, int, str], list[int]] = defaultdict(list)
    for run in runs:
        if run["status"] == "failed":
            seeds[run["arm"], run["examples"], run["error"] or "no message"].append(run["seed"])
    return tuple(
        {"task": arm.task, "arm": arm.name, "examples": examples, "seeds": sorted(found), "error": error}
        for (arm, examples, error), found in sorted(seeds.items())
    )


def notes(
    runs: Sequence[Run], cells: Sequence[Cell], differences: Sequence[Comparison], stated: float | None
) -> tuple[str, ...]:
    """What the words mean, and what a reader must not read into the numbers.

    Args:
        runs: all of them.
        cells: of every metric.
        differences: that the page shows.
        stated: margin of equivalence that a spec states; None where none does.
    """
    covers = {cell.interval.covers for cell in cells if cell.interval and cell.interval.low is not None}
    beside = len({(cell.task, cell.metric) for cell in cells}) > len({cell.task for cell in cells})
    draws = f"{DRAWS:,} bootstrap draws of the predictions" + (
        f" ({DRAWS_BESIDE:,} for metrics beside a task's main one)" if beside else ""
    )
    found = []
    if cells and all(len(cell.values) <= 1 for cell in cells):
        found.append("One seed per cell: what another training would give is not known, so no order is established.")
    if any("items" in one or "groups" in one for one in covers):
        found.append(
            "An interval covers what the seeds change (the draw of the labelled examples, and the training) and which "
            f"test items happened to be drawn: seeds are joined by Student's t, items by {draws}; whole groups of "
            f"items are drawn where a task has {LEAST_GROUPS} or more, and rows with the same input, or about the same "
            "item, together. It says where the mean of other seeds on other items of the same kind would lie."
        )
    if "seeds" in covers or not covers:
        found.append(
            "Where predictions are not at hand, an interval is Student's t over seeds. It covers what the draw of the "
            "labelled examples and the training change, on one fixed test set; it does not cover the draw of the test "
            "rows, which all runs share."
        )
    found += [
        "All comparisons are paired: same seeds, same test items. Better or worse: the corrected p is below 0.05 and "
        "the 95 % interval of the difference leaves out zero. Equivalent: the difference is shown to be smaller than "
        f"the margin{_margin(differences, stated)} (two one-sided tests at 5 %). Undecided: neither; more seeds or "
        "test items would be needed, and it does not mean that the two are alike.",
        "p is that of a paired permutation test over test items, widened by the spread of the seeds; without "
        "predictions it is a paired t-test over seeds. Across the arms of a column it is corrected by Benjamini and "
        "Hochberg's method (of the differences called real, at most one in twenty is expected not to be), in a ladder "
        "by Holm's (the chance of even one false claim stays below one in twenty).",
        f"The strongest simple baseline (methods: {', '.join(BASELINES)}) and the best arm are picked by the same "
        "numbers that they are then compared on, which flatters both a little. Settle a close call with new seeds.",
    ]
    if any(cell.runs > len(cell.values) for cell in cells):
        found.append("Some runs share arm, examples and seed; they count as one value, their mean.")
    cut = sum(run["texts_cut"] or 0 for run in runs)
    if cut:
        found.append(f"{cut:,} texts, summed over runs, were longer than task.max_tokens and were cut.")
    if any((run["git_commit"] or "").endswith("-dirty") for run in runs):
        found.append("A commit marked -dirty had local changes: its code cannot be recovered from the commit alone.")
    return tuple(found)


def _margin(differences: Sequence[Comparison], stated: float | None) -> str:
    """Which margin was used, and who has set it."""
    if stated is not None:
        return f" of {stated:g} in the metric's unit, which the spec states (sweep.margin)"
    used = {one.metric: one.margin for one in differences}
    if not used:
        return ""
    said = [f"{'none' if margin is None else format(margin, 'g')} for {name}" for name, margin in sorted(used.items())]
    return f", {names(said)}, which is the default since no spec states another (sweep.margin)"


def _seeds(runs: Sequence[Run]) -> str:
    """One list, or one for each number of examples where they differ."""
    of_size: dict[int, set[int]] = defaultdict(set)
    for run in runs:
        of_size[run["examples"]].add(run["seed"])
    lists = {size: numbers(sorted(found)) for size, found in sorted(of_size.items())}
    if len(set(lists.values())) == 1:
        return next(iter(lists.values()))
    return "; ".join(f"{found} with {size:,} examples" for size, found in lists.items())


def _tried(searches: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The budget of the search."""
    counts: dict[tuple[str, str, int], int] = defaultdict(int)
    for row in searches:
        counts[row["arm"].task, row["arm"].name, row["examples"]] += 1
    if not counts:
        return ()
    low, high = min(counts.values()), max(counts.values())
    tried = plural(high, "setting") if low == high else f"{low:,} to {high:,} settings"
    seconds = sum(row["seconds"] or 0 for row in searches)
    return (
        f"{tried} for each arm and amount of data, judged on held-out examples of seeds that nothing is reported on; "
        f"{seconds:,.0f} s in all",
    )
