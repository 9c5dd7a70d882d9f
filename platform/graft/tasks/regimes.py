"""How much labelled data a run has, which rows these are, and which of them select.

Regimes are nested: all sizes of one seed are prefixes of one order, so a learning curve adds rows and
replaces none. A prefix of a classification holds one row of each label first, then every label in proportion.

What selects inside the examples is held out in whole units (`graft.tasks.split`): no row is validated on whose input or
item is also trained on.
"""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graft import seeds
from graft.errors import DataError
from graft.spec import Regime
from graft.tasks.dataset import Dataset
from graft.tasks.split import numbered, strata_of, units

Indices = npt.NDArray[np.int64]

HOLD_OUT_FROM = 100
"""Examples from which on `validation: auto` holds out one share instead of taking folds."""
HOLD_OUT_SHARE = 0.2
FOLDS = 5


def draw(dataset: Dataset, regime: Regime) -> pa.Table:
    """The examples of a regime, in the order in which they were drawn.

    Raises:
        DataError: more examples than rows, fewer than labels, or a test label that no training row has.
    """
    rows, count = dataset.train.num_rows, regime.examples
    if count > rows:
        raise DataError(f"regime.examples is {count}, but there are {rows} training rows; give at most {rows}")
    rng = seeds.generator(regime.seed, "examples")
    if dataset.labels is None:
        return dataset.train.take(pa.array(rng.permutation(rows)[:count]))
    targets = dataset.train["target"].to_pylist()
    _check_labels(set(targets), set(dataset.test["target"].to_pylist()), count)
    order = _in_proportion(targets, rng, each_label_first=True)
    return dataset.train.take(pa.array(itertools.islice(order, count), pa.int64()))


def folds(
    targets: Sequence[str], regime: Regime, units: Sequence[Hashable] | None = None
) -> list[tuple[Indices, Indices]]:
    """Row numbers to train and to validate on, for selection inside the examples of a regime.

    A share gives one hold-out of that share; a number gives that many folds, which hold every row once;
    `auto` holds out 20 % from 100 examples on and gives five folds below. Labels are in proportion as far as
    they go: a label with one row is missing from training where that row validates. So are the sizes where units have
    several rows, and there are no more folds than units.

    Args:
        targets: the examples' labels or texts.
        regime: gives `validation` and the seed.
        units: equal for examples that stay on one side; None where each stands for itself.

    Returns:
        One (training rows, validation rows) pair per fold, both sorted and neither empty.

    Raises:
        DataError: there is only one example, or one unit.
    """
    rows = len(targets)
    if rows < 2:
        raise DataError(f"validation needs at least 2 examples, got {rows}; raise regime.examples")
    unit_of = np.arange(rows) if units is None else numbered(units)
    sizes = np.bincount(unit_of)
    if len(sizes) < 2:
        raise DataError(
            f"validation needs examples of at least 2 different inputs and items, got {rows} of one; "
            "raise regime.examples"
        )
    rng = seeds.generator(regime.seed, "validation")
    validation = _validation(regime, rows)
    names = list(dict.fromkeys(targets))
    labels = [names[number] for number in strata_of(unit_of, numbered(targets))]
    if validation < 1:
        held_out = min(max(round(rows * validation), 1), rows - 1)
        parts = [np.array(_filled(_in_proportion(labels, rng), sizes, held_out))]
    else:
        # Large ones first: the folds that they make unequal are then filled up by small ones.
        order = np.concatenate([pile[np.argsort(-sizes[pile], kind="stable")] for pile in _piles(labels, rng)])
        parts = [order[first :: int(validation)] for first in range(min(int(validation), len(sizes)))]
    held = [np.isin(unit_of, part) for part in parts]
    return [(np.flatnonzero(~own), np.flatnonzero(own)) for own in held]


def units_of(rows: pa.Table, units: Mapping[str, int] | None) -> list[Hashable] | None:
    """What `folds` reads, from the units by their rows' ids; a row of none stands for itself."""
    return None if units is None else [units.get(id, id) for id in rows["id"].to_pylist()]


def fold_count(regime: Regime) -> int:
    """How many folds `folds` gives for the examples of a regime, unless they are of fewer units."""
    validation = _validation(regime, regime.examples)
    return 1 if validation < 1 else min(int(validation), regime.examples)


def _validation(regime: Regime, rows: int) -> float:
    """A share to hold out, or a number of folds."""
    if regime.validation != "auto":
        return regime.validation
    return HOLD_OUT_SHARE if rows >= HOLD_OUT_FROM else FOLDS


def hold_out(dataset: Dataset, examples: pa.Table, regime: Regime) -> tuple[pa.Table, pa.Table]:
    """The examples without a regime's own fold, in their order, and the fold, which stands in for the test rows.

    Args:
        dataset: whose inputs and items say which of the examples stay together.
        examples: of the regime.
        regime: with its `fold`.

    Raises:
        DataError: there is no such fold.
    """
    assert regime.fold is not None
    unit_of = list(units(examples, dataset.inputs, dataset.items).values())
    parts = folds(examples["target"].to_pylist(), regime, unit_of)
    if regime.fold >= len(parts):
        given = f"{examples.num_rows} examples"
        if (different := len(set(unit_of))) < examples.num_rows:
            given += f" of {different} different inputs and items"
        raise DataError(
            f"regime.fold is {regime.fold}; {given} give the folds 0 to {len(parts) - 1}: raise regime.examples, "
            "or give fewer folds in regime.validation"
        )
    train, held = parts[regime.fold]
    return examples.take(pa.array(train)), examples.take(pa.array(held))


def _check_labels(known: set[str], tested: set[str], count: int) -> None:
    if unseen := sorted(tested - known):
        raise DataError(
            f"no training row has the label {unseen[0]!r} of the test rows ({len(unseen)} such labels); "
            "add rows of it to the training file, or remove it from the test file"
        )
    if count < len(known):
        raise DataError(
            f"regime.examples is {count}, but there are {len(known)} labels and a regime holds one row of each; "
            f"give at least {len(known)}"
        )


def _piles(targets: Sequence[str], rng: np.random.Generator) -> list[Indices]:
    """The row numbers of each label, shuffled, the labels in random order."""
    numbers = {target: number for number, target in enumerate(sorted(set(targets)))}
    codes = np.array([numbers[target] for target in targets])
    piles = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return [rng.permutation(piles[label]) for label in rng.permutation(len(piles))]


def _in_proportion(
    targets: Sequence[str], rng: np.random.Generator, *, each_label_first: bool = False
) -> Iterator[int]:
    """All rows, in an order in which the label furthest behind its share always comes next."""
    piles = _piles(targets, rng)
    shares = np.array([len(pile) for pile in piles]) / len(targets)
    taken = np.zeros(len(piles), np.int64)
    for step in range(len(targets)):
        # No pile runs empty: a label with no row left is never behind its share while others are.
        label = step if each_label_first and step < len(piles) else int(np.argmax(shares * (step + 1) - taken))
        yield int(piles[label][taken[label]])
        taken[label] += 1


def _filled(order: Iterable[int], sizes: Indices, count: int) -> list[int]:
    """Those units, in their order, that still fit into `count` rows; the smallest where none does."""
    chosen: list[int] = []
    for unit in order:
        if sizes[unit] <= count:
            chosen.append(unit)
            count -= sizes[unit]
        if not count:
            break
    return chosen or [int(np.argmin(sizes))]
