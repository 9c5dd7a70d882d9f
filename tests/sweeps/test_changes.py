"""What a user is told when a spec was edited since its last sweep."""

from pathlib import Path
from typing import Any

from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.changes import changes
from graft.sweeps.status import Watcher
from graft.sweeps.sweep import run_sweep


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def spec(classifiers: list[str], **values: Any) -> Experiment:
    base = {"name": "wines", "task": {"name": "wine"}, "method": {"name": "probe"}, "regime": {"examples": 16}}
    return Experiment.from_mapping({**base, **values, "sweep": {"axes": {"method.classifier": classifiers}}})


def test_an_edited_sweep_says_what_changed_and_runs_the_difference(ray_cluster: Any, tmp_path: Path) -> None:
    first, again, wider = Notes(), Notes(), Notes()
    before = run_sweep(spec(["ridge"]), tmp_path, watcher=first)
    assert first.notes == ["starting Ray on this machine"]
    run_sweep(spec(["ridge"]), tmp_path, watcher=again)
    assert again.notes == []
    after = run_sweep(spec(["ridge", "knn"]), tmp_path, watcher=wider)
    assert wider.notes == [
        f"the spec was edited since {before.sweep_id}; the runs that both have are read",
        '  sweep.axes.method.classifier: ["ridge"] ─► ["ridge", "knn"]',
        "starting Ray on this machine",
    ]
    assert after.sweep_id != before.sweep_id
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_damaged_sweep_of_the_name_is_no_reason_to_stop(tmp_path: Path) -> None:
    for number, text in enumerate((": [", "- a list", "name: other")):
        folder = tmp_path / "sweeps" / f"wines-{number}"
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text(text)
    assert changes(spec(["ridge"]), "wines-new", open_storage(tmp_path)) == []
