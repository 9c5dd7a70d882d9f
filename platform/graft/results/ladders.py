"""Which rungs of a ladder, and which other ablations, stand together; `comparisons.compare_rungs` compares them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graft.results.ablations import FULL, label, rung_of
from graft.results.tables import LOWER_IS_BETTER, Cell


@dataclass(frozen=True)
class Rung:
    """One ablation with one number of examples."""

    label: str
    cell: Cell


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
        f"{what} in {metric} ({better} is better), paired by seed and test item; p is corrected by Holm's method for "
        "all rows of this table."
    )


def _rungs(whole: Cell, cells: Sequence[Cell], cumulative: bool) -> tuple[Rung, ...]:
    numbered = {0: whole}
    if cumulative:
        numbered |= {rung_of(cell.ablation or "") or 0: cell for cell in cells}
    else:
        numbered |= dict(enumerate(sorted(cells, key=lambda cell: cell.ablation or ""), start=1))
    return tuple(Rung(label(cell.ablation or FULL), cell) for _, cell in sorted(numbered.items()))
