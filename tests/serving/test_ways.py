"""How the HTTP process asks a deployment: what its hosting says becomes messages, and how many at once."""

from pathlib import Path

from pyarrow import fs

from graft.hosted import Hosting
from graft.serving.asking import Way
from graft.serving.layout import Deployment
from graft.serving.wire import Place


def deployment(hosting: Hosting, tmp_path: Path, runs: int = 1) -> Deployment:
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    return Deployment("cpu", ("ab",), hosting, tuple(Place(f"run-{n}", files, f"run-{n}") for n in range(runs)))


def test_a_message_carries_a_batch_and_each_replica_has_the_next_one_waiting(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(replicas=3, max_batch_size=5), tmp_path)) == Way(False, 5, 6)


def test_replicas_are_added_by_requests_so_each_is_a_message(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(max_replicas=4, max_requests=10), tmp_path)) == Way(False, 1, 40)


def test_runs_that_do_not_all_fit_are_sought_where_they_lie(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(max_runs=2), tmp_path, runs=2)).spread is False
    assert Way.to(deployment(Hosting(max_runs=2), tmp_path, runs=3)).spread is True
