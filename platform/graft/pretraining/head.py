"""A reasoning module: a causal transformer that reads labelled points and says the next one's label.

    x_1 y_1 x_2 y_2 ... x_N ─► read in ─► GPT-2 blocks ─► read out, at every x ─► logit of y = 1

Bhatia et al. 2023 (TART, arXiv:2306.07536, section 4.1). It is trained on synthetic tasks alone, and placed behind any
frozen encoder afterwards. A label is written into the first coordinate, as in the authors' code, whose weights fit.
Deviation: the loss is computed from logits.

Shapes: B tasks, N points, D dimensions, T = 2 N positions, W width.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from graft import hashing
from graft.errors import ModelError
from graft.models.folders import read_json
from graft.pretraining import synthetic
from graft.pretraining.scratch import Scratch


class ReasoningHead(nn.Module):  # type: ignore[misc]
    """The network.

    Args:
        dimensions: D of an input.
        points: longest sequence of points.
        width: of a state.
        layers: blocks.
        heads: of attention.
    """

    def __init__(self, dimensions: int, points: int, width: int, layers: int, heads: int) -> None:
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        self.settings = {
            "dimensions": dimensions,
            "points": points,
            "width": width,
            "layers": layers,
            "heads": heads,
        }
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_positions": 2 * points, "n_embd": width, "n_layer": layers, "n_head": heads}
        self.read_in = nn.Linear(dimensions, width)
        # It is given states, never tokens: its table of tokens has one row.
        self.backbone = GPT2Model(GPT2Config(vocab_size=1, bos_token_id=None, eos_token_id=None, **sizes, **dropout))
        self.read_out = nn.Linear(width, 1)

    def forward(self, x_BND: Tensor, y_BN: Tensor) -> Tensor:
        """Logit of y = 1 for every point, given those before it, float [B, N]; a point's own label is not read."""
        label_BND = torch.zeros_like(x_BND)
        label_BND[:, :, 0] = y_BN
        z_BTD = torch.stack([x_BND, label_BND], dim=2).flatten(1, 2)
        states_BTW = self.backbone(inputs_embeds=self.read_in(z_BTD), use_cache=False).last_hidden_state
        return self.read_out(states_BTW[:, ::2])[..., 0]

    def save(self, folder: Path) -> None:
        """`config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model_type": "reasoning-head", **self.settings}
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        weights = {name: value.detach().float().cpu().contiguous().numpy() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote, in evaluation mode without gradients.

        Raises:
            ModelError: it is no reasoning head.
        """
        settings = read_json(folder / "config.json")
        if not isinstance(settings, dict) or settings.pop("model_type", None) != "reasoning-head":
            raise ModelError(
                f"{folder}: is no reasoning head; give a folder that graft pretrain made from such a recipe"
            )
        head = cls(**settings)
        weights = load_file(folder / "model.safetensors")
        head.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return head.eval().requires_grad_(False)


class TaskLoss(nn.Module):  # type: ignore[misc]
    """What a head is surprised by: drawn where it is trained, nothing travels but seeds.

    Args:
        head: its parameters are this module's, as `network.NAME`.
        weight_scale: standard deviation of a task's weights.
    """

    def __init__(self, head: ReasoningHead, weight_scale: float) -> None:
        super().__init__()
        self.network, self.weight_scale = head, weight_scale

    def forward(self, seeds_B: Tensor, points: Tensor, dimensions: Tensor) -> Tensor:
        """Sum of the losses (nats) at every point, float32 [1]."""
        width = self.network.settings["dimensions"]
        with torch.no_grad():
            x_BND, y_BN = synthetic.draw(seeds_B, int(points), int(dimensions), width, self.weight_scale)
        logits_BN = self.network(x_BND, y_BN)
        return nn.functional.binary_cross_entropy_with_logits(logits_BN.float(), y_BN, reduction="sum")[None]


@dataclasses.dataclass(frozen=True)
class HeadNode(Scratch):
    """A head as the one loop trains it: its settings are those of `ReasoningHead`.

    Args:
        weight_scale: of the tasks.
    """

    weight_scale: float = 10.0

    def build(self) -> nn.Module:
        """The head with its first weights, and its loss."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            head = ReasoningHead(**self.settings)
        return TaskLoss(head.train().requires_grad_(True), self.weight_scale).to(self.device)

    def collate(self, encoded: pa.Table) -> dict[str, Tensor]:
        """Seeds, and one size for all."""
        return {
            "seeds_B": torch.tensor(np.asarray(encoded["seed"], np.int64)),
            "points": torch.tensor(encoded["points"][0].as_py()),
            "dimensions": torch.tensor(encoded["dimensions"][0].as_py()),
        }

    def describe(self) -> str:
        """The architecture."""
        return f"reasoning-head({self.settings['layers']} layers, width {self.settings['width']})"

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("reasoning-head", dict(self.settings), self.weight_scale, self.seed)

    def trained(self, weights: Mapping[str, np.ndarray]) -> ReasoningHead:
        """The head with the weights of a training."""
        head = ReasoningHead(**self.settings)
        own = {name.removeprefix("network."): torch.from_numpy(value) for name, value in weights.items()}
        head.load_state_dict(own, strict=False)
        return head.eval().requires_grad_(False)


def accuracy(head: ReasoningHead, batches: synthetic.TaskBatches, count: int = 512) -> dict[str, float]:
    """Share of right answers for the last tenth of the points of fresh tasks; `bayes` is who knows the weights."""
    fresh, data = batches.fresh(count, "tested"), batches.data
    seeds = torch.tensor(np.asarray(fresh["seed"], np.int64))
    last = max(1, data.points // 10)
    right = known = 0.0
    with torch.inference_mode():
        for part in seeds.split(64):
            x, y = synthetic.draw(part, data.points, data.dimensions, data.dimensions, data.weight_scale)
            right += float(((head(x, y) > 0).float() == y)[:, -last:].sum())
            weights = synthetic.normal(part, data.points * data.dimensions + data.dimensions)[:, -data.dimensions :]
            known += float(((torch.einsum("bnd,bd->bn", x, weights) > 0).float() == y)[:, -last:].sum())
    return {"accuracy": right / count / last, "bayes": known / count / last}
