"""Small nodes to train in tests; processes that the tests start import them too."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from graft.errors import ModelError


class Recital(nn.Module):
    """A causal model and the loss of what it recites; rows that hold the poisoned token have none."""

    def __init__(self, model: nn.Module, poison: int | None):
        super().__init__()
        self.model, self.poison = model, poison

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        if self.poison is not None and (ids == self.poison).any():
            loss = loss * torch.nan
        return torch.stack([loss])


class LowRank(nn.Module):
    """A frozen linear layer and what is trained beside it."""

    def __init__(self, frozen: nn.Linear, random: torch.Generator):
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(4, frozen.in_features, generator=random) / 8)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.frozen(inputs) + inputs @ self.down.T @ self.up.T


def add_lora(model: nn.Module) -> None:
    random = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj, random)
        layer.mlp.down_proj = LowRank(layer.mlp.down_proj, random)


@dataclasses.dataclass(frozen=True)
class Reciter:
    """Learns rows of token ids by heart, with all of a tiny Llama's weights or with LoRA."""

    folder: str
    lora: bool = False
    poison: int | None = None

    terms = (1.0,)

    def encode(self, rows: pa.Table) -> pa.Table:
        lengths = [len(row) for row in rows["ids"].to_pylist()]
        targets = pa.array([[length - 1] for length in lengths], pa.list_(pa.int32()))
        return pa.table({"length": pa.array(lengths, pa.int32()), "targets": targets, "ids": rows["ids"]})

    def build(self) -> nn.Module:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        if self.lora:
            add_lora(model.requires_grad_(False))
        return Recital(model, self.poison).train()

    def collate(self, encoded: pa.Table) -> dict[str, Tensor]:
        rows = encoded["ids"].to_pylist()
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"ids": ids, "mask": mask}

    def describe(self) -> str:
        return "reciter"

    def fingerprint(self) -> str:
        return f"{self.lora}-{self.poison}"

    def handles(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class Bridged(Reciter):
    """A composed model that recites: an anchor that hears another one of its kind."""

    def build(self) -> nn.Module:
        from transformers import LlamaForCausalLM

        from graft import CalmForCausalLM

        anchor, augmenting = (LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.float32) for _ in range(2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            composed = CalmForCausalLM(anchor, augmenting, [[2, 0], [1, 1]])
        return Recital(composed, self.poison).train()


@dataclasses.dataclass(frozen=True)
class Fragile(Reciter):
    """Fails when it is built in a worker: with an error of graft, with another, or by ending its process."""

    how: str = "known"
    marker: str = ""

    def build(self) -> nn.Module:
        rank = int(os.environ.get("RANK", "0"))
        with Path(self.marker).open("a") as file:
            file.write(f"{rank}\n")
        if rank == 1 and self.how == "known":
            raise ModelError("this model cannot be built here; use another")
        if rank == 1 and self.how == "unknown":
            raise ZeroDivisionError("a bug in a node")
        if rank == 1 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build()


def rows(count: int, poisoned: int | None = None) -> pa.Table:
    """Rows of 4 to 24 ids below 100; token 399 in one of them."""
    random = np.random.default_rng(0)
    ids = [random.integers(3, 100, random.integers(4, 25)).tolist() for _ in range(count)]
    if poisoned is not None:
        ids[poisoned][0] = 399
    return pa.table({"ids": ids})
