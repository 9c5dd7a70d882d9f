"""Chain of thought: a frozen model reasons before it answers.

    row, demonstrations ─► reason: "... The answer is" ─► answer        (several times: the majority's)

few_shot   demonstrations show their rationales (Wei et al. 2022, arXiv:2201.11903)
zero_shot  "Let's think step by step." and no demonstration (Kojima et al. 2022, arXiv:2205.11916)
auto       demonstrations are one example of each cluster of questions, with what the model itself has reasoned about
           them, and answered, without any (Auto-CoT, Zhang et al. 2022, arXiv:2210.03493, algorithms 1 and 2)

The answer follows "The answer is" in a second pass, so that labels have probabilities and what was cut short has an
answer too. `samples` draws several chains (self-consistency, Wang et al. 2022, arXiv:2203.11171): the answer of most
of them, where as many say this as that the one that is more probable on average (labels), or was drawn first (text).
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from graft.arrays import answer_columns, matrix
from graft.errors import ModelError, SpecError
from graft.execution import run_node
from graft.graph import Context
from graft.hashing import row_keys
from graft.methods.icl import Complete
from graft.methods.answering import Row
from graft.methods.retrieving import Retrieve, unit
from graft.models.model import Sampling
from graft.seeds import generator
from graft.tasks.templates import Template, concluding, render

Chain = Literal["few_shot", "zero_shot", "auto"]

STEP_BY_STEP = "Let's think step by step."
"""Begins every rationale that no demonstration shows how to begin (Kojima et al. 2022, section 3)."""
MOST_QUESTION_TOKENS = 60
MOST_STEPS = 5
"""Longer questions and rationales make no good demonstrations (Zhang et al. 2022, section 4)."""
MOST_TRIED = 8
"""Questions of a cluster, from its middle on, that the model reasons about until one will do."""
