"""MLflow and Weights & Biases beside a sweep: each run that is reported on, once, when it is done.

They are extras, and told where to write by their own settings: `MLFLOW_TRACKING_URI`, else a folder of the sweep;
`WANDB_MODE` and `WANDB_API_KEY`, else Weights & Biases keeps its files in a folder of the sweep and sends nothing.
"""

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pyarrow import fs

from graft.errors import SpecError
from graft.planning import Plan
from graft.storage import local_root
from graft.sweeps.curves import flat


class Tracker(Protocol):
    """Who is told of a run."""

    def log(self, plan: Plan, values: Mapping[str, float]) -> None:
        """A run is done; one that is known already changes nothing."""
        ...

    def close(self) -> None:
        """The sweep has ended."""
        ...


def trackers(names: Sequence[str], sweep_id: str, files: fs.SubTreeFileSystem, folder: str) -> list[Tracker]:
    """Those that a spec names.

    Args:
        names: `mlflow`, `wandb`.
        sweep_id: under which runs are grouped.
        files: the storage.
        folder: of the sweep in it.

    Raises:
        SpecError: a package is not installed.
    """
    root = local_root(files)
    place = root / folder if root else Path(tempfile.mkdtemp(prefix="graft-tracking-"))
    kinds: dict[str, type[Mlflow | Wandb]] = {"mlflow": Mlflow, "wandb": Wandb}
    return [kinds[name](sweep_id, place) for name in names]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SpecError(f"sweep.track: {name} is not installed: pip install 'graft-compose[{name}]'") from error


class Mlflow:
    """An experiment per sweep, a run per run."""

    def __init__(self, sweep_id: str, place: Path) -> None:
        mlflow = _package("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # what it keeps without a database
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlruns").absolute().as_uri()
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(sweep_id)
        self.experiment = known.experiment_id if known else self.client.create_experiment(sweep_id)
        self.known = {run.data.tags.get("graft.run_id") for run in self._runs()}

    def log(self, plan: Plan, values: Mapping[str, float]) -> None:
        """Settings as parameters, metrics over the number of examples."""
        if plan.run_id in self.known:
            return
        self.known.add(plan.run_id)
        made = self.client.create_run(self.experiment, run_name=plan.run_id, tags={"graft.run_id": plan.run_id})
        run = made.info.run_id
        for key, value in flat(plan.experiment.question()).items():
            self.client.log_param(run, key, str(value)[:500])
        for name, value in values.items():
            self.client.log_metric(run, name, value, step=plan.examples.num_rows)
        self.client.set_terminated(run)

    def close(self) -> None:
        """Nothing is open."""

    def _runs(self) -> list[Any]:
        found, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            found += list(page)
            if not (token := page.token):
                return found


class Wandb:
    """A group per sweep, a run per run; its id is the run's, so that it is there once."""

    def __init__(self, sweep_id: str, place: Path) -> None:
        self.wandb, self.sweep_id, self.place = _package("wandb"), sweep_id, place
        # offline-run-20261128_010809-<run_id>
        self.known = {path.name.split("-", 3)[-1] for path in (place / "wandb").glob("offline-run-*")}

    def log(self, plan: Plan, values: Mapping[str, float]) -> None:
        """Settings as configuration, metrics as the summary."""
        if plan.run_id in self.known:
            return
        self.known.add(plan.run_id)
        self.place.mkdir(parents=True, exist_ok=True)
        send = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        run = self.wandb.init(
            project=plan.experiment.name,
            group=self.sweep_id,
            id=plan.run_id,
            name=plan.run_id,
            resume="allow",
            dir=str(self.place),
            config=flat(plan.experiment.question()),
            mode=None if send else "offline",
            settings=self.wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
        )
        run.log(dict(values), step=plan.examples.num_rows)
        run.finish()

    def close(self) -> None:
        """End its process."""
        self.wandb.teardown()
