"""Composed models beside the PyPI package CALM-pytorch, plain LoRA, and the models alone.

    pip install 'graft-compose[bench]'
    python benchmarks/calm.py [--quick] [--repeats 5] [--threads 2] [--skip workers]

All sides have networks of equal shapes (random weights, float32), an anchor and a smaller augmenting model, connected
by the paper's rule, and read the same tokens. The package's own networks are x-transformers'; its anchor stays in
training mode, as by default (no dropout on either side). Sides take turns in one process, because a machine's pace
drifts: medians over the turns, with the range of the ratios.

training    a step on rows of 192 prompt and 64 answer tokens, the loss on the answers: forward, backward, AdamW
writing     256 tokens after a prompt of 32, one row; the ideal: both models alone, with caches, their times added
memory      of this process over 1,000 forward passes
workers     graft's loop with one and two processes of one thread each, as in train.py
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
import transformers
from torch import nn

from graft import CalmForCausalLM
from graft.models.calm.connections import paper
from graft.models.objective import NO_TARGET, NextTokenLoss
from machine import machine

VOCABULARY = 16384
ANCHOR = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
SMALL = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
ROWS, PROMPT, ANSWER = 8, 192, 64
WRITTEN, GIVEN = 256, 32
LORA_RANK = 16

Step = Callable[[], Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn, short texts: that it runs, not what it gives")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--skip", choices=("training", "writing", "memory", "workers"), action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    turns, written, passes = (1, 24, 30) if options.quick else (options.repeats, WRITTEN, 1000)
    anchor, augmenting = llama(ANCHOR), llama(SMALL)
    composed = CalmForCausalLM(anchor, augmenting, "paper")
    size = sum(weight.numel() for weight in composed.bridges.parameters())
    print(f"{machine()}, {options.threads} threads, torch {torch.__version__}")
    print(
        f"anchor {anchor.num_parameters() / 1e6:.1f} M, augmenting {augmenting.num_parameters() / 1e6:.1f} M, bridges "
        f"{size / 1e6:.1f} M ({100 * size / anchor.num_parameters():.1f} % of the anchor) at "
        f"{[(one.source, one.target) for one in composed.connections]}"
    )
    if "training" not in options.skip:
        training(composed, turns)
    if "writing" not in options.skip:
        writing(composed, turns, written)
    if "memory" not in options.skip:
        memory(composed, passes)
    if "workers" not in options.skip:
        workers(options.quick, turns)


def llama(shape: dict[str, int]) -> Any:
    """A random Llama; its feed-forward has as many weights as one of four times the width and two matrices."""
    width = shape["hidden_size"]
    config = transformers.LlamaConfig(
        **shape,
        vocab_size=VOCABULARY,
        intermediate_size=width * 8 // 3,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


def package() -> Any:
    """The package's composed model, of networks of the same shapes."""
    from CALM_pytorch import CALM, AugmentParams
    from x_transformers import Decoder, TransformerWrapper

    def network(shape: dict[str, int]) -> Any:
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        layers = Decoder(
            dim=width,
            depth=shape["num_hidden_layers"],
            heads=heads,
            attn_dim_head=width // heads,
            rotary_pos_emb=True,
            attn_flash=True,
        )
        return TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=512, attn_layers=layers, tie_embedding=True)

    pairs = tuple(paper(SMALL["num_hidden_layers"], ANCHOR["num_hidden_layers"]))
    attention = {
        "linear_project_context": True,
        "pre_rmsnorm": True,
        "flash": True,
        "heads": ANCHOR["num_attention_heads"],
        "dim_head": ANCHOR["hidden_size"] // ANCHOR["num_attention_heads"],
    }
    return CALM(network(ANCHOR), AugmentParams(model=network(SMALL), connections=pairs), attn_kwargs=attention)


