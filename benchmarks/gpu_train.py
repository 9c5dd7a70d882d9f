"""Graft's training loop on GPUs: tokens per second, share of their peak, memory.

    python benchmarks/gpu_train.py [--quick] [--steps 20] [--tokens 65536] [--tokens-per-device 16384]

A random Llama of 0.1 and of 1 billion parameters learns random tokens, in rows of 1,024 that are all target: nothing
is saved by skipping padding or the head. Weights are float32 with bfloat16 arithmetic (full) or bfloat16 (LoRA's
frozen ones). One GPU, then all of them with DDP and with FSDP2. Steps are timed after the first five; the copy of the
state that training takes every `checkpoint_steps` is not among them.

Model FLOP utilisation counts 6 operations per parameter and token (forward 2, gradients of activations 2, of weights
2), and 4 where weights are frozen; attention's own and what is computed twice do not count.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from graft import planning
from graft.spec import Experiment
from graft.training.loop import Loop
from graft.training.states import Job
from material import LEARNING_RATES, METHODS, SHAPE, write_llama

VOCABULARY = 32000
LLAMAS: dict[str, dict[str, int]] = {
    "0.1B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}
ROW_TOKENS = 1024
WARM_UP_STEPS = 5
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bfloat16 operations per second, by a part of the GPU's name, as its maker gives them."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """One training on one or several devices."""

    folder: str
    """Of the network."""
    tuned: str
    tokens: int
    tokens_per_device: int
    steps: int
    """Timed."""
    strategy: str = "ddp"
    device: str = "cuda"

    def job(self, rank: int) -> Job:
        """The same rows in every process."""
        device = f"cuda:{rank}" if self.device == "cuda" else self.device
        experiment = Experiment.from_mapping(
            {
                "name": "benchmark",
                "models": {"base": {"source": self.folder}},
                "task": {"name": "python-docs"},
                "method": METHODS[self.tuned],
                "training": {
                    "learning_rate": LEARNING_RATES[self.tuned] / 10,
                    "max_steps": self.steps + WARM_UP_STEPS,
                    "tokens_per_batch": self.tokens,
                    "tokens_per_device": self.tokens_per_device,
                },
                "scaling": {"device": device},
            }
        )
        node: Any = planning.plan(experiment).graph.nodes[0]
        return Job(node, experiment.training, random_rows(self.tokens // ROW_TOKENS), strategy=self.strategy)


def random_rows(count: int) -> pa.Table:
    """Rows as a node encodes them: one token of context, the others are to be learned."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (count, ROW_TOKENS + 1)).tolist()
    return pa.table(
        {
            "context": [[row[:1]] for row in ids],
            "answer": [[row[1:]] for row in ids],
            "length": pa.array([ROW_TOKENS] * count, pa.int32()),
            "targets": [[ROW_TOKENS]] * count,
        }
    )


def work(rank: int, case: Case, world: int, meeting: str) -> None:
    """Train in one of `world` processes; the first writes what it found."""
    on_gpu = case.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    if world > 1:
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
    ends: list[float] = []
    # A step ends with its gradient's norm on the CPU, so that nothing of it is still under way.
    loop = Loop(case.job(rank), watch=lambda _done, _total: ends.append(time.perf_counter()))
    loop.run()
    if rank == 0:
        seconds = (ends[-1] - ends[WARM_UP_STEPS - 1]) / case.steps
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        Path(f"{meeting}.json").write_text(json.dumps({"tokens_per_second": case.tokens / seconds, "peak": peak}))
    if world > 1:
        dist.destroy_process_group()


def measure(case: Case, world: int) -> dict[str, float]:
    """Tokens per second and the first device's peak of memory, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        torch.multiprocessing.spawn(work, (case, world, meeting), world)
        return dict(json.loads(Path(f"{meeting}.json").read_text()))


def placements(devices: int) -> Iterator[tuple[str, str, int]]:
    """Name, strategy and processes."""
    yield "1 GPU", "ddp", 1
    if devices > 1:
        yield f"{devices} GPUs, DDP", "ddp", devices
        yield f"{devices} GPUs, FSDP2", "fsdp", devices


def utilisation(case: Case, parameters: int, tokens_per_second: float, world: int) -> str:
    """Share of the devices' peak, in per cent."""
    name = torch.cuda.get_device_name()
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    if peak is None:
        return "unknown"
    operations = 6 if case.tuned == "full" else 4
    return f"{operations * parameters * tokens_per_second / (world * peak):.1%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small network alone, for five steps")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--tokens", type=int, default=65536, help="of a global batch")
    parser.add_argument("--tokens-per-device", type=int, default=16384, help="put through the network at once")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    devices, name = torch.cuda.device_count(), torch.cuda.get_device_name()
    print(f"{devices} x {name}, batches of {options.tokens:,} tokens, torch {torch.__version__}")
    print(f"{'':<24}{'':<16}{'tokens/s':>12}{'of the peak':>14}{'GiB':>8}")
    steps = WARM_UP_STEPS if options.quick else options.steps
    for size in ["0.1B"] if options.quick else LLAMAS:
        with tempfile.TemporaryDirectory() as folder:
            parameters = write_llama(folder, {**SHAPE, "vocab_size": VOCABULARY, **LLAMAS[size]}, [])
            for tuned, (how, strategy, world) in itertools.product(("full", "lora"), placements(devices)):
                case = Case(folder, tuned, options.tokens, options.tokens_per_device, steps, strategy)
                found = measure(case, world)
                share = utilisation(case, parameters, found["tokens_per_second"], world)
                line = f"{f'Llama {size}, {tuned}':<24}{how:<16}{found['tokens_per_second']:>12,.0f}"
                print(f"{line}{share:>14}{found['peak'] / GIB:>8.1f}")


if __name__ == "__main__":
    main()
