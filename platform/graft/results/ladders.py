"""What each ablation costs: every rung of a ladder against the one above, every other ablation against the whole."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graft.results.ablations import FULL, label, rung_of
from graft.results.statistics import Interval, paired_interval
from graft.results.tables import LOWER_IS_BETTER, Cell


@dataclass(frozen=True)
class Rung:
    """One ablation with one number of examples."""

    label: str
    cell: Cell
    difference: Interval | None
    """This minus what it is compared with, over common seeds; None for the whole, and without a common seed."""

    @property
    def word(self) -> str:
        """`better` or `worse` where the paired 95 % interval excludes zero, else `undecided`; "" for the whole."""
        if self.cell.ablation == FULL:
            return ""
        if self.difference is None or not self.difference.excludes_zero:
            return "undecided"
        return "better" if (self.difference.mean < 0) == (self.cell.metric in LOWER_IS_BETTER) else "worse"


@dataclass(frozen=True)
class Ladder:
    """An arm's ablations with one number of examples, the whole first."""

    whole: str
    examples: int
    cumulative: bool
    """Whether each is compared with the one above, which it lacks one item more than; else all with the whole."""
    rungs: tuple[Rung, ...]


def ladders(cells: Iterable[Cell]) -> tuple[Ladder, ...]:
    """The ladders, and other ablations, in one metric's cells on one task.

    There is no table where the whole was not measured with as many examples; nor where two ladders from one whole share
    rung numbers, so that which rung stands above which is not known.
    """
    wholes: dict[tuple[str, int], Cell] = {}
    groups: dict[tuple[str, int, bool], dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        if cell.whole is None or cell.ablation is None:
            continue
        if cell.ablation == FULL:
            wholes[cell.whole, cell.examples] = cell
        else:
            groups[cell.whole, cell.examples, rung_of(cell.ablation) is not None][cell.ablation] = cell
    return tuple(
        Ladder(whole, examples, cumulative, _rungs(wholes[whole, examples], list(own.values()), cumulative))
        for (whole, examples, cumulative), own in sorted(groups.items())
        if (whole, examples) in wholes and (not cumulative or len({rung_of(name) for name in own}) == len(own))
    )


def ladder_caption(ladder: Ladder, metric: str) -> str:
    """What the numbers of a ladder are."""
    what = (
        "Each rung lacks what it names and all that is named above it. Difference to the rung above"
        if ladder.cumulative
        else "Each row lacks what it names and nothing else. Difference to the whole"
    )
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    return (
        f"{what} in {metric} ({better} is better), paired by seed: better or worse where its 95 % interval excludes 0; "
        "not corrected for the number of comparisons."
    )


def _rungs(whole: Cell, cells: Sequence[Cell], cumulative: bool) -> tuple[Rung, ...]:
    numbered = {0: whole}
    if cumulative:
        numbered |= {rung_of(cell.ablation or "") or 0: cell for cell in cells}
    else:
        numbered |= dict(enumerate(sorted(cells, key=lambda cell: cell.ablation or ""), start=1))
    return tuple(
        Rung(label(cell.ablation or FULL), cell, _difference(cell, numbered.get(number - 1 if cumulative else 0)))
        for number, cell in sorted(numbered.items())
    )


def _difference(cell: Cell, reference: Cell | None) -> Interval | None:
    if cell.ablation == FULL or reference is None or not cell.values.keys() & reference.values.keys():
        return None
    return paired_interval(cell.values, reference.values)
