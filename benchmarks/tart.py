"""What TART costs: shared prefixes against a prompt per row, a cached head against recomputing, and a classifier.

    python benchmarks/tart.py [--examples 64] [--queries 1000] [--baseline-queries 20]

The language model has random weights (costs do not depend on them) and a context of 4,096. The reference protocol puts
every row through the model in a prompt of its own, one at a time, as the authors' code does; its labelled rows are all
measured, its queries in part, and the time of the rest is that of those.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from graft import models
from graft.models.heads import open_head
from graft.models.heads.reasoner import reasoner
from graft.models.heads.regressions import Axes
from graft.models.heads.tart import TartHead
from graft.models.in_context import InContext, as_block
from machine import machine


def main() -> None:
    """Measure and print."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--examples", type=int, default=64)
    given.add_argument("--queries", type=int, default=1000)
    given.add_argument("--baseline-queries", type=int, default=20)
    words = given.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        protocols(Path(folder), words.examples, words.queries, words.baseline_queries)
    heads()


def protocols(folder: Path, examples: int, queries: int, some: int) -> None:
    """Tokens, forward passes and seconds of vanilla and loo, both ways."""
    model = random_model(folder)
    random = np.random.default_rng(0)
    words = (__doc__ or "").split()
    texts = [" ".join(random.choice(words, random.integers(12, 18))) for _ in range(examples + queries)]
    blocks = [as_block(model, f"Input: {text}\nLabel: good\n\n", 7, 7 + len(text)) for text in texts]
    shown, asked = blocks[:examples], blocks[examples:]
    ours, theirs = InContext(model, shown), InContext(model, shown, share=False)
    print(f"k = {examples}, {queries} queries, prompt of {ours.prompt_tokens} tokens, {model.parameters:,} parameters")
    print(f"{'':<34}{'tokens':>14}{'passes':>9}{'seconds':>10}")
    slow = measured(model, lambda: theirs.asked(asked[:some]))
    per_query = [value * queries / some for value in slow]
    one = measured(model, theirs.beside)
    leave_one_out = measured(model, lambda: theirs.left_out(True))
    fast = measured(model, lambda: ours.asked(asked))
    rows = {
        "vanilla": (add(one, per_query), {"": add(measured(model, ours.beside), fast)}),
        "loo": (
            add(leave_one_out, per_query),
            {
                ", exact order": add(measured(model, lambda: ours.left_out(True)), fast),
                ", divided": add(measured(model, lambda: ours.left_out(False)), fast),
            },
        ),
    }
    for name, (reference, several) in rows.items():
        show(f"{name}: a prompt per row", reference)
        for way, cost in several.items():
            show(f"{name}: shared{way}", cost)
            show("  ratio", [a / b for a, b in zip(reference, cost, strict=True)])


def heads(k: int = 128, queries: int = 1000, some: int = 20) -> None:
    """Inference of a head of the authors' standard size, and of `hybrid` beside the classifier that it begins as."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(k, 384)), random.integers(0, 2, k)
    asked = random.normal(size=(queries, 384))
    torch.manual_seed(0)
    network = TartHead(dimensions=16, points=258, width=256, layers=12, heads=8).eval().requires_grad_(False)
    one = reasoner(network, x, y, 2)
    axes = Axes.fit(torch.from_numpy(x)[None])
    known, others = (axes.components(axes.along(torch.from_numpy(rows)[None]), 16) for rows in (x, asked))
    both = torch.from_numpy(np.stack([1 - y, y])).double()  # either class is asked for, as the cached one does

    def whole() -> None:
        with torch.inference_mode():
            for row in range(some):
                points = torch.cat([known, others[:, [row]]], dim=1).expand(2, -1, -1)
                network(points, torch.cat([both, both[:, :1]], dim=1))

    slow = seconds(whole) * queries / some
    fast = seconds(lambda: one.log_probabilities(asked))
    print(f"\ntart head, standard size, k = {k}, {queries:,} queries: {slow:.1f} s recomputed, {fast:.2f} s cached")
    print(f"  ratio {slow / fast:.0f}")
    hybrid = open_head("hybrid").network
    ways: dict[str, Callable[[], object]] = {
        "hybrid head": lambda: reasoner(hybrid, x, y, 2).log_probabilities(asked),
        "scikit-learn, C = 1": lambda: LogisticRegression(max_iter=5000).fit(x, y).predict_log_proba(asked),
        "scikit-learn, C by log-loss": lambda: (
            LogisticRegressionCV(Cs=11, scoring="neg_log_loss", max_iter=5000).fit(x, y).predict_log_proba(asked)
        ),
    }
    for way in ways.values():
        way()  # the first call loads what it needs
    took = {name: min(seconds(way) for _ in range(3)) for name, way in ways.items()}
    print(f"fit and {queries:,} answers, k = {k}, 384 dimensions, best of 3:")
    for name, each in took.items():
        print(f"  {name:<30}{each:8.3f} s{took['hybrid head'] / each:8.1f} of them in the head's time")


def random_model(folder: Path) -> models.Model:
    """graft-nano's tokenizer, and a Llama of 4,096 positions."""
    import transformers

    tokenizer = models.load("recipe:graft-nano").tokenizer
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=704,
        max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
    return models.load(str(folder))


def measured(model: models.Model, what: Callable[[], object]) -> list[float]:
    """Tokens, forward passes and seconds."""
    before = model.usage.tokens, model.usage.forward_passes
    took = seconds(what)
    return [model.usage.tokens - before[0], model.usage.forward_passes - before[1], took]


def seconds(what: Callable[[], object]) -> float:
    """That it takes."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def add(one: list[float], other: list[float]) -> list[float]:
    """Costs of both."""
    return [a + b for a, b in zip(one, other, strict=True)]


def show(name: str, cost: list[float]) -> None:
    """Print a line."""
    tokens, passes, took = cost
    print(f"{name:<34}{tokens:>14,.1f}{passes:>9,.1f}{took:>10.2f}")


if __name__ == "__main__":
    main()
