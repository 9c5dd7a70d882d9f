"""CALM's key-value arithmetic (Bansal et al. 2024, arXiv:2401.02412, Table 1) at the size of two cores.

    python benchmarks/key_value.py [--storage key-value] [--page docs/calm.md]

One model knows what thousands of names are worth and cannot add; another adds numbers and has never read a name.
Bridges between them learn from sums of a fifth of the names (and of numbers), and are asked for sums of the other
names: jobs/specs/calm-key-value.yaml. Beside them: each model alone, the same bridges to an augmenting model of random
weights, LoRA of as many parameters on the anchor and on the augmenting model with the same rows and steps, and both
models one after the other. All trained arms have three seeds, which draw the rows, the first weights and the batches;
nothing was selected on the test rows. Two runs at a time, one thread each; what was run before is read.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from graft import models
from graft.results.statistics import mean_interval, wilson
from graft.runner import train_missing
from graft.spec import Experiment
from graft.tasks.key_value import ASKED
from machine import machine

SPEC = Path("jobs/specs/calm-key-value.yaml")
SEEDS = range(3)
KNOWS, ADDS, RANDOM = (f"recipe:key-value-{name}" for name in ("knows", "adds", "random"))
ALONE = ("method={name: icl, num_shots: 0, max_new_tokens: 4}", "regime.examples=1")

FIXED: dict[str, tuple[str, ...]] = {
    "augmenting model alone": (*ALONE, f"models.base.source={KNOWS}"),
    "anchor alone": (*ALONE, f"models.base.source={ADDS}"),
}


def tuned(rank: int, base: str) -> tuple[str, ...]:
    """LoRA in every linear layer."""
    adapter = f"{{peft_type: LORA, r: {rank}, lora_alpha: {2 * rank}, target_modules: all-linear}}"
    return (f"method={{name: peft, adapter: {adapter}, max_new_tokens: 4}}", f"models.base.source={base}")


TRAINED: dict[str, tuple[str, ...]] = {
    "CALM": (),
    "CALM, random augmenting model": (f"models.augmenting.source={RANDOM}",),
    "LoRA on the anchor": tuned(18, ADDS),
    "LoRA on the augmenting model": tuned(36, KNOWS),
}
"""An arm to what it overrides; adapters have as many parameters as the bridges."""
NAMES = {
    "substitute": "KV-SUBS",
    "numbers": "NUM-MATH",
    "solve": "**KV-MATH, names never learned about**",
    "solve-held-in": "KV-MATH, names learned about",
}
BEGIN, END = "<!-- key-value: begin -->", "<!-- key-value: end -->"

Scores = dict[str, np.ndarray]
"""A group of test rows to whether each answer is right."""


def main() -> None:
    """Run what was not run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="key-value", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/calm.md"), help="where the table is written")
    options = parser.parse_args()
    spec = Experiment.from_yaml(SPEC, "sweep=null")
    train_missing([spec, *(Experiment.from_yaml(SPEC, "sweep=null", *words) for words in arms())], shown, None)
    with ThreadPoolExecutor(2) as two:
        fixed = {name: two.submit(run, options.storage, words) for name, words in FIXED.items()}
        trained = {
            name: [two.submit(run, options.storage, (*words, *seeded(seed))) for seed in SEEDS]
            for name, words in TRAINED.items()
        }
        found = {name: [one.result()] for name, one in fixed.items()}
        found |= {name: [one.result() for one in several] for name, several in trained.items()}
    text = page(found, spec)
    print(text)
    before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
    options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def arms() -> list[tuple[str, ...]]:
    """What every arm overrides."""
    return [*FIXED.values(), *TRAINED.values()]


def seeded(seed: int) -> tuple[str, ...]:
    """As a sweep sets it."""
    return (f"regime.seed={seed}", f"training.seed={seed}")


