"""What a sweep takes away from its experiment, as the lists of items that its members lack.

    ladder          (), (a), (a, b), (a, b, c)
    leave_one_out   (), (a), (b), (c)
    factorial       (), (a), (b), (c), (a, b), (a, c), (b, c), (a, b, c)

The names are those of `graft.results.ablations`.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graft.errors import SpecError
from graft.results.ablations import combination_name, rung_name
from graft.results.arms import value_text
from graft.spec import Experiment
from graft.swept import Ablations


@dataclass(frozen=True)
class Ablation:
    """What one member of a sweep lacks."""

    name: str | None
    """As the sweep's table has it; None in a sweep without ablations."""
    items: tuple[str, ...] = ()
    """`key=value` words, applied in this order."""


def ablations(asked: Ablations | None) -> list[Ablation]:
    """Every ablation that is asked for, the whole first."""
    if asked is None:
        return [Ablation(None)]
    items = asked.items
    if asked.kind == "ladder":
        rungs = (items[:number] for number in range(1, len(items) + 1))
        return [
            Ablation(combination_name(())),
            *(Ablation(rung_name(len(rung), len(items), _short(rung[-1])), rung) for rung in rungs),
        ]
    most = 1 if asked.kind == "leave_one_out" else len(items)
    taken = itertools.chain.from_iterable(itertools.combinations(items, count) for count in range(most + 1))
    return [Ablation(combination_name([_short(item) for item in some]), some) for some in taken]


def check_changes(asked: Ablations, members: Mapping[Ablation, Sequence[Experiment]]) -> None:
    """Refuse an item that changes nothing.

    Of a factorial each item is looked at alone: that one of them makes another void is what it is there to show.

    Args:
        asked: the ablations.
        members: each ablation with its experiments, one per combination of the axes' values, in the same order.

    Raises:
        SpecError: an ablation gives the experiments of one before it.
    """
    seen: dict[str, Ablation] = {}
    for ablation, experiments in members.items():
        if asked.kind == "factorial" and len(ablation.items) > 1:
            continue
        same = seen.setdefault(json.dumps([member.to_mapping() for member in experiments]), ablation)
        if same is not ablation:
            raise SpecError(
                f"sweep.ablations.{asked.kind}: {ablation.items[-1]!r} changes nothing: the experiment is that of "
                f"{same.name!r}, defaults included; give another value, or leave the item out"
            )


def names(reached: Iterable[tuple[str, Ablation]]) -> dict[str, str | None]:
    """run_id to the name of its ablation; a run that is reached twice has the name with the fewest items."""
    found: dict[str, str | None] = {}
    for run_id, ablation in sorted(reached, key=lambda one: len(one[1].items)):
        found.setdefault(run_id, ablation.name)
    return found


def _short(item: str) -> str:
    key, _, value = item.partition("=")
    return f"{key}={value_text(value)}"
