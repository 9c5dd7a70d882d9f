"""Small trainings for the tests of tuned methods: rows of cold and warm words, and how a node is trained on them."""

import dataclasses
import functools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from graft import models, training
from graft.arrays import score_matrix
from graft.graph import Graph
from graft.hashing import digest
from graft.models import loading
from graft.node import Context
from graft.spec import Experiment
from graft.tasks.dataset import Dataset
from graft.training.loop import Loop
from graft.training.states import State

LABELS = ("cold", "warm")
WORDS = {"cold": ["ice", "snow", "frost", "winter"], "warm": ["sun", "summer", "hot", "beach"]}
REASON = {"cold": "it freezes", "warm": "it shines"}

ROLES = ("base", "encoder", "anchor", "augmenting", "teacher", "student")
"""One model in all of them: an anchor hears itself."""
SETTINGS = {
    "max_steps": 8,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "schedule": "constant",
    "tokens_per_batch": 320,
    "checkpoint_steps": 2,
    "checkpoint_seconds": 0,
}
"""Of every training here: two or three batches an epoch, and a learning rate that does not depend on the length."""


def rows(count: int, prefix: str, scrambled: bool = False) -> pa.Table:
    """Rows of either label in turn, with a reason; scrambled, their labels have nothing to do with their texts."""
    draw = random.Random(f"{count}{prefix}")
    truth = [LABELS[place % 2] for place in range(count)]
    texts = [" ".join(draw.choices(WORDS[label], k=draw.randint(1, 4))) for label in truth]
    targets = draw.choices(LABELS, k=count) if scrambled else truth
    reasons = [REASON[label] for label in targets]
    ids = [f"{prefix}{place}" for place in range(count)]
    return pa.table({"id": ids, "text": texts, "target": targets, "rationale": reasons})


TRAIN, TEST = rows(24, "a"), rows(6, "b").drop_columns(["rationale"])


def dataset(train: pa.Table = TRAIN, test: pa.Table = TEST, generation: bool = False) -> Dataset:
    """A classification of the rows, or the writing of their targets."""
    return Dataset(train, test, ("text",), "text", None if generation else LABELS)


def experiment(folder: Path, method: Mapping[str, Any], **settings: Any) -> Experiment:
    """A spec for a model's folder; its task stands for `dataset`."""
    return Experiment.from_mapping(
        {
            "name": "x",
            "models": {role: {"source": str(folder)} for role in ROLES},
            "task": {"name": "python-docs"},
            "regime": {"examples": TRAIN.num_rows, "seed": settings.pop("regime_seed", 0)},
            "method": dict(method),
            "training": {**SETTINGS, **settings},
        }
    )


@dataclasses.dataclass
class Fitted:
    """A graph before and after it was fitted, and how that went."""

    before: Graph
    after: Graph
    handle: Any
    states: list[State]
    """Of its training, where there was one."""
    unchanged: bool
    """The frozen weights beside the trained ones are what they were."""

    @property
    def node(self) -> Any:
        """The last one, which answers."""
        return self.after.nodes[-1]

    @functools.cached_property
    def begun(self) -> Any:
        """The node with what training began with."""
        start = self.node.build()
        own = {name: value.detach().numpy() for name, value in start.named_parameters() if value.requires_grad}
        return self.node.with_trained({name.removeprefix("network."): value for name, value in own.items()})

    def graph_with(self, node: Any) -> Graph:
        """The fitted graph with another last node."""
        return Graph([*self.after.nodes[:-1], node], self.after.inputs)


def fit(
    spec: Experiment,
    data: Dataset | None = None,
    folder: Path | None = None,
    progress: Any = None,
    handles: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit a method's graph; with a folder, its checkpoints lie there and it goes on from them."""
    data = data or dataset()
    handles = handles or dict.fromkeys(ROLES, models.load(spec.models["base"]))
    assert spec.method is not None
    graph = spec.method.graph(spec.task, data, handles)
    states: list[State] = []
    unchanged = []

    def train(node: Any, learned: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        if folder is not None:
            found = training.train(
                node, learned, more, spec, fs.LocalFileSystem(), str(folder), progress or (lambda *_: None)
            )
        else:
            loop = Loop(training.prepare(node, learned, more, spec))
            before = frozen_digest(loop.inner)
            result = loop.run()
            assert result is not None
            found = result
            unchanged.append(frozen_digest(loop.inner) == before)
        states.append(found.state)
        return found.weights

    fitted = graph.fit(data.train, Context(spec, data.labels, train=train))
    return Fitted(graph, fitted, next(iter(handles.values())), states, all(unchanged))


def frozen_digest(module: torch.nn.Module) -> str:
    """Of every weight that is not trained."""
    return digest(*(p.detach().numpy() for _, p in sorted(module.named_parameters()) if not p.requires_grad))


def network_digest(network: torch.nn.Module) -> str:
    """Of every weight and buffer."""
    values = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return digest(*(value.detach().numpy() for _, value in sorted(values.items())))


def scores(graph: Any, asked: pa.Table = TEST) -> np.ndarray:
    """Log-probabilities [N, 2] of the labels."""
    return score_matrix(graph.run(asked)["scores"], LABELS)


def target_loss(node: Any, asked: pa.Table = TRAIN) -> float:
    """Mean loss of the targets' tokens, in nats and without dropout."""
    sums, counts = node.target_log_probabilities(asked)
    return float(-sums.sum() / counts.sum())


def greedy(handle: Any, prompt: str, tokens: int) -> str:
    """What a model writes, by the definition: the most likely token after the whole text, again and again."""
    network, end = handle.network, handle.tokenizer.eos_token_id
    given = handle.continuations([prompt], [" a"])[0][0] if handle.kind == "seq2seq" else handle._rows([prompt])[0]
    start = handle.decoder_start if handle.kind == "seq2seq" else given
    text = list(start)
    for _ in range(tokens):
        read = {"input_ids": given, "decoder_input_ids": text} if handle.kind == "seq2seq" else {"input_ids": text}
        tensors = {name: torch.tensor([ids]) for name, ids in read.items()}
        with torch.no_grad():
            logits = network(**tensors, attention_mask=torch.ones_like(tensors["input_ids"]), use_cache=False).logits
        text.append(int(logits[0, -1].argmax()))
        if text[-1] == end:
            break
    return str(handle.tokenizer.decode(text[len(start) :], skip_special_tokens=True))


def peft_spec(folder: Path, adapter: Mapping[str, Any], **settings: Any) -> Experiment:
    """A spec that trains an adapter of PEFT."""
    return experiment(folder, {"name": "peft", "adapter": adapter}, **{"max_steps": 16, **settings})


def pristine(done: Fitted, folder: Path) -> bool:
    """Whether the shared network is what transformers loads."""
    return network_digest(done.handle.network) == network_digest(loading.open_network(done.handle.kind, folder))


def inputs(done: Fitted, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a network is called with to read these tokens."""
    read = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return read | ({"decoder_input_ids": ids[:, :4]} if done.handle.kind == "seq2seq" else {})


def logits(network: Any, read: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What it answers."""
    with torch.no_grad():
        found: torch.Tensor = network(**read).logits
    return found


def experts(folder: Path, place: Path) -> dict[str, str]:
    """Two trained LORA adapters, by the names that XLORA gives them."""
    found = {}
    for seed in range(2):
        fit(peft_spec(folder, {"peft_type": "LORA", "r": 4}, seed=seed, max_steps=4)).node.save(place / str(seed))
        found[str(seed)] = str(place / str(seed) / "adapter")
    return found
