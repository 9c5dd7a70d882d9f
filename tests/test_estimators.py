"""graft's methods as scikit-learn sees them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.datasets import load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import graft
from graft.errors import DataError, ModelError
from graft.models import recipes
from graft.models.heads import shuffled
from graft.models.heads.hybrid import HybridHead
from graft.models.heads.tart import TartHead


@pytest.fixture(scope="module", autouse=True)
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("head")
        HybridHead(4, 16, 1, 2).save(folder)
    return str(folder)


def test_it_is_a_scikit_learn_classifier(head: str) -> None:
    failed = []
    for estimator, check in estimator_checks_generator(graft.TartClassifier(head=head), legacy=True):
        try:
            check(estimator)
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed.append((check.func.__name__, repr(error)[:200]))
    assert not failed


def test_it_works_in_pipelines_and_cross_validation(head: str) -> None:
    x, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), graft.TartClassifier(head=head))
    assert cross_val_score(pipeline, x, y, cv=3, n_jobs=2).mean() > 0.9
    get_reusable_executor().shutdown(wait=True)


def test_texts_go_through_an_encoder(head: str, tiny_bert: Path) -> None:
    texts = ["a moving film", "a dull film", "moving and beautiful", "dull and long"] * 3
    labels = ["good", "bad", "good", "bad"] * 3
    model = graft.TartClassifier(encoder=str(tiny_bert), head=head).fit(texts, labels)
    assert model.classes_.tolist() == ["bad", "good"]
    shares = model.predict_proba(["a moving film", "dull"])
    assert shares.shape == (2, 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert model.score(texts, labels) > 0.9
    for wrong, message in (
        ([*texts[:-1], float("nan")], "row 11 holds nan, no text"),
        ([[text, text] for text in texts], "one column of texts"),
        (texts[:-1], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(wrong, labels)


def test_a_text_that_is_too_long_is_cut_and_counted(head: str, tiny_bert: Path) -> None:
    texts, labels = ["wet " * 500, "dry", "wet", "dry and dry"], ["wet", "dry", "wet", "dry"]
    with pytest.warns(UserWarning, match="1 of 4 texts are cut to 128 tokens"):
        graft.TartClassifier(encoder=str(tiny_bert), head=head).fit(texts, labels)


def test_a_prompt_that_the_encoder_puts_before_texts_needs_room_too(head: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "prompted")
    steps = [{"idx": at, "name": str(at), "path": path} for at, path in enumerate(("", "1_Pooling"))]
    for step, kind in zip(steps, ("Transformer", "Pooling"), strict=True):
        step["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    texts, labels = ["wet " * 500, "dry", "wet", "dry and dry"], ["wet", "dry", "wet", "dry"]
    model = graft.TartClassifier(encoder=str(folder), head=head)
    with pytest.warns(UserWarning, match="1 of 4 texts are cut to 128 tokens"):
        model.fit(texts, labels)
    with pytest.warns(UserWarning, match="2 of 2 texts are cut"):
        both = model.predict_proba(["wet " * 500, "dry, " * 300])
    with pytest.warns(UserWarning, match="1 of 1 texts are cut"):
        alone = model.predict_proba(["dry, " * 300])
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)


MISSING: list[Any] = [
    ["a", None, "b"],
    [0.0, float("nan"), 1.0],
    pd.Series(["a", None, "b"], dtype="string"),
    pd.Series([0, None, 1], dtype="Int64"),
]


@pytest.mark.parametrize("labels", MISSING)
def test_a_row_without_a_label_is_named(labels: Any, head: str, tiny_bert: Path) -> None:
    for encoder, rows in ((None, [[1.0], [2.0], [3.0]]), (str(tiny_bert), ["wet", "dry", "wet"])):
        with pytest.raises(ValueError, match="row 1 has no label"):
            graft.TartClassifier(encoder=encoder, head=head).fit(rows, labels)


def test_no_rows_are_refused_as_scikit_learn_refuses_them(head: str, tiny_bert: Path) -> None:
    model = graft.TartClassifier(encoder=str(tiny_bert), head=head).fit(["wet", "dry"], ["wet", "dry"])
    for ask in (model.predict, model.predict_proba):
        with pytest.raises(ValueError, match="0 samples, while a minimum of 1 is required"):
            ask([])


@pytest.mark.parametrize("constant", [0.1, 0.7, 1e-9, 3e8])
def test_a_constant_column_says_nothing(constant: float, head: str) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)), [0, 1, 0, 1, 0, 1]
    beside = np.column_stack([x, np.full(6, constant)])
    plain = graft.TartClassifier(head=head).fit(x, y).predict_proba(x)
    model = graft.TartClassifier(head=head).fit(beside, y)
    np.testing.assert_allclose(model.predict_proba(beside), plain, atol=1e-6)
    beside[:, 3] *= 1 + 1e-7
    np.testing.assert_allclose(model.predict_proba(beside), plain, atol=1e-3 if constant < 1 else 1)


def test_numbers_that_are_too_large_are_refused(head: str) -> None:
    with pytest.raises(DataError, match="column 1 holds numbers too large"):
        graft.TartClassifier(head=head).fit([[0.0, 1e200], [1.0, -1e200]], [0, 1])


def test_more_than_a_machine_holds_is_refused(head: str) -> None:
    with pytest.raises(DataError, match="are more than a hybrid head reads"):
        graft.TartClassifier(head=head).fit(np.eye(1000), np.arange(1000) // 2)


def test_another_head_under_the_same_name_is_not_asked(head: str, tmp_path: Path) -> None:
    shutil.copytree(head, tmp_path / "head")
    x, y = load_wine(return_X_y=True)
    data = pickle.dumps(graft.TartClassifier(head=str(tmp_path / "head")).fit(x, y))
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        HybridHead(4, 16, 1, 2).save(tmp_path / "head")
    with pytest.raises(ModelError, match="has changed since this classifier was fitted"):
        pickle.loads(data).predict(x)


def test_rows_that_come_sorted_by_label_are_shuffled(tmp_path: Path) -> None:
    """A tart head reads rows in an order, and has never seen one label's rows before all of the other's."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        TartHead(4, 200, 16, 1, 2).save(tmp_path)
    x, y = load_wine(return_X_y=True)
    model = graft.TartClassifier(head=str(tmp_path)).fit(x, y)
    assert np.abs(np.diff(model.labels_)).sum() > 50
    np.testing.assert_allclose(model.memory_ * model.scale_, x[shuffled(len(x), 0)])


def test_a_pickle_holds_rows_and_no_network(head: str) -> None:
    x, y = load_wine(return_X_y=True)
    model: Any = graft.TartClassifier(head=head).fit(x, y)
    data = pickle.dumps(model)
    assert len(data) < 3 * x.nbytes
    np.testing.assert_array_equal(pickle.loads(data).predict_proba(x[:9]), model.predict_proba(x[:9]))


@pytest.mark.skipif(not recipes.is_whole(recipes.SHIPPED / "hybrid"), reason="no head is shipped")
def test_the_shipped_head_is_as_good_as_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = load_wine(return_X_y=True)
    ours = cross_val_score(graft.TartClassifier(), x, y, cv=5, scoring="neg_log_loss").mean()
    plain = make_pipeline(StandardScaler(), LogisticRegression())
    assert ours > cross_val_score(plain, x, y, cv=5, scoring="neg_log_loss").mean() - 0.05
