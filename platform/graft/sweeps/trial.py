"""One run of a sweep, as Ray Tune carries it out: an actor that takes one experiment after the other.

Starting a process that imports torch takes seconds, a run of a sweep often less. So an actor is used again for the
next experiment. What must not pass from one to the next is begun anew: the random streams (`runner.carry_out` sees to
it), the plan, the graph. What may, because it is frozen, stays: loaded models and the column store.
"""

import contextlib
import json
import logging
import os
import warnings
from typing import Any

import ray
import torch  # noqa: F401 -- before any trial begins, so that every trial's streams are fresh ones
from ray import tune

from graft import planning, runner
from graft.errors import GraftError, ModelError, OutOfMemoryError, PrunedError
from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.limits import LimitError, Spent, limited, too_long
from graft.sweeps.work import Work

log = logging.getLogger(__name__)


class GraftTrial(tune.Trainable):  # type: ignore[misc]
    """Carries out the run that `config` holds (`run_id`, JSON of the `experiment`, fingerprint of the `rows`).

    A failure is an answer, not an exception.
    """

    def setup(self, config: dict[str, Any], work: Work) -> None:
        """Once per actor."""
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries; nobody reads a worker's
        self.work = work
        self.clean = True
        with contextlib.suppress(OSError):
            os.chdir(work.folder)
        self.files = open_storage(work.storage)
        self.store = runner.open_store(self.files, work.store_limit_bytes)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next experiment; Tune has put it into `config`."""
        return True

    def step(self) -> dict[str, Any]:
        """The whole run: its test metrics, or `error`.

        After a failure that nobody foresaw, this process may be in disorder: it ends when it is given another run,
        which Tune then gives to a new process. (It does so for a run that has begun, not for one that is being reset.)
        """
        if not self.clean:
            ray.actor.exit_actor()
        run_id = self.config["run_id"]
        try:
            plan = self._plan(run_id)
            spent = Spent(self.files, run_id)
            if said := too_long(self.work.limits, spent.earlier):
                return {"done": True, "error": said}
            with limited(self.work.limits, spent):
                worst = json.loads(self.config.get("worst", "{}"))
                worst = {int(step): loss for step, loss in worst.items()}
                together = runner.together(plan, self.work.storage, None)
                result = runner.carry_out(plan, self.files, self.store, together=together, worst=worst)
            spent.forget()
        except PrunedError as error:
            return {
                "done": True,
                "error": str(error),
                "pruned": {str(step): loss for step, loss in error.looks.items()},
            }
        except Exception as error:
            log.warning("%s failed", run_id, exc_info=True)
            self.clean = isinstance(error, GraftError) and not isinstance(error, LimitError | OutOfMemoryError)
            return {"done": True, "error": runner.reason(error)}
        finally:
            self.store.flush()
        return {"done": True, "metrics": result.values, "seconds": result.metrics["seconds"][0].as_py() or 0.0}

    def _plan(self, run_id: str) -> planning.Plan:
        experiment = Experiment.from_mapping(json.loads(self.config["experiment"]))
        plan = planning.plan(experiment, self.work.datasets[self.config["rows"]])
        if plan.run_id != run_id:
            raise ModelError(
                f"{run_id}: node {os.uname().nodename} has another model or another graft than the one that planned "
                f"the sweep (it makes {plan.run_id} of this spec); give all nodes the same files"
            )
        return plan

    def __repr__(self) -> str:
        return f"graft sweep {self.work.sweep_id}"
