"""Reasoning modules: their tasks are what they are said to be, wherever they are drawn, and can be learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from graft.errors import ModelError
from graft.models import heads, recipes
from graft.models.heads.head import Head
from graft.models.heads.hybrid import BASE
from graft.models.heads.regressions import Base
from graft.models.heads.tart import TartHead
from graft.pretraining import logistic, mixed
from graft.pretraining.heads import HeadNode, _compared, evaluated
from graft.pretraining.recipe import LogisticTasks, MixedTasks
from graft.spec import Training
from graft.training import Job, carry_out

SETTINGS = {"kind": "tart", "dimensions": 2, "points": 16, "width": 32, "layers": 2, "heads": 2}
DATA = LogisticTasks(
    dimensions=2,
    points=16,
    tasks_per_batch=32,
    first_dimensions=1,
    first_points=6,
    more_dimensions=1,
    more_points=5,
    every_steps=40,
)
BATCHES = logistic.TaskBatches(DATA, 0)


def seeds(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_bits_are_splitmix64s() -> None:
    # The first numbers of the published generator with seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert logistic._bits(seeds(1234567), 4)[0].tolist() == [number >> 11 for number in expected]


def test_numbers_are_uniform_and_normal_and_belong_to_their_seed() -> None:
    flat, bell = logistic.uniform(seeds(3), 20000)[0], logistic.normal(seeds(3), 20001)[0]
    assert 0 <= flat.min() < 0.001
    assert 0.999 < flat.max() < 1
    assert float(flat.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(bell.mean()) == pytest.approx(0, abs=0.03)
    assert float(bell.std()) == pytest.approx(1, abs=0.02)
    assert float(bell.pow(4).mean()) == pytest.approx(3, abs=0.2)
    together = logistic.normal(seeds(1, 2, 3), 10)
    assert torch.equal(together[2], logistic.normal(seeds(3), 10)[0])
    assert not torch.equal(together[0], together[1])


def test_labels_follow_the_rule() -> None:
    several = torch.arange(400)
    x, y = logistic.draw(several, 20, 3, 5, 10.0)
    assert x.shape == (400, 20, 5)
    assert not x[:, :, 3:].any()
    w = 10.0 * logistic.normal(several, 63)[:, 60:]
    likely = torch.sigmoid(torch.einsum("bnd,bd->bn", x[:, :, :3], w))
    assert float(w.std()) == pytest.approx(10, rel=0.1)
    assert float(y.mean()) == pytest.approx(0.5, abs=0.03)
    for low, high in ((0.0, 0.1), (0.3, 0.7), (0.9, 1.0)):
        inside = (likely >= low) & (likely <= high)
        assert float(y[inside].mean()) == pytest.approx(float(likely[inside].mean()), abs=0.07)


def test_the_curriculum_is_a_function_of_the_step() -> None:
    assert [BATCHES.size(step) for step in (0, 39, 40, 80, 1000)] == [(1, 6), (1, 6), (2, 11), (2, 16), (2, 16)]
    paper = logistic.TaskBatches(LogisticTasks(), 0)
    assert [paper.size(step) for step in (0, 1000, 3000, 8000, 24000)] == [
        (4, 18),
        (8, 48),
        (16, 108),
        (16, 258),
        (16, 258),
    ]
    assert BATCHES.batch(7).equals(logistic.TaskBatches(DATA, 0).batch(7))
    drawn = {seed for step in range(50) for seed in BATCHES.batch(step)["seed"].to_pylist()}
    assert len(drawn) == 50 * 32
    assert not drawn & set(BATCHES.fresh(500, "tested")["seed"].to_pylist())


def test_the_loss_does_not_depend_on_how_a_batch_is_shared() -> None:
    node = HeadNode(SETTINGS, 0)
    module, batch = node.build(), BATCHES.batch(60)
    with torch.no_grad():
        whole = float(module(**node.collate(batch)))
        parts = sum(float(module(**node.collate(batch.slice(at, 8)))) for at in range(0, 32, 8))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_point_does_not_see_its_own_label_nor_what_follows() -> None:
    head = untrained()
    x, y = logistic.draw(seeds(5), 10, 2, 2, 10.0)
    with torch.no_grad():
        before = head(x, y)
        flipped = y.clone()
        flipped[0, 6] = 1 - flipped[0, 6]
        after = head(x, flipped)
    assert torch.allclose(before[0, :7], after[0, :7], atol=1e-6)
    assert not torch.allclose(before[0, 7:], after[0, 7:], atol=1e-4)


def untrained() -> TartHead:
    head = HeadNode(SETTINGS, 0).head().eval()
    assert isinstance(head, TartHead)
    return head


def trained(max_steps: int, folder: Path) -> Head:
    data = DATA.model_copy(update={"tasks_per_batch": 64, "every_steps": 150})
    node, batches = HeadNode(SETTINGS, 0), logistic.TaskBatches(data, 0)
    training = Training(max_steps=max_steps, learning_rate=3e-3, checkpoint_steps=100)
    return node.trained(
        carry_out(Job(node, training, batches), fs.LocalFileSystem(), str(folder), lambda *_: None).weights
    )


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    head = trained(2, tmp_path)
    head.save(tmp_path / "head")
    again = heads.open_head(str(tmp_path / "head")).network.float()
    x, y = logistic.draw(torch.arange(8), 16, 2, 2, 10.0)
    assert torch.equal(again(x, y), head(x, y))
    assert not any(value.requires_grad for value in again.parameters())


@pytest.mark.slow
def test_it_learns_to_reason_from_examples(tmp_path: Path) -> None:
    found = evaluated(trained(800, tmp_path), BATCHES)
    assert found["bayes"] > 0.9
    assert found["logistic"] > 0.72
    assert found["accuracy"] > 0.72
    assert evaluated(untrained(), BATCHES)["accuracy"] < 0.62


def test_another_folder_is_no_head(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="is a causal model, no reasoning module"):
        heads.open_head(str(tiny_llama))


def test_a_head_whose_weights_are_others_is_refused(tmp_path: Path) -> None:
    untrained().save(tmp_path / "head")
    config = tmp_path / "head" / "config.json"
    config.write_text(config.read_text().replace('"width": 32', '"width": 64'))
    with pytest.raises(ModelError, match=r"its weights do not fit its config\.json"):
        _ = heads.open_head(str(tmp_path / "head")).network
    config.write_text('{"model_type": "unheard-of-head"}')
    with pytest.raises(ModelError, match="is no reasoning module that this graft knows"):
        _ = heads.open_head(str(tmp_path / "head")).network


MIXED = MixedTasks(tasks_per_batch=8, labelled=32, queries=16, dimensions=24, classes=4)
HYBRID = {"kind": "hybrid", "components": 4, "width": 16, "layers": 1, "heads": 2}
SIZE = mixed.Size(labelled=12, queries=20, dimensions=16, classes=3)


def test_a_mixed_task_is_its_own_seeds_and_begins_with_one_row_of_each_class() -> None:
    several = torch.arange(100, 140)
    x, y = mixed.draw(several, SIZE)
    assert x.shape == (40, 32, 16)
    assert torch.isfinite(x).all()
    alone = mixed.draw(several[7:8], SIZE)
    assert torch.allclose(alone[0][0], x[7], atol=1e-6)
    assert torch.equal(alone[1][0], y[7])
    for row in y:
        present = len(row.unique())
        assert len(row[:present].unique()) == present
    assert y.unique().tolist() == [0, 1, 2]


def test_mixed_tasks_differ_in_spectrum_and_difficulty() -> None:
    size = mixed.Size(labelled=200, queries=100, dimensions=32, classes=2)
    x, y = mixed.draw(torch.arange(64), size)
    deviation = x.std(dim=1)
    steepness = deviation[:, :4].mean(dim=1) / deviation[:, -4:].mean(dim=1)
    assert steepness.quantile(0.9) > 2 * steepness.quantile(0.1)
    base = Base.fit(x[:, :200], y[:, :200], 2, 8)
    right = (base.rows(x[:, 200:]).scores_BNCS[..., BASE].argmax(dim=-1) == y[:, 200:]).float().mean(dim=1)
    assert right.quantile(0.1) < 0.8
    assert right.quantile(0.9) > 0.93


def test_sizes_of_batches_are_a_function_of_the_step() -> None:
    batches = mixed.MixedBatches(MIXED, 0)
    assert batches.batch(5).equals(mixed.MixedBatches(MIXED, 0).batch(5))
    sizes = [batches.batch(step) for step in range(60)]
    assert {one["classes"][0].as_py() for one in sizes} == {2, 3, 4}
    labelled = [one["labelled"][0].as_py() for one in sizes]
    assert min(labelled) < 7
    assert 25 < max(labelled) <= 32
    assert all(one["targets"][0].as_py() == [16] for one in sizes)


def test_a_hybrid_heads_loss_does_not_depend_on_how_a_batch_is_shared() -> None:
    node = HeadNode(HYBRID, 0)
    module, batch = node.build(), mixed.MixedBatches(MIXED, 0).batch(3)
    with torch.no_grad():
        whole = float(module(**node.collate(batch)))
        parts = sum(float(module(**node.collate(batch.slice(at, 4)))) for at in range(0, 8, 4))
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        (SETTINGS, logistic.table(np.arange(512), 2, 16)),
        (HYBRID, SIZE.table(np.arange(512))),
        (HYBRID, mixed.Size(labelled=32, queries=20, dimensions=8, classes=2).table(np.arange(512))),
    ],
    ids=["tart", "hybrid-wide", "hybrid-tall"],
)
def test_half_precision_changes_neither_tasks_nor_regressions(settings: dict[str, Any], table: pa.Table) -> None:
    node = HeadNode(settings, 0)
    module, told, losses = node.build(), [], []
    module.network.register_forward_pre_hook(lambda _m, args: told.append(args))
    for half in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses.append(module(**node.collate(table)))
    whole, halved = told
    assert torch.equal(halved[0], whole[0])
    assert torch.equal(halved[1], whole[1])
    # An untrained hybrid head is its regression.
    assert settings is SETTINGS or torch.equal(*losses)


@pytest.mark.long
def test_a_hybrid_head_learns_to_correct_its_base(tmp_path: Path) -> None:
    node = HeadNode({"kind": "hybrid", "components": 4, "width": 32, "layers": 2, "heads": 2}, 0)
    batches = mixed.MixedBatches(MIXED.model_copy(update={"tasks_per_batch": 16}), 0)
    training = Training(max_steps=300, learning_rate=2e-3, checkpoint_steps=1000)
    done = carry_out(Job(node, training, batches), fs.LocalFileSystem(), str(tmp_path), lambda *_: None)
    found = evaluated(node.trained(done.weights), batches)
    assert found["log_loss"] < found["base_log_loss"] - 0.02
    assert found["accuracy"] > found["base_accuracy"] - 0.005
    untouched = evaluated(node.head().eval(), batches)
    assert untouched["log_loss"] == pytest.approx(untouched["base_log_loss"], rel=1e-5)


def test_the_shipped_hybrid_head_passes_its_gates() -> None:
    """At least as accurate as its base at every size, and better in log-loss; as its folder says, and measured anew."""
    said = recipes.read_manifest(recipes.SHIPPED / "hybrid")["evaluation"]
    sizes = [key.removeprefix("accuracy.") for key in said if key.startswith("accuracy.")]
    assert len(sizes) == 12
    for size in sizes:
        assert said[f"accuracy.{size}"] >= said[f"base_accuracy.{size}"]
        assert said[f"log_loss.{size}"] < said[f"base_log_loss.{size}"]
    batches = mixed.MixedBatches(MixedTasks(), 0)
    size = mixed.Size(32, 128, 256, 2)
    drawn = torch.tensor(batches.fresh(32, "tested", size)["seed"].to_pylist())
    found = _compared(heads.open_head("hybrid").network.float(), drawn, size)
    assert found["log_loss"] < found["base_log_loss"]
    assert found["accuracy"] > found["base_accuracy"]