def shown(what: str, done: int, total: int) -> None:
    """How far a training is."""
    print(f"\r{what}: {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def run(storage: str, words: Sequence[str]) -> dict[str, Any]:
    """One run: its answers by group, and what it cost."""
    command = [sys.executable, "-m", "graft.cli", "run", str(SPEC), "sweep=null", *words, "--storage", storage]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    folder = Path(done.stdout.strip().splitlines()[-1].partition(": ")[2])
    print(folder.name, *words, file=sys.stderr, flush=True)
    costs = pq.read_table(folder / "metrics.parquet").to_pylist()[0]
    answers = pq.read_table(folder / "predictions.parquet").to_pylist()
    return {
        "right": {
            group: np.array([row["prediction"] == row["target"] for row in answers if row["group"] == group])
            for group in ASKED
        },
        "parameters": costs["parameters_trainable"],
        "seconds": costs["seconds"],
        "targets": [row["target"] for row in answers if row["group"] == "solve"],
    }


def page(found: Mapping[str, list[dict[str, Any]]], spec: Experiment) -> str:
    """The table, and what was done."""
    lines = [
        f"| exact answers, % | {' | '.join(NAMES[group] for group in ASKED)} | trained | minutes |",
        "|---|" + "---:|" * (len(ASKED) + 2),
    ]
    for name, several in found.items():
        cells = [shared([one["right"][group] for one in several]) for group in ASKED]
        minutes = sum(one["seconds"] for one in several) / 60
        size = f"{several[0]['parameters']:,}" if len(several) > 1 else "0"
        lines.append(f"| {name} | {' | '.join(cells)} | {size} | {minutes:.0f} |")
    lines.append(f"| one after the other | {' | '.join(chained(spec))} | 0 | |")
    first = next(iter(found.values()))[0]
    counts = {NAMES[group].strip("*"): len(first["right"][group]) for group in ASKED}
    commonest = 100 * max(first["targets"].count(one) for one in set(first["targets"])) / len(first["targets"])
    total = sum(one["seconds"] for several in found.values() for one in several) / 60
    training = spec.training
    lines += [
        "",
        f"Test rows: {', '.join(f'{count} of {name}' for name, count in counts.items())}; no expression of them was "
        f"learned. The commonest answer to KV-MATH is right in {commonest:.1f} %. Trained arms: the mean of three "
        "seeds with the 95 % t-interval of that mean; the others: one run, 95 % Wilson intervals. Trained arms took "
        f"{training.max_steps:,} steps of {training.tokens_per_batch:,} tokens from {spec.regime.examples:,} rows. One "
        "after the other: the augmenting model writes the expression in numbers, the anchor reads what it wrote. All "
        f"runs together: {total:.0f} minutes of one thread, two at a time, on {machine()}.",
    ]
    return "\n".join(lines)


def shared(several: list[np.ndarray]) -> str:
    """The share that is right, with its interval: over seeds, or over the rows of one run."""
    if len(several) > 1:
        over = mean_interval([100 * one.mean() for one in several])
        return f"{over.mean:.1f} ± {over.half_width:.1f}"
    own = wilson(int(several[0].sum()), len(several[0]))
    return f"{100 * own.mean:.1f} ({100 * own.low:.1f} to {100 * own.high:.1f})"


def chained(spec: Experiment) -> list[str]:
    """The share of right answers of both models one after the other."""
    knows, adds = models.load(KNOWS, "cpu"), models.load(ADDS, "cpu")
    rows = spec.task.read().test.to_pylist()
    named = [row["expression"].rpartition(" ")[0] for row in rows]
    written = knows.generate([f"{text} ->" for text in named], 8)
    numbers = [
        row["expression"].rpartition(" ")[0] if row["group"] == "numbers" else text.strip()
        for row, text in zip(rows, written, strict=True)
    ]
    sums = adds.generate([f"{text} =" for text in numbers], 4)
    cells = []
    for group in ASKED:
        answers = numbers if group == "substitute" else sums
        right = [a.strip() == row["target"] for row, a in zip(rows, answers, strict=True) if row["group"] == group]
        cells.append(shared([np.array(right)]))
    return cells


if __name__ == "__main__":
    main()
