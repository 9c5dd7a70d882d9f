"""What of a search's space each arm of a sweep has, and what of it cannot be searched: said before anything runs."""

import json
from collections.abc import Mapping, Sequence

from graft.errors import SpecError, suggest
from graft.planning import Plan
from graft.results.arms import flatten
from graft.spec import Experiment, Task
from graft.specfile import inside, key_and_value
from graft.sweeps.axes import Cell, method_name, own_key
from graft.swept import FIRST_TUNING_SEED, Dimension, Search
from graft.tasks.metrics import CLASSIFICATION, GENERATION


def spaces(search: Search, members: Sequence[tuple[Cell, Plan]]) -> list[dict[str, Dimension]]:
    """What of a search's space each cell has, by the keys of its own spec; not what its ablation sets.

    Args:
        search: with its space.
        members: the cells, each with the plan of one of its runs.

    Raises:
        SpecError: a key that no arm has, a value that the field cannot have, a metric that the task has not, or two
            cells that only what is searched for tells apart.
    """
    for _, plan in members:
        _check_metric(search.metric, plan)
    # A method's own keys come last, wherever they are written: they take the place of those of all methods.
    keys = sorted(search.space, key=lambda key: own_key(key)[0] is not None)
    found = [{own_key(key)[1]: search.space[key] for key in keys if _has(cell, plan, key)} for cell, plan in members]
    for key in search.space:
        if not any(_has(cell, plan, key) for cell, plan in members):
            names = sorted({plan.experiment.method.name for _, plan in members if plan.experiment.method})
            raise SpecError(
                f"sweep.search.space: {key} is a field of no arm (methods: {', '.join(names)}); {_cure(members, key)}"
            )
    if search.pruner is not None:
        _check_pruner([plan.experiment for (_, plan), space in zip(members, found, strict=True) if space])
    _check_apart(members, found)
    for (cell, _), space in zip(members, found, strict=True):
        for key, dimension in space.items():
            for end in dimension.ends:
                try:
                    cell.experiment(FIRST_TUNING_SEED, **{key: end})
                except SpecError as error:
                    raise SpecError(f"sweep.search.space: {key}={end}: {error}") from error
    return found


def _check_metric(metric: str | None, plan: Plan) -> None:
    task, known = plan.experiment.task, GENERATION if plan.dataset.labels is None else CLASSIFICATION
    # What a task judges by itself shows when the first setting is judged.
    if metric is not None and metric not in known and type(task).judged is Task.judged:
        raise SpecError(f"sweep.search.metric: {task.name} has no {metric!r}; {suggest(metric, known)}")


def _check_pruner(experiments: Sequence[Experiment]) -> None:
    if all(experiment.training.validate_every_steps is None for experiment in experiments):
        raise SpecError(
            "sweep.search.pruner: asha compares trainings at their looks at held-out examples, and there are none; set "
            "training.validate_every_steps, for example to a ninth of training.max_steps"
        )


def _check_apart(members: Sequence[tuple[Cell, Plan]], found: Sequence[Mapping[str, Dimension]]) -> None:
    """Refuse cells that would be one arm of the report, since it names none by what a search has chosen."""
    seen: dict[str, Cell] = {}
    for (cell, plan), space in zip(members, found, strict=True):
        spec = flatten(plan.experiment.question())
        rest = json.dumps({key: value for key, value in spec if not any(inside(key, own) for own in space)})
        other = seen.setdefault(rest, cell)
        if other is not cell:
            raise SpecError(
                f"{cell.origin}: differs from another arm ({other.origin}) only in what is searched for "
                f"(sweep.search.space: {', '.join(space)}); take one of the two arms out, or the key out of the space"
            )


def _has(cell: Cell, plan: Plan, key: str) -> bool:
    method, own = own_key(key)
    if method not in (None, method_name(cell.values)):
        return False
    taken = [taken_key for item in cell.ablation.items for taken_key, _ in flatten(dict([key_and_value(item)]))]
    if any(inside(own, one) or inside(one, own) for one in taken):
        return False  # what was taken away would be searched for, and be there again
    head, _, rest = own.partition(".")
    if head == "training":
        return any(hasattr(node, "build") for node in plan.graph.nodes)
    if head == "method":
        return plan.experiment.method is not None and rest.split(".")[0] in type(plan.experiment.method).model_fields
    if head == "models":
        return rest.split(".")[0] in plan.experiment.models
    return True  # no such section: building the experiment says so


def _cure(members: Sequence[tuple[Cell, Plan]], key: str) -> str:
    """What a key that no arm has may have been meant to be."""
    method, own = own_key(key)
    head, _, rest = own.partition(".")
    asked = [plan.experiment for cell, plan in members if method in (None, method_name(cell.values))]
    if not asked:
        return f"none of them is {method}"
    if head == "training":
        return "none of them trains"
    if head == "method":
        known = {name for one in asked if one.method for name in type(one.method).model_fields}
    else:
        known = {role for one in asked for role in one.models}
    return suggest(rest.split(".")[0], known)
