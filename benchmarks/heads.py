"""Heads that were trained on synthetic tasks alone, against classifiers that are fitted to each real one.

    python benchmarks/heads.py [--storage heads] [--data DIR] [--seeds 5] [--only NAME ...] [--minutes 90]
        [--out docs/tart-tables.md]

Every arm of a set is given the same labelled rows and test rows (jobs/specs/tart-*.yaml); heads and classifiers read
them as the vectors of one frozen encoder. What a classifier selects, it selects by five folds inside the labelled rows:
`logistic` its C by log-loss, `logistic_by_accuracy` by accuracy. The heads select nothing. At each number of examples a
head is compared with the rival whose mean on the test rows is best there, which favours the rival: ahead or behind
where the 95 % t-interval of the difference, paired by seed, leaves out zero, else undecided. For ece the rival is the
one with the best log_loss: who always says the shares of the labels is calibrated, and of no use.
"""

import argparse
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graft.results.statistics import paired_interval
from graft.results.tables import LOWER_IS_BETTER, Grid, grids, markdown, summary
from graft.spec import Experiment
from graft.sweeps.sweep import run_sweep
from machine import machine

SPECS = Path("jobs/specs")
SMALL = (18, 32, 48, 64)
"""Numbers of labelled rows that the shipped `tart` head has room for."""
LANGUAGES = ("eng_Latn", "deu_Latn", "swh_Latn", "zho_Hans")
SETS = """Sets: SMS Spam Collection (UCI), sentence polarity and movie reviews (NLTK), SIB-200 (topics, one language at
a time), the docstrings that come with graft, the test images of MNIST, and free spoken digits. Texts are read by
all-MiniLM-L6-v2, an English model, images as raw pixels and sounds as log-mel features. While the prior of the hybrid
head was designed, other draws of sms_spam, mr_polarity and English SIB-200 were looked at; the other sets were not."""
METRICS = ("accuracy", "log_loss", "ece")

Verdicts = dict[str, list["Verdict | None"]]
"""An arm to what is said of it at every number of examples; None where the head has no room for so many."""


@dataclass(frozen=True)
class Comparison:
    """One set."""

    name: str
    spec: str
    words: tuple[str, ...] = ()
    """What the command overrides."""
    also: tuple[str, ...] = ()
    """What a second sweep overrides, whose arms stand in the same table."""

    def commands(self) -> str:
        """Those that carry it out."""
        words = [f"task.path={Path(word).name}" if word.startswith("task.path=") else word for word in self.words]
        plain = " ".join(["graft sweep", f"{SPECS / self.spec}.yaml", *words])
        also = [f"{plain} {' '.join(repr(word) for word in self.also)}"] if self.also else []
        return "\n".join(["```sh", plain, *also, "```"])


@dataclass(frozen=True)
class Verdict:
    """Of a head against the best rival, at one number of examples."""

    word: str
    gap: float
    rival: str

    def text(self) -> str:
        """For a table."""
        return f"{self.word} {self.gap:+.3f} ({self.rival})"


