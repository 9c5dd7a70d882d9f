"""The metrics of answered test rows: of all of them, and of each group that a task averages over."""

import numpy as np
import pyarrow as pa

from graft.arrays import score_matrix
from graft.errors import GraftError
from graft.spec import Task
from graft.tasks import metrics
from graft.tasks.groups import MACRO, GroupedTask, rows_in


def by_group(answers: pa.Table, labels: tuple[str, ...] | None, task: Task) -> list[tuple[str, dict[str, float], int]]:
    """Split, metrics and rows of each group that the task averages over, then their mean and the number of groups."""
    groups = task.averaged(answers) if isinstance(task, GroupedTask) else ()
    if not groups:
        return []
    rarer = metrics.rarer_label(answers["target"].to_pylist(), labels or ())
    found = []
    for group in groups:
        own = rows_in(answers, "group", [group])
        found.append((f"test/{group}", evaluate(own, labels, task, rarer), own.num_rows))
    # A metric that is undefined in one group has no mean over all of them.
    shared = [name for name in found[0][1] if all(name in values for _, values, _ in found)]
    means = {name: sum(values[name] for _, values, _ in found) / len(found) for name in shared}
    return [*found, (f"test/{MACRO}", means, len(found))]


def evaluate(
    answers: pa.Table, labels: tuple[str, ...] | None, task: Task, rarer: str | None = None
) -> dict[str, float]:
    """Metrics of answered test rows.

    Args:
        answers: the rows with `target` and what the last node wrote.
        labels: of a classification; None where the target is free text.
        task: says how a target is read, and may have metrics of its own.
        rarer: see `graft.tasks.metrics.classification`.
    """
    targets, predicted = answers["target"].to_pylist(), answers["prediction"].to_pylist()
    if labels is None:
        found = metrics.generation(targets, predicted, task.parser)
        if "target_log_probability" in answers.column_names:
            found["perplexity"] = metrics.perplexity(answers["target_log_probability"], answers["target_tokens"])
        return found | task.judged(answers)
    log_probabilities = score_matrix(answers["scores"], labels)
    total = np.exp(np.logaddexp.reduce(log_probabilities, axis=1))
    if not np.allclose(total, 1, atol=1e-3):
        raise GraftError(
            f"scores: a row's probabilities add up to {total[np.argmax(abs(total - 1))]:.3g}, not to 1; the last node "
            "has to write the logarithm of a probability for every label"
        )
    return metrics.classification(targets, predicted, log_probabilities, labels, rarer) | task.judged(answers)
