import shutil
from pathlib import Path

import pytest

from graft import runs
from graft.errors import GraftError
from graft.serving.layout import Layout, lay_out

LAID_OUT = ("centroid", "ridge", "tart", "vectors", "calm", "fiat", "words")


@pytest.fixture(scope="module")
def layout(storage: Path, run_ids: dict[str, str]) -> Layout:
    return lay_out([runs.open_run(run_ids[name], storage) for name in LAID_OUT])


def test_a_model_is_deployed_once_whoever_uses_it(layout: Layout, tiny_bert: Path) -> None:
    centroid, ridge, tart, _, calm, fiat, words = layout.runs
    (shared,) = {segment.deployment for run in (centroid, ridge) for segment in run.segments}
    assert tart.segments[0].deployment == shared
    assert tart.segments[1].deployment.startswith("reason-recipe-hybrid")
    assert shared.startswith(f"embed-{tiny_bert.name.rstrip('0123456789').replace('_', '-')}")
    assert words.segments[0].deployment == shared
    assert {segment.deployment for run in layout.runs for segment in run.segments} == set(layout.deployments)
    assert len(calm.segments) == 1  # both of its models lie in one replica
    assert [len({part.deployment for part in run.segments}) for run in (fiat, words)] == [2, 2]
    # The encoder, TART's head, the vectors' classifier, the composed model, teacher, student and the model of words:
    # what reads the same weights in the same way shares them.
    used = {segment.deployment for run in layout.runs for segment in run.segments}
    assert fiat.segments[0].deployment == words.segments[1].deployment
    assert len(used) == len(layout.deployments) == 6


def test_nodes_without_a_model_ride_with_the_one_before(layout: Layout) -> None:
    centroid, _, _, vectors, *_, words = layout.runs
    assert [(part.start, part.stop) for part in centroid.segments] == [(0, 2)]
    assert [(part.start, part.stop) for part in vectors.segments] == [(0, 1)]
    assert vectors.segments[0].deployment.startswith("classify-")
    assert [(part.start, part.stop) for part in words.segments] == [(0, 2), (2, 3)]
    assert words.segments[1].deployment.startswith("explain-")  # a teacher of the same weights came first
    assert [node["deployment"] for node in words.nodes] == [words.segments[place].deployment for place in (0, 0, 1)]


def test_what_nobody_reads_later_stays_in_the_replica(layout: Layout) -> None:
    centroid, *_, words = layout.runs
    assert centroid.segments[0].keeps == ("prediction", "scores")
    assert "demonstrations" in words.segments[0].keeps
    assert "embedding" not in words.segments[0].keeps


def test_only_a_classification_has_labels(layout: Layout) -> None:
    assert [run.classifies for run in layout.runs] == [True, True, True, True, True, True, False]


def test_a_run_named_twice_is_served_once(storage: Path, run_ids: dict[str, str]) -> None:
    twice = [runs.open_run(run_ids["vectors"], storage), runs.open_run(storage / "runs" / run_ids["vectors"])]
    layout = lay_out(twice)
    assert [run.run_id for run in layout.runs] == [run_ids["vectors"]]
    assert len(layout.deployments) == 1


def test_a_graph_that_was_changed_is_refused(storage: Path, run_ids: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(storage / "runs" / run_ids["centroid"], tmp_path / "run")
    (tmp_path / "run" / "graph" / "1-classify" / "fitted.safetensors").write_bytes(b"")
    with pytest.raises(GraftError, match="damaged"):
        lay_out([runs.open_run(tmp_path / "run")])
