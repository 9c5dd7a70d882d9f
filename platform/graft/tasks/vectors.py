"""Small tables of numbers from scikit-learn: the path that needs no encoder.

Each row's `vector` holds the features as scikit-learn gives them, unscaled.
"""

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from graft.spec import Task
from graft.tasks.dataset import Dataset, input_field
from graft.tasks.split import divide


class VectorTask(Task):
    """A classification of vectors that scikit-learn carries; its templates are not used."""

    @property
    def kind(self) -> str:
        """Vectors."""
        return "vector"

    def read(self) -> Dataset:
        """Load the rows that come with scikit-learn, and split them."""
        bunch = self._load()
        vectors = np.ascontiguousarray(bunch.data, np.float32)
        names = [str(name) for name in bunch.target_names]
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        columns = [pa.array(map(str, range(len(vectors))), pa.string()), values, [names[i] for i in bunch.target]]
        schema = [("id", pa.string()), input_field("vector", "vector", values.type), ("target", pa.string())]
        return divide(pa.table(columns, pa.schema(schema)), ("vector",), self.kind, self.test_examples)

    def _load(self) -> Any:
        """The task's scikit-learn Bunch."""
        raise NotImplementedError


class Digits(VectorTask):
    """Handwritten digits of 8 × 8 pixels (1,797 rows, 64 features, 10 labels)."""

    name: Literal["digits"]

    def _load(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()


class Wine(VectorTask):
    """Chemical analyses of wines of three growers (178 rows, 13 features, 3 labels)."""

    name: Literal["wine"]

    def _load(self) -> Any:
        from sklearn.datasets import load_wine

        return load_wine()


class BreastCancer(VectorTask):
    """Measurements of cell nuclei, malignant or benign (569 rows, 30 features, 2 labels)."""

    name: Literal["breast-cancer"]

    def _load(self) -> Any:
        from sklearn.datasets import load_breast_cancer

        return load_breast_cancer()
