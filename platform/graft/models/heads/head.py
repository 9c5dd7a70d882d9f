"""What every reasoning module has: sizes, a folder, and weights that nothing but synthetic tasks has set."""

import json
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.numpy import load_file, save_file
from torch import nn


class Head(nn.Module):  # type: ignore[misc]
    """A network between frozen vectors and labels; its settings are the arguments that it was made with."""

    kind: ClassVar[str]

    def __init__(self, **settings: int) -> None:
        super().__init__()
        self.settings = settings

    def save(self, folder: Path) -> None:
        """`config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model_type": f"{self.kind}-head", **self.settings}
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        weights = {name: value.detach().float().cpu().contiguous().numpy() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def read(cls, folder: Path, settings: dict[str, int]) -> Self:
        """What `save` wrote, in evaluation mode without gradients."""
        head = cls(**settings)
        weights = load_file(folder / "model.safetensors")
        head.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return head.eval().requires_grad_(False)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """A layer that gives nothing until it has learned."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
