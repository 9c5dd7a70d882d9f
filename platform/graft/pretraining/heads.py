"""Reasoning modules as the one loop trains them: on tasks drawn where they are trained, nothing travels but seeds.

Tasks are drawn in full precision, whatever the head is trained in: a seed is the same task everywhere.

Shapes: B tasks, N rows of each, C classes, S strengths.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from graft import hashing
from graft.models.heads.head import Head
from graft.models.heads.hybrid import BASE, HybridHead
from graft.models.heads.regressions import Base
from graft.models.heads.tart import TartHead
from graft.pretraining import logistic, mixed
from graft.pretraining.scratch import Scratch

LABELLED = (8, 16, 32, 64, 128, 256)
CLASSES = (2, 5)
"""Sizes of task on which a hybrid head is tested."""


@dataclasses.dataclass(frozen=True)
class HeadNode(Scratch):
    """A head from scratch: its settings are those of the network, beside `kind`.

    Args:
        weight_scale: of the tasks that a `tart` head learns from.
    """

    weight_scale: float = 10.0

    def head(self) -> Head:
        """The network with its first weights."""
        settings = dict(self.settings)
        kind = {"tart": TartHead, "hybrid": HybridHead}[settings.pop("kind")]
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return kind(**settings)

    def build(self) -> nn.Module:
        """The head and its loss."""
        head = self.head().train().requires_grad_(True)
        loss = TartLoss(head, self.weight_scale) if isinstance(head, TartHead) else HybridLoss(head)
        return loss.to(self.device)

    def collate(self, encoded: pa.Table) -> dict[str, Tensor]:
        """Seeds, and sizes that all have in common."""
        sizes = [name for name in encoded.column_names if name not in ("seed", "length", "targets")]
        return {
            "seeds_B": torch.tensor(np.asarray(encoded["seed"], np.int64)),
            **{name: torch.tensor(encoded[name][0].as_py()) for name in sizes},
        }

    def describe(self) -> str:
        """The architecture."""
        return f"{self.settings['kind']}-head({self.settings['layers']} layers, width {self.settings['width']})"

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("head", dict(self.settings), self.weight_scale, self.seed)

    def trained(self, weights: Mapping[str, np.ndarray]) -> Head:
        """The head with the weights of a training."""
        head = self.head()
        own = {name.removeprefix("network."): torch.from_numpy(value) for name, value in weights.items()}
        head.load_state_dict(own)
        return head.eval().requires_grad_(False)


class TartLoss(nn.Module):  # type: ignore[misc]
    """What a head of interleaved points is surprised by, at every point.

    Args:
        head: its parameters are this module's, as `network.NAME`.
        weight_scale: standard deviation of a task's weights.
    """

    def __init__(self, head: TartHead, weight_scale: float) -> None:
        super().__init__()
        self.network, self.weight_scale = head, weight_scale

    def forward(self, seeds_B: Tensor, points: Tensor, dimensions: Tensor) -> Tensor:
        """Sum of the losses (nats), float32 [1]."""
        width = self.network.settings["dimensions"]
        with torch.no_grad(), torch.autocast(seeds_B.device.type, enabled=False):
            x_BND, y_BN = logistic.draw(seeds_B, int(points), int(dimensions), width, self.weight_scale)
        logits_BN = self.network(x_BND, y_BN)
        return nn.functional.binary_cross_entropy_with_logits(logits_BN.float(), y_BN, reduction="sum")[None]


class HybridLoss(nn.Module):  # type: ignore[misc]
    """What a hybrid head is surprised by, at the rows that are not labelled.

    Args:
        head: its parameters are this module's, as `network.NAME`.
    """

    def __init__(self, head: HybridHead) -> None:
        super().__init__()
        self.network = head

    def forward(
        self, seeds_B: Tensor, labelled: Tensor, queries: Tensor, dimensions: Tensor, classes: Tensor
    ) -> Tensor:
        """Sum of the losses (nats), float32 [1]."""
        size = mixed.Size(int(labelled), int(queries), int(dimensions), int(classes))
        with torch.no_grad(), torch.autocast(seeds_B.device.type, enabled=False):
            x_BND, y_BN = mixed.draw(seeds_B, size)
        logits = self.network(x_BND, y_BN[:, : size.labelled], size.classes)
        target = y_BN[:, size.labelled :]
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="sum")[None]


def evaluated(head: Head, batches: logistic.TaskBatches | mixed.MixedBatches) -> dict[str, float]:
    """What a finished head makes of tasks that it never saw, beside strong simple answers to them."""
    if isinstance(batches, mixed.MixedBatches):
        assert isinstance(head, HybridHead)
        return _tested_hybrid(head, batches)
    assert isinstance(head, TartHead)
    return _tested_tart(head, batches)


def _tested_tart(head: TartHead, batches: logistic.TaskBatches, count: int = 512) -> dict[str, float]:
    """Share of right answers for the last tenth of the points of fresh tasks, beside two that know more.

    `bayes` knows the tasks' weights; `logistic` is L2 logistic regression with the prior that the tasks were drawn
    from, fitted to the points before the last tenth.
    """
    from sklearn.linear_model import LogisticRegression

    data, fresh = batches.data, batches.fresh(count, "tested")
    seeds = torch.tensor(np.asarray(fresh["seed"], np.int64))
    last = max(1, data.points // 10)
    right = dict.fromkeys(("accuracy", "bayes", "logistic"), 0.0)
    width = head.settings["dimensions"]
    with torch.inference_mode():
        for part in seeds.split(64):
            x, y = logistic.draw(part, data.points, data.dimensions, width, data.weight_scale)
            right["accuracy"] += float(((head(x, y) > 0).float() == y)[:, -last:].sum())
            weights = logistic.normal(part, data.points * data.dimensions + data.dimensions)[:, -data.dimensions :]
            known = torch.einsum("bnd,bd->bn", x[..., : data.dimensions], weights) > 0
            right["bayes"] += float((known.float() == y)[:, -last:].sum())
            for inputs, labels in zip(x.numpy(), y.numpy(), strict=True):
                plain = LogisticRegression(C=data.weight_scale**2, fit_intercept=False, max_iter=1000)
                # Two tokens of one label cannot be fitted to: such a task says the label that it has seen.
                seen = labels[:-last]
                said = plain.fit(inputs[:-last], seen).predict(inputs[-last:]) if np.ptp(seen) else seen[:1]
                right["logistic"] += float((said == labels[-last:]).sum())
    return {name: share / count / last for name, share in right.items()}


def _tested_hybrid(head: HybridHead, batches: mixed.MixedBatches, count: int = 64) -> dict[str, float]:
    """Accuracy and log-loss (nats) on fresh tasks of twelve sizes, beside the head's own base scores."""
    found: dict[str, float] = {}
    for classes in CLASSES:
        for labelled in LABELLED:
            size = mixed.Size(max(labelled, classes), 128, batches.data.dimensions, classes)
            seeds = torch.tensor(np.asarray(batches.fresh(count, "tested", size)["seed"], np.int64))
            several = [_compared(head, part, size) for part in seeds.split(16)]
            mean = {name: float(np.mean([one[name] for one in several])) for name in several[0]}
            found |= {f"{name}.classes={classes}.labelled={labelled}": value for name, value in mean.items()}
    names = ("accuracy", "base_accuracy", "log_loss", "base_log_loss")
    totals = {
        name: float(np.mean([value for key, value in found.items() if key.startswith(f"{name}.")])) for name in names
    }
    return {**totals, **found}


def _compared(head: HybridHead, seeds_B: Tensor, size: mixed.Size) -> dict[str, float]:
    """The head and the strength that it begins as, on some tasks."""
    x, y = mixed.draw(seeds_B, size)
    known, asked = y[:, : size.labelled], y[:, size.labelled :]
    with torch.inference_mode():
        base = Base.fit(x[:, : size.labelled], known, size.classes, head.settings["components"])
        rows = base.rows(x[:, size.labelled :])
        said = head.answer(rows, known, head.remember(base.labelled, known)).log_softmax(dim=-1)
        plain = rows.scores_BNCS[..., BASE].log_softmax(dim=-1)
    found = {}
    for name, log_p in (("", said), ("base_", plain)):
        found[f"{name}accuracy"] = float((log_p.argmax(dim=-1) == asked).float().mean())
        found[f"{name}log_loss"] = float(-log_p.gather(2, asked[..., None]).mean())
    return found