def main() -> None:
    """Run what is not done yet, and write the page."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--storage", type=Path, default=Path("heads"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--only", nargs="*")
    words.add_argument("--minutes", type=float, default=90, help="after which no further set is begun")
    words.add_argument("--out", type=Path, default=Path("docs/tart-tables.md"))
    given = words.parse_args()
    given.storage.mkdir(parents=True, exist_ok=True)
    clock = given.storage / "minutes.txt"  # of every call together: a killed one goes on
    before, began, left_out = float(clock.read_text()) if clock.exists() else 0.0, time.monotonic(), []

    def spent() -> float:
        return before + (time.monotonic() - began) / 60

    sections: list[str] = []
    verdicts: dict[str, dict[str, Verdicts]] = {}
    tables: dict[str, pa.Table] = {}
    everything = comparisons(given.data, given.storage)
    for one in everything:
        if given.only and one.name not in given.only:
            continue
        if spent() > given.minutes:
            left_out.append(one.name)
            continue
        tables[one.name] = found = swept(one, given)
        clock.write_text(f"{spent():.1f}")
        verdicts[one.name] = {metric: compared(found, metric) for metric in METRICS}
        sections.append(section(one, found, verdicts[one.name]))
        print(f"{one.name}: done after {spent():.0f} minutes", flush=True)
    title, _, said = (__doc__ or "").strip().partition("\n\n")
    usage, _, how = said.partition("\n\n")
    made = (
        f"Made by `{' '.join(usage.split()[:2])}` on {machine()} in {spent():.0f} minutes; after {given.minutes:.0f} "
        f"no set would have been begun{', as happened to ' + ', '.join(left_out) if left_out else ''}."
    )
    alike = {one.name: tables[one.name] for one in everything if one.also and one.name in tables}
    page = ["# TART on real tasks", title, how, SETS, made, *everywhere(alike), *overview(verdicts), *sections]
    given.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def comparisons(data: Path, storage: Path) -> list[Comparison]:
    """Every set, the ones that matter most first."""
    heads = "[{name: tart}, {name: tart, head: tart}]"
    both = (f"sweep.axes={{method: {heads}, regime.examples: [{', '.join(map(str, SMALL))}]}}",)
    texts = {name: data / f"{name}.parquet" for name in ("sms_spam", "mr_polarity", "movie_reviews")}
    texts |= {f"sib200_{language}": in_language(data, language, storage) for language in LANGUAGES}
    found = [
        Comparison(name, "tart-text", (f"name={name.replace('_', '-').lower()}", f"task.path={path}"), both)
        for name, path in texts.items()
    ]
    found.insert(3, Comparison("python-docs", "tart-python-docs", (), both))
    found.insert(4, Comparison("mnist_t10k", "tart-images", (f"task.path={data}/mnist_t10k.parquet",), both))
    found.insert(5, Comparison("spoken_digits", "tart-sounds", (f"task.path={data}/spoken_digits.parquet",), both))
    protocols = [
        Comparison(
            f"{name} read by graft-nano",
            "tart-nano",
            (f"name={name.replace('_', '-').lower()}-nano", f"task.path={texts[name]}"),
        )
        for name in ("sms_spam", "mr_polarity")
    ]
    return found[:7] + protocols + found[7:]


def in_language(data: Path, language: str, storage: Path) -> Path:
    """The sentences of SIB-200 in one language, as a file of their own."""
    path = storage / f"sib200_{language}.parquet"
    rows = pq.read_table(data / "sib200.parquet", columns=["lang", "text", "label"])
    pq.write_table(rows.filter(pc.equal(rows["lang"], language)).drop_columns("lang"), path)
    return path


def swept(one: Comparison, given: argparse.Namespace) -> pa.Table:
    """The metric rows of all arms of a set."""
    words = (f"sweep.seeds={given.seeds}", *one.words)
    tables = [
        run_sweep(Experiment.from_yaml(SPECS / f"{one.spec}.yaml", *words, *also), given.storage).metrics
        for also in ([(), one.also] if one.also else [()])
    ]
    return pa.concat_tables(tables)


def section(one: Comparison, found: pa.Table, verdicts: dict[str, Verdicts]) -> str:
    """The tables of a set, and what they say."""
    parts = [f"## {one.name}", one.commands()]
    for metric in METRICS:
        cells = summary(found, metric)
        rows = [
            f"| *{arm} is* | {' | '.join(verdict.text() if verdict else '' for verdict in several)} |"
            for arm, several in verdicts[metric].items()
        ]
        parts.append("\n".join([markdown(cells), *rows]))
    return "\n\n".join(parts)


def compared(found: pa.Table, metric: str) -> Verdicts:
    """Every head against the best rival, at every number of examples."""
    (grid,) = grids(summary(found, metric))
    (ranking,) = grids(summary(found, "log_loss" if metric == "ece" else metric))
    rivals = {size: next(cell.arm for cell in ranking.ranked(size) if not _is_head(cell.arm)) for size in ranking.sizes}
    return {
        arm: [_verdict(grid, arm, rivals[size], size) for size in grid.sizes]
        for arm in sorted(grid.arms)
        if _is_head(arm)
    }


def _verdict(grid: Grid, arm: str, rival: str, size: int) -> Verdict | None:
    own = grid.cells.get((arm, size))
    if own is None:
        return None
    gap = paired_interval(own.values, grid.cells[rival, size].values)
    better = gap.mean < 0 if grid.metric in LOWER_IS_BETTER else gap.mean > 0
    return Verdict(("ahead" if better else "behind") if gap.excludes_zero else "undecided", gap.mean, rival)


def _is_head(arm: str) -> bool:
    return arm.split()[0] == "tart"


def overview(verdicts: dict[str, dict[str, Verdicts]]) -> list[str]:
    """How often a head is ahead, and by how much on average."""
    lines = ["| set | head | " + " | ".join(METRICS) + " |", "|---|---|" + "---|" * len(METRICS)]
    for name, by_metric in verdicts.items():
        for arm in by_metric[METRICS[0]]:
            said = [_tally([one for one in by_metric[metric][arm] if one]) for metric in METRICS]
            lines.append(f"| {name} | {arm} | {' | '.join(said)} |")
    what = (
        "Numbers of examples at which a head is ahead of / undecided with / behind the best rival, and the mean "
        "difference (log_loss and ece: less is better):"
    )
    return [what, "\n".join(lines)]


def everywhere(found: dict[str, pa.Table]) -> list[str]:
    """Each arm's mean over sets and numbers of examples, and what the hybrid head gives beside it.

    Args:
        found: sets whose arms are the same, with their metric rows.
    """
    means: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for place, table in enumerate(found.values()):
        for metric in METRICS:
            (grid,) = grids(summary(table, metric))
            for arm in grid.arms:
                values = [cell.interval.mean for cell in grid.cells.values() if cell.arm == arm and cell.interval]
                if len(values) == len(grid.sizes):  # the tart head has no room for the larger ones
                    means[metric, arm][place] = sum(values) / len(values)
    first = METRICS[0]
    arms = sorted({arm for metric, arm in means if metric == first}, key=lambda arm: -_mean(means[first, arm]))
    own = next(arm for arm in arms if _is_head(arm))
    lines = ["| | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for arm in arms:
        cells = []
        for metric in METRICS:
            gap = paired_interval(means[metric, own], means[metric, arm])
            beside = f" ({gap.mean:+.3f} ±{gap.half_width:.3f})" if arm != own and gap.half_width is not None else ""
            cells.append(f"{_mean(means[metric, arm]):.3f}{beside}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    what = (
        f"If one arm had to be named before anything is seen: means over {len(found)} sets and all numbers of "
        f"examples, in brackets the mean of {own} minus it, with the 95 % interval over sets:"
    )
    return [what, "\n".join(lines)]


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


def _tally(verdicts: list[Verdict]) -> str:
    count = Counter(verdict.word for verdict in verdicts)
    mean = sum(verdict.gap for verdict in verdicts) / len(verdicts)
    return f"{count['ahead']} / {count['undecided']} / {count['behind']}, {mean:+.3f}"


if __name__ == "__main__":
    main()
