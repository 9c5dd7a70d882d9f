"""What both sides of the training benchmark train: one network, the same rows as tokens, the same settings."""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from graft import planning
from graft.models.loading import quiet
from graft.spec import Experiment
from graft.training.batching import GlobalBatches
from graft.training.states import Job

Row = tuple[list[int], list[int]]
"""Tokens of a prompt and of its answer."""

SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    # Wider than the usual 0.02, as in trained networks: low-rank changes inside must be able to reach the logits.
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A Llama that two cores train in a minute. Its head is 27 % of it: Llama 3.2 1B has 21 %, Qwen 2.5 0.5B 28 %."""

AUGMENTING: dict[str, Any] = {
    **SHAPE,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""A smaller one that it hears: 15 % of its parameters outside of the embeddings, as in CALM's paper."""

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "peft", "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 16}},
    "adapter": {"name": "adapter", "adapter": {"kind": "serial", "bottleneck": 64}},
    "calm": {"name": "calm", "connections": "paper"},
}
LEARNING_RATES = {"full": 1e-3, "lora": 1e-2, "adapter": 1e-2, "calm": 1e-2}


@dataclass(frozen=True)
class Ask:
    """What one process is to do."""

    side: str
    """A key of `sides.SIDES`."""
    folder: str
    """Of the network, which `prepare` makes."""
    task: dict[str, Any]
    """As in a spec."""
    rows: int
    rows_per_step: int
    """On average: graft fills its batches by tokens."""
    tuned: str = "full"
    """What is trained: a key of METHODS."""
    seed: int = 0
    micro_batch: int = 8
    """Rows that the Trainer puts through the network at once."""
    grouped: bool = False
    """Whether the Trainer groups rows by length."""
    max_steps: int = -1
    """Steps after which the Trainer stops; -1 for a whole epoch."""
    strategy: str = "ddp"
    workers: int = 1
    threads: int = 1
    """Of each worker."""

    @classmethod
    def from_json(cls, text: str) -> "Ask":
        """What the benchmark asks of a process, on its command line."""
        return cls(**json.loads(text))

    def experiment(self, **training: Any) -> Experiment:
        """The training as a spec."""
        return Experiment.from_mapping(
            {
                "name": "benchmark",
                "models": {
                    "base": {"source": self.folder},
                    "anchor": {"source": self.folder},
                    "augmenting": {"source": f"{self.folder}/augmenting"},
                },
                "task": {"test_examples": 200, **self.task},
                "regime": {"examples": self.rows},
                "method": METHODS[self.tuned],
                "training": {"seed": self.seed, "learning_rate": LEARNING_RATES[self.tuned], **training},
                "scaling": {"device": "cpu", "strategy": self.strategy},
            }
        )


class Material:
    """A node to train, and rows as tokens."""

    def __init__(self, ask: Ask) -> None:
        """Load the network and encode the rows: neither side's clock runs yet."""
        self.ask = ask
        planned = planning.plan(ask.experiment())
        node: Any = planned.graph.nodes[0]
        self.node = dataclasses.replace(node, seed=ask.seed)
        self.encoded = self.node.encode(planned.examples)
        self.rows = _pairs(self.encoded)
        self.held_out = _pairs(self.node.encode(planned.dataset.test))
        self.network: nn.Module = self.node.model.network

    @property
    def targets(self) -> int:
        """Tokens that an epoch learns."""
        return sum(len(answer) for _, answer in self.rows)

    def job(self) -> Job:
        """One epoch: a budget of tokens that gives no more steps than the Trainer takes."""
        lengths = np.asarray(self.encoded["length"], np.int64)
        most = math.ceil(self.ask.rows / self.ask.rows_per_step)
        tokens = self.ask.rows_per_step * int(lengths.mean())
        while (steps := _steps(GlobalBatches(lengths, tokens, self.ask.seed))) > most:
            tokens += 1
        training = self.ask.experiment(max_steps=steps, tokens_per_batch=tokens).training
        return Job(self.node, training, self.encoded, strategy=self.ask.strategy)

    def held_out_loss(self, network: nn.Module) -> float:
        """Nats per target token of rows that nothing was trained on, one by one, without padding."""
        total, count = 0.0, 0
        network.eval()
        with torch.inference_mode():
            for context, answer in self.held_out:
                logits = network(input_ids=torch.tensor([context + answer[:-1]])).logits[0, len(context) - 1 :]
                total += float(nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
                count += len(answer)
        return total / count


def prepare(ask: Ask) -> dict[str, Any]:
    """Write the network, and a tokenizer made for the task's texts."""
    table = ask.experiment().task.read().train
    texts = [text for name in table.column_names if name != "id" for text in table[name].to_pylist()]
    write_llama(f"{ask.folder}/augmenting", AUGMENTING, texts)
    return {"parameters": write_llama(ask.folder, SHAPE, texts)}


def write_llama(folder: str, shape: dict[str, Any], texts: Iterable[str]) -> int:
    """Write a random Llama with a tokenizer made for some texts; gives how many parameters it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape["vocab_size"],
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(**shape))
    with quiet():
        network.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return int(network.num_parameters())


def _pairs(encoded: Any) -> list[Row]:
    texts = zip(encoded["context"].to_pylist(), encoded["answer"].to_pylist(), strict=True)
    return [(context, answer) for (context,), (answer,) in texts]


def _steps(batches: GlobalBatches) -> int:
    """Batches in an epoch."""
    seen = steps = 0
    while seen < len(batches.lengths):
        seen += len(batches.rows(steps))
        steps += 1
    return steps
