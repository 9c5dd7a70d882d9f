"""Reasoning modules: what they begin as, what they may not depend on, and that what is kept equals what is computed."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from graft.errors import DataError
from graft.models.heads.hybrid import BASE, HybridHead
from graft.models.heads.reasoner import reasoner
from graft.models.heads.regressions import INTERCEPT, STRENGTHS, Axes, Base
from graft.models.heads.tart import TartHead


def task(
    labelled: int, dimensions: int, classes: int, asked: int = 40, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors with a spectrum, a linear rule with noise; every class has a labelled row."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(labelled + asked, dimensions)) / np.sqrt(np.arange(1, dimensions + 1))
    y = (3 * x @ random.normal(size=(dimensions, classes)) + random.gumbel(size=(len(x), classes))).argmax(axis=1)
    y[:classes] = np.arange(classes)
    return x[:labelled], y[:labelled], x[labelled:]


def hybrid(seed: int = 1, components: int = 4) -> Any:
    """One that has learned something, though nothing sensible."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return moved(HybridHead(components, 16, 2, 2))


def moved(head: Any) -> Any:
    for weight in head.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return head.eval().requires_grad_(False)


def tart() -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return moved(TartHead(6, 40, 16, 2, 2))


def fitted(x: np.ndarray, y: np.ndarray, classes: int) -> Base:
    return Base.fit(torch.tensor(x)[None], torch.tensor(y)[None], classes, 4)


def reference(strength: float, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """The same penalty as scikit-learn writes it: its two-class model has half of ours, shared by both classes."""
    c = strength if y.max() > 1 else 2 * strength
    return LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=20_000).fit(x, y)


def as_design(base: Base, x: np.ndarray) -> np.ndarray:
    z = (x - base.axes.centre_B1D[0].numpy()) / float(base.axes.scale_B11)
    return np.pad(z, ((0, 0), (0, 1)), constant_values=INTERCEPT)


@pytest.mark.parametrize(("labelled", "dimensions"), [(30, 80), (60, 12)], ids=["wide", "tall"])
def test_base_scores_are_logistic_regression_on_all_dimensions(labelled: int, dimensions: int) -> None:
    x, y, asked = task(labelled, dimensions, 2)
    base = fitted(x, y, 2)
    said = base.rows(torch.tensor(asked)[None]).scores_BNCS[0].log_softmax(dim=1).numpy()
    for place, strength in enumerate(STRENGTHS):
        model = reference(strength, as_design(base, x), y)
        np.testing.assert_allclose(said[..., place], model.predict_log_proba(as_design(base, asked)), atol=2e-3)


