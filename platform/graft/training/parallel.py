"""How the processes of one training share its module: one alone, copies (DDP), or shards (FSDP2).

Gradients are summed over the processes for trained parameters only; a frozen one is never sent (DDP), or gathered for
its layer's turn and dropped again (FSDP2). Gloo carries it on CPUs, NCCL on GPUs.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from graft.errors import ModelError


class Parallel:
    """The processes of one training, seen from one of them; every method but `wrap` is called by all alike."""

    def __init__(self, strategy: str, device: torch.device) -> None:
        """Take part in torch's process group, where there is one."""
        self.strategy = strategy
        self.device = device
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.world = dist.get_world_size() if self.together else 1
        self._wrapped: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as this process computes it; its parameters stay reachable by their names in `module`.

        Raises:
            ModelError: it cannot be sharded.
        """
        if self.world == 1:
            return module
        if self.strategy == "fsdp":
            return self._shard(module)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # The copies are equal: built from one seed, then given the first process's trained weights.
        self._wrapped = nn.parallel.DistributedDataParallel(
            module,
            device_ids=ids,
            forward_sync_buffers=False,
            init_sync=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,  # such as an expert that no token of the batch has chosen
        )
        return self._wrapped

    def _shard(self, module: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        try:
            for block in blocks(module):
                fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
        except (AssertionError, ValueError, NotImplementedError) as error:
            raise ModelError(f"scaling.strategy: fsdp cannot shard this model: {error}; use ddp") from error
        return module

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Inside, gradients are kept back where `more` of the same global batch follows."""
        if more and self._wrapped is not None:
            with self._wrapped.no_sync():
                yield
        else:
            yield

    def summed(self, values: Tensor) -> Tensor:
        """The values (float64, on the CPU) added up over all processes."""
        if self.world == 1:
            return values
        here = values.to(self.device)
        dist.all_reduce(here)
        return here.cpu()

    def agreed(self, value: Any) -> Any:
        """What the first process has."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole copies on the CPU, in the first process; nothing in the others."""
        found = {}
        for name, tensor in tensors.items():
            whole = tensor.detach().full_tensor() if _is_sharded(tensor) else tensor.detach()
            if self.first:
                found[name] = whole.contiguous().to("cpu", copy=True)  # as it is sent: in the order of its shape
        return found

    def scatter(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The first process's tensors, in every process, one after the other, on its device."""
        if self.world == 1:
            yield from tensors.items()
            return
        shapes = self.agreed({name: (tuple(value.shape), value.dtype) for name, value in tensors.items()})
        for name, (shape, dtype) in shapes.items():
            value = tensors[name].to(self.device) if self.first else torch.empty(shape, dtype=dtype, device=self.device)
            dist.broadcast(value, src=0)
            yield name, value

    def like(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """A whole tensor, laid out as a parameter of the same shape is."""
        if not _is_sharded(parameter) or whole.shape != parameter.shape:
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of every transformers model inside, by the class names that these models declare."""
    names: set[str] = set()
    for part in module.modules():
        names |= set(getattr(part, "_no_split_modules", None) or ())
    return [part for part in module.modules() if type(part).__name__ in names]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
