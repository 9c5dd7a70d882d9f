"""One side of the training benchmark, in a process of its own; `train.py` starts it with what it asks, as JSON.

Printed, as JSON, is what the training took, and the loss of held-out rows after it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from pyarrow import fs
from torch import nn

from graft.execution import peak_memory_bytes
from graft.training.checkpoints import Checkpoints
from graft.training.loop import Loop
from material import LEARNING_RATES, METHODS, Ask, Material, prepare


def graft(ask: Ask) -> dict[str, Any]:
    """Graft's loop, with its checkpoints."""
    material = Material(ask)
    job = material.job()
    files = fs.LocalFileSystem()
    with tempfile.TemporaryDirectory() as folder, Stopwatch() as watch, Checkpoints(files, folder) as checkpoints:
        loop = Loop(job, checkpoints)
        loop.run()
    assert loop.state.sequences == ask.rows
    return watch.found(material, loop.state.step) | {"loss": material.held_out_loss(loop.inner.called)}


def trainer(ask: Ask) -> dict[str, Any]:
    """Transformers' Trainer, without checkpoints."""
    import datasets
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer

    material = Material(ask)
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [context + answer for context, answer in material.rows],
            "attention_mask": [[1] * len(context + answer) for context, answer in material.rows],
            "labels": [[-100] * len(context) + answer for context, answer in material.rows],
            "length": [len(context + answer) for context, answer in material.rows],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(ask.folder)
    with tempfile.TemporaryDirectory() as folder, Stopwatch() as watch:
        network = _adapted(material.network, ask.tuned)
        collator = DataCollatorForSeq2Seq(tokenizer)
        side = Trainer(network, _arguments(ask, folder), collator, rows, processing_class=tokenizer)
        side.train()
    return watch.found(material, side.state.global_step) | {"loss": material.held_out_loss(network)}


def _adapted(network: nn.Module, tuned: str) -> nn.Module:
    if tuned == "full":
        return network.requires_grad_(True)
    import peft

    fields = {name: value for name, value in METHODS[tuned]["adapter"].items() if name != "peft_type"}
    return peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **fields))


def _arguments(ask: Ask, folder: str) -> Any:
    """The Trainer's defaults, apart from what is asked, what both sides share, and the checkpoints it is spared."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=ask.micro_batch,
        gradient_accumulation_steps=ask.rows_per_step // ask.micro_batch,
        train_sampling_strategy="group_by_length" if ask.grouped else "random",
        num_train_epochs=1,
        max_steps=ask.max_steps,
        learning_rate=LEARNING_RATES[ask.tuned],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=ask.seed,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def workers(ask: Ask) -> dict[str, Any]:
    """Graft's loop in one or several processes; their start is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (ask, folder), ask.workers)
        return dict(json.loads(Path(folder, "found.json").read_text()))


def _work(rank: int, ask: Ask, folder: str) -> None:
    torch.set_num_threads(ask.threads)
    material = Material(ask)
    if ask.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ask.workers)
    loop = Loop(material.job())
    with Stopwatch() as watch:
        loop.run()
    if rank == 0:
        found = watch.found(material, loop.state.step) | {"curve": [point["loss"] for point in loop.state.curve]}
        Path(folder, "found.json").write_text(json.dumps(found))
    if ask.workers > 1:
        dist.destroy_process_group()


class Stopwatch:
    """What a training takes."""

    def __enter__(self) -> Self:
        self.wall, self.processor = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        self.wall, self.processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        self.peak = peak_memory_bytes() / 2**20

    def found(self, material: Material, steps: int) -> dict[str, Any]:
        """As it is printed."""
        return {
            "seconds": self.wall,
            "processor_seconds": self.processor,
            "targets": material.targets,
            "steps": steps,
            "peak_mib": self.peak,
        }


SIDES: dict[str, Callable[[Ask], dict[str, Any]]] = {
    "prepare": prepare,
    "graft": graft,
    "trainer": trainer,
    "workers": workers,
}

if __name__ == "__main__":
    asked = Ask.from_json(sys.argv[1])
    sys.stdout.write(json.dumps(SIDES[asked.side](asked)) + "\n")