def lora() -> Any:
    """The anchor alone with an adapter in every linear layer of its attention and feed-forward."""
    import peft

    return peft.get_peft_model(llama(ANCHOR), peft.LoraConfig(r=LORA_RANK, target_modules="all-linear")).train()


def training(composed: CalmForCausalLM, turns: int) -> None:
    """Print steps of training."""
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT + ANSWER))
    labels = ids.clone()
    labels[:, :PROMPT] = NO_TARGET
    batch = {
        "ids_BT": ids[:, :-1],
        "mask_BT": torch.ones_like(ids[:, :-1]),
        "labels_BT": labels[:, 1:],
        "terms_B": torch.zeros(ROWS, dtype=torch.long),
    }
    tuned, other = lora(), package().train()

    def ours(module: nn.Module) -> Step:
        loss = NextTokenLoss(module).train()
        return stepping(module, lambda: loss(**batch).sum() / (ROWS * ANSWER))

    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[:, :PROMPT] = False
    sides = {
        "graft": ours(composed.train()),
        "CALM-pytorch": stepping(other, lambda: other(ids, prompt=ids, mask=keep)),
        "LoRA on the anchor": ours(tuned),
    }
    compare(f"training: {ROWS} rows of {PROMPT} + {ANSWER} tokens", sides, turns, per=1, unit="s per step")
    composed.eval()


def stepping(module: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """A step of training."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def writing(composed: CalmForCausalLM, turns: int, tokens: int) -> None:
    """Print the writing of a text."""
    ids = torch.randint(3, VOCABULARY, (1, GIVEN))
    other = package().eval()
    options = {"max_new_tokens": tokens, "do_sample": False}

    def alone() -> None:
        for network in (composed.anchor, composed.augmenting[0]):
            network.generate(ids, attention_mask=torch.ones_like(ids), **options)

    def quietly() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            other.generate(ids, seq_len=GIVEN + tokens)

    sides = {
        "graft": lambda: composed.generate(ids, attention_mask=torch.ones_like(ids), **options),
        "CALM-pytorch": quietly,
        "both alone, added": alone,
    }
    compare(f"writing: {tokens} tokens after {GIVEN}", sides, turns, per=tokens, unit="tokens per s")


def compare(title: str, sides: dict[str, Step], turns: int, per: int, unit: str) -> None:
    """Print the sides beside the first one."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            if turn:  # the first one warms up
                found[name].append(time.perf_counter() - began)
    first = next(iter(sides))
    print(f"\n{title}, {turns} turns\n{'':<22}{unit:>14}{'graft takes, of its time':>32}")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        ratios = [mine / other for mine, other in zip(found[first], seconds, strict=True)]
        beside = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if name != first else ""
        print(f"{name:<22}{middle if per == 1 else per / middle:>14.3f}{beside:>32}")


def memory(composed: CalmForCausalLM, passes: int) -> None:
    """Print what the process holds while it reads."""
    ids = torch.randint(3, VOCABULARY, (2, 64))
    held = []
    with torch.no_grad():
        for number in range(passes + 50):
            composed(input_ids=ids, use_cache=False)
            if number >= 50:
                held.append(psutil.Process().memory_info().rss / 2**20)
    tenth = max(1, len(held) // 10)
    before, after = statistics.median(held[:tenth]), statistics.median(held[-tenth:])
    print(f"\nmemory: {before:.1f} MiB in the first tenth of {passes:,} passes, {after:.1f} MiB in the last")


def workers(quick: bool, turns: int) -> None:
    """Print one and two processes."""
    import train

    with tempfile.TemporaryDirectory() as folder:
        task = train.LONG if train.RATIONALES.exists() else train.SHORT
        shared = {"folder": folder, "task": task, "rows": 160 if quick else 400, "rows_per_step": 8}
        train.ask(1, side="prepare", **shared)
        train.join("calm", {**shared, "rows_per_step": 4 * train.ROWS_PER_STEP}, min(turns, 3))


if __name__ == "__main__":
    main()