def test_base_scores_of_several_classes_are_close_to_it() -> None:
    x, y, asked = task(60, 40, 4)
    base = fitted(x, y, 4)
    said = base.rows(torch.tensor(asked)[None]).scores_BNCS[0].log_softmax(dim=1).numpy()
    for place, strength in enumerate(STRENGTHS):
        expected = reference(strength, as_design(base, x), y).predict_log_proba(as_design(base, asked))
        assert (said[..., place].argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
        assert np.abs(np.exp(said[..., place]) - np.exp(expected)).max() < 0.12


def test_labelled_rows_are_scored_as_if_they_had_been_left_out() -> None:
    x, y, _ = task(40, 60, 2)
    base = fitted(x, y, 2)
    found = base.labelled.scores_BNCS[0].log_softmax(dim=1).numpy()
    design = as_design(base, x)
    for place, strength in enumerate(STRENGTHS):
        errors = []
        for row in range(0, 40, 4):
            others = np.arange(40) != row
            exact = reference(strength, design[others], y[others]).predict_log_proba(design[[row]])[0]
            errors.append(np.abs(np.exp(found[row, :, place]) - np.exp(exact)).max())
        own = np.exp(reference(strength, design, y).predict_log_proba(design[::4])).max(axis=1)
        assert np.mean(errors) < 0.02
        assert own.mean() > np.exp(found[np.arange(40), y, place]).mean()  # and not as rows that were learned


def test_components_of_few_rows_are_finite_and_shrunk() -> None:
    random = np.random.default_rng(0)
    for rows in (2, 5, 16, 17):
        x = random.normal(size=(rows, 30))
        axes = Axes.fit(torch.tensor(x)[None])
        found = axes.components(axes.along(torch.tensor(random.normal(size=(50, 30)))[None]), 16)
        assert torch.isfinite(found).all()
        assert float(found.abs().max()) < 8
        assert not found[..., rows - 1 :].any()  # the rows span one axis fewer than there are
    same = Axes.fit(torch.ones(1, 5, 3))
    assert not same.components(same.along(torch.ones(1, 4, 3)), 2).any()


def test_an_untrained_head_is_its_base() -> None:
    x, y, asked = task(24, 30, 3)
    head = HybridHead(4, 16, 2, 2).eval().requires_grad_(False)
    base = fitted(x, y, 3).rows(torch.tensor(asked)[None]).scores_BNCS[0, ..., BASE]
    found = reasoner(head, x, y, 3).log_probabilities(asked)
    np.testing.assert_allclose(found, base.log_softmax(dim=1).numpy(), atol=1e-12)


def test_neither_order_nor_names_nor_axes_say_anything_to_a_hybrid_head() -> None:
    x, y, asked = task(24, 30, 3)
    head = hybrid()
    found = reasoner(head, x, y, 3).log_probabilities(asked)
    assert np.ptp(found) > 0.5
    random = np.random.default_rng(0)
    order = random.permutation(24)
    np.testing.assert_allclose(reasoner(head, x[order], y[order], 3).log_probabilities(asked), found, atol=1e-8)
    names = np.array([2, 0, 1])
    renamed = reasoner(head, x, names[y], 3).log_probabilities(asked)
    np.testing.assert_allclose(renamed[:, names], found, atol=1e-8)
    turned = np.linalg.qr(random.normal(size=(30, 30)))[0]
    np.testing.assert_allclose(reasoner(head, x @ turned, y, 3).log_probabilities(asked @ turned), found, atol=1e-7)
    np.testing.assert_allclose(reasoner(head, 7 * x + 3, y, 3).log_probabilities(7 * asked + 3), found, atol=1e-8)


@pytest.mark.parametrize("rows", ["cube", "one-hot", "two", "twice"])
def test_rows_whose_axes_are_equally_long_may_come_in_any_order(rows: str) -> None:
    """Their principal axes have no order and no sign of their own."""
    random = np.random.default_rng(0)
    x = {
        "cube": np.array(list(itertools.product([-1.0, 1.0], repeat=5))),
        "one-hot": np.eye(8),
        "two": random.normal(size=(2, 5)),
        "twice": np.repeat(random.normal(size=(6, 5)), 2, axis=0),
    }[rows]
    y = np.arange(len(x)) % 2
    found = reasoner(hybrid(), x, y, 2).log_probabilities(x[:6])
    for _ in range(5):
        order = random.permutation(len(x))
        np.testing.assert_array_equal(reasoner(hybrid(), x[order], y[order], 2).log_probabilities(x[:6]), found)


def test_labels_of_a_tart_head_may_be_swapped() -> None:
    x, y, asked = task(24, 30, 2)
    found = reasoner(tart(), x, y, 2).log_probabilities(asked)
    swapped = reasoner(tart(), x, 1 - y, 2).log_probabilities(asked)
    np.testing.assert_allclose(swapped[:, ::-1], found, atol=1e-12)


@pytest.mark.parametrize(("make", "classes"), [(hybrid, 2), (hybrid, 5), (tart, 2), (tart, 5)])
def test_what_is_asked_beside_a_row_does_not_matter(make: Any, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, asked = task(30, 20, classes)
    one = reasoner(make(), x, y, classes)
    found = one.log_probabilities(asked)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)
    np.testing.assert_allclose(np.concatenate([one.log_probabilities(row[None]) for row in asked]), found, atol=1e-10)
    monkeypatch.setattr("graft.models.heads.reasoner.QUERIES", 7)
    np.testing.assert_allclose(one.log_probabilities(asked), found, atol=1e-10)
    np.testing.assert_array_equal(
        reasoner(make(), x, y, classes).log_probabilities(asked[:7]), found_of(one, asked[:7])
    )


def found_of(one: Any, asked: np.ndarray) -> np.ndarray:
    return np.asarray(one.log_probabilities(asked))


def test_a_tart_head_with_its_cache_answers_as_without() -> None:
    x, y, asked = task(30, 20, 2)
    head = tart().double()
    axes = Axes.fit(torch.tensor(x)[None])
    inputs = [axes.components(axes.along(torch.tensor(rows)[None]), 6) for rows in (x, asked)]
    labels = torch.tensor(y, dtype=torch.float64)[None]
    kept = head.remember(inputs[0], labels)
    found = head.answer(inputs[1], kept)[0]
    for row in range(len(asked)):
        whole = head(torch.cat([inputs[0], inputs[1][:, [row]]], dim=1), torch.cat([labels, labels[:, :1]], dim=1))
        assert float(found[row]) == pytest.approx(float(whole[0, -1]), abs=1e-9)
    assert torch.equal(head.answer(inputs[1], kept)[0], found)  # answering leaves the cache as it was


def test_a_tart_head_says_how_many_rows_it_reads() -> None:
    x, y, _ = task(40, 10, 2)
    with pytest.raises(DataError, match="reads at most 39 labelled rows, there are 40; give fewer"):
        reasoner(tart(), x, y, 2)


def test_fewer_components_are_another_answer() -> None:
    x, y, asked = task(24, 30, 2)
    for head in (hybrid(), tart()):
        whole = reasoner(head, x, y, 2).log_probabilities(asked)
        some = reasoner(head, x, y, 2, components=2).log_probabilities(asked)
        assert np.abs(whole - some).max() > 1e-4
