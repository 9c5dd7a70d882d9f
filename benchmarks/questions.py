"""Questions whose answers are known before a server is asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import graft
from served import Workload

TOLERANCE = 2e-3
"""Of a probability: a batch's width changes the last digits of what a model computes, and nothing else."""


@dataclass(frozen=True)
class Question:
    """A request and what it must be answered."""

    workload: str
    run_id: str
    path: str
    body: bytes
    expected: Any
    """The text, or label to probability."""


def questions(workloads: Sequence[Workload], storage: Path, number: int) -> list[Question]:
    """As many of each run, answered by its graph in this process."""
    found = []
    for workload in workloads:
        graph = graft.load(workload.run_id, storage)
        bodies = workload.bodies[:number]
        texts = [body["prompt"] if "prompt" in body else body["input"][0] for body in bodies]
        rows = graph.run(pa.table({"text": texts}))
        answers = [(text or "").strip() for text in rows["prediction"].to_pylist()]
        if "scores" in rows.column_names:
            answers = [
                {label: float(np.exp(score)) for label, score in scores.items()}
                for scores in rows["scores"].to_pylist()
            ]
        found += [
            Question(workload.name, workload.run_id, workload.path, json.dumps(body).encode(), answer)
            for body, answer in zip(bodies, answers, strict=True)
        ]
    return found


def is_right(question: Question, content: bytes) -> bool:
    """Whether a response answers this question: the scores tell one text from another where the label does not."""
    try:
        answer = json.loads(content)
        if isinstance(question.expected, str):
            # In process a text ends with its line.
            return bool(answer["choices"][0]["text"].partition("\n")[0].strip() == question.expected)
        (one,) = answer["data"]
        close = [abs(one["scores"][label] - share) <= TOLERANCE for label, share in question.expected.items()]
        best = max(question.expected.values())
        return all(close) and question.expected[one["label"]] >= best - TOLERANCE
    except (ValueError, KeyError, TypeError, IndexError):
        return False
