"""Reasoning modules: their tasks are what they are said to be, wherever they are drawn, and can be learned."""

from pathlib import Path

import pytest
import torch
from pyarrow import fs

from graft.errors import ModelError
from graft.pretraining import synthetic
from graft.pretraining.head import HeadNode, ReasoningHead, accuracy
from graft.pretraining.recipe import LogisticTasks
from graft.spec import Training
from graft.training import Job, carry_out

SETTINGS = {"dimensions": 2, "points": 16, "width": 32, "layers": 2, "heads": 2}
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
BATCHES = synthetic.TaskBatches(DATA, 0)


def seeds(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_bits_are_splitmix64s() -> None:
    # The first numbers of the published generator with seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert synthetic._bits(seeds(1234567), 4)[0].tolist() == [number >> 11 for number in expected]


def test_numbers_are_uniform_and_normal_and_belong_to_their_seed() -> None:
    flat, bell = synthetic.uniform(seeds(3), 20000)[0], synthetic.normal(seeds(3), 20001)[0]
    assert 0 <= flat.min() < 0.001
    assert 0.999 < flat.max() < 1
    assert float(flat.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(bell.mean()) == pytest.approx(0, abs=0.03)
    assert float(bell.std()) == pytest.approx(1, abs=0.02)
    assert float(bell.pow(4).mean()) == pytest.approx(3, abs=0.2)
    together = synthetic.normal(seeds(1, 2, 3), 10)
    assert torch.equal(together[2], synthetic.normal(seeds(3), 10)[0])
    assert not torch.equal(together[0], together[1])


def test_labels_follow_the_rule() -> None:
    several = torch.arange(400)
    x, y = synthetic.draw(several, 20, 3, 5, 10.0)
    assert x.shape == (400, 20, 5)
    assert not x[:, :, 3:].any()
    w = 10.0 * synthetic.normal(several, 63)[:, 60:]
    likely = torch.sigmoid(torch.einsum("bnd,bd->bn", x[:, :, :3], w))
    assert float(w.std()) == pytest.approx(10, rel=0.1)
    assert float(y.mean()) == pytest.approx(0.5, abs=0.03)
    for low, high in ((0.0, 0.1), (0.3, 0.7), (0.9, 1.0)):
        inside = (likely >= low) & (likely <= high)
        assert float(y[inside].mean()) == pytest.approx(float(likely[inside].mean()), abs=0.07)


def test_the_curriculum_is_a_function_of_the_step() -> None:
    assert [BATCHES.size(step) for step in (0, 39, 40, 80, 1000)] == [(1, 6), (1, 6), (2, 11), (2, 16), (2, 16)]
    paper = synthetic.TaskBatches(LogisticTasks(), 0)
    assert [paper.size(step) for step in (0, 1000, 3000, 8000, 24000)] == [
        (4, 18),
        (8, 48),
        (16, 108),
        (16, 258),
        (16, 258),
    ]
    assert BATCHES.batch(7).equals(synthetic.TaskBatches(DATA, 0).batch(7))
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
    head = ReasoningHead(**SETTINGS).eval()
    x, y = synthetic.draw(seeds(5), 10, 2, 2, 10.0)
    with torch.no_grad():
        before = head(x, y)
        flipped = y.clone()
        flipped[0, 6] = 1 - flipped[0, 6]
        after = head(x, flipped)
    assert torch.allclose(before[0, :7], after[0, :7], atol=1e-6)
    assert not torch.allclose(before[0, 7:], after[0, 7:], atol=1e-4)


def trained(max_steps: int, folder: Path) -> ReasoningHead:
    data = DATA.model_copy(update={"tasks_per_batch": 64, "every_steps": 150})
    node, batches = HeadNode(SETTINGS, 0), synthetic.TaskBatches(data, 0)
    training = Training(max_steps=max_steps, learning_rate=3e-3, checkpoint_steps=100)
    return node.trained(
        carry_out(Job(node, training, batches), fs.LocalFileSystem(), str(folder), lambda *_: None).weights
    )


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    head = trained(2, tmp_path)
    head.save(tmp_path / "head")
    again = ReasoningHead.load(tmp_path / "head")
    x, y = synthetic.draw(torch.arange(8), 16, 2, 2, 10.0)
    assert torch.equal(again(x, y), head(x, y))
    assert not any(value.requires_grad for value in again.parameters())


@pytest.mark.slow
def test_it_learns_to_reason_from_examples(tmp_path: Path) -> None:
    found = accuracy(trained(800, tmp_path), BATCHES)
    assert found["bayes"] > 0.9
    assert found["accuracy"] > 0.72
    assert accuracy(ReasoningHead(**SETTINGS).eval(), BATCHES)["accuracy"] < 0.62


def test_another_folder_is_no_head(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="is no reasoning head"):
        ReasoningHead.load(tiny_llama)
