"""Arrow columns as numpy arrays, and back: vectors, and a classifier's answers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [N, D] as a column of N float32 vectors."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of N vectors of one width as a float32 matrix [N, D]."""
    rows = column.combine_chunks()
    return np.asarray(rows.flatten(), dtype=np.float32).reshape(len(rows), -1)


def answer_columns(log_probabilities: np.ndarray, labels: Sequence[str]) -> pa.Table:
    """Columns `prediction` and `scores` (struct of label to log-probability) from log-probabilities [N, C].

    Among labels that are equally probable the first one is the prediction.
    """
    best = log_probabilities.argmax(axis=1)
    columns = [pa.array(log_probabilities[:, c], pa.float64()) for c in range(len(labels))]
    return pa.table(
        {
            "prediction": pa.array([labels[c] for c in best], pa.string()),
            "scores": pa.StructArray.from_arrays(columns, names=list(labels)),
        }
    )


def score_matrix(scores: pa.ChunkedArray, labels: Sequence[str]) -> np.ndarray:
    """A `scores` column as log-probabilities [N, C], a column per label."""
    rows = scores.combine_chunks()
    return np.stack([np.asarray(rows.field(label)) for label in labels], axis=1)
