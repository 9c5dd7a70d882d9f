"""Graft's training loop beside transformers' Trainer with PEFT, and beside itself with two workers.

    python benchmarks/train.py [--quick] [--repeats 3] [--rows 1000] [--threads 2] [--answers short] [--skip trainer]

Both sides train the same network (a random Llama, float32) on the same tokens for one epoch, in equally many steps of
equally many target tokens, with the same AdamW, schedule and clipping; only answers have a loss. The Trainer runs at
its defaults, and at its best: rows grouped by length, in micro-batches whose size is tried out first. It is spared the
checkpoints that graft writes. Every training is a process of its own, so that its peak of memory is its own, and the
sides take turns, because a machine's pace drifts: medians over the turns, with the range. Each turn has another seed,
so that the range of the held-out losses says how much of a difference is chance.

Answers are long (rationales, from ../shared/data; docstrings' topics where that is absent) or short (those topics).
Two workers are processes on this machine, joined by gloo; their start is not counted. On a GPU: gpu_train.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).resolve().parent
RATIONALES = HERE.parents[1] / "shared" / "data" / "flan_cot.parquet"
LONG = {"name": "file", "path": str(RATIONALES), "text": "question", "target": "rationale"}
SHORT = {"name": "python-docs"}
ROWS_PER_STEP = 8
"""The Trainer's default."""
MICRO_BATCHES = (2, 4, 8)
TRIED_STEPS = 31
"""Of 1,000 rows the Trainer sorts 248 at a time: so many steps see all lengths."""

Found = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn on 160 rows: that it runs, not what it gives")
    parser.add_argument("--repeats", type=int, default=3, help="turns that each side takes")
    parser.add_argument("--rows", type=int, default=1000, help="rows of an epoch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--answers", choices=("long", "short"), default="long", help="which rows")
    parser.add_argument("--skip", choices=("trainer", "workers"), action="append", default=[], help="a half")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.rows = 1, 160
    with tempfile.TemporaryDirectory() as folder:
        task = LONG if options.answers == "long" and RATIONALES.exists() else SHORT
        shared = {"folder": folder, "task": task, "rows": options.rows, "rows_per_step": ROWS_PER_STEP}
        made = ask(options.threads, side="prepare", **shared)
        rows = f"{options.rows} rows of {Path(task.get('path', task['name'])).stem}"
        print(f"Llama of {made['parameters'] / 1e6:.1f} M parameters, float32, {rows}, {machine()}")
        if "trainer" not in options.skip:
            for tuned in ("lora", "full"):
                compare(tuned, shared, options.threads, options.repeats)
        if "workers" not in options.skip:
            for tuned in ("lora", "adapter"):
                join(tuned, {**shared, "rows_per_step": 4 * ROWS_PER_STEP}, options.repeats)


def ask(threads_of_process: int, /, **asked: Any) -> Found:
    """What one process found."""
    done = subprocess.run(
        [sys.executable, str(HERE / "sides.py"), json.dumps(asked)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads_of_process), "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"{asked} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(tuned: str, shared: Found, threads: int, repeats: int) -> None:
    """Print graft beside the Trainer."""
    best = fastest(tuned, shared, threads)
    sides: dict[str, Found] = {
        "graft": {"side": "graft"},
        "Trainer, defaults": {"side": "trainer"},
        f"Trainer, grouped, {best} x {ROWS_PER_STEP // best} rows": {
            "side": "trainer",
            "grouped": True,
            "micro_batch": best,
        },
    }
    turns = [
        {name: ask(threads, tuned=tuned, seed=seed, **side, **shared) for name, side in sides.items()}
        for seed in range(repeats)
    ]
    print(f"\n{tuned}, {threads} threads, {turns[0]['graft']['targets']:,} target tokens, {repeats} turns")
    print(f"{'':<28}{'targets/s':>10}{'graft is':>20}{'CPU only':>10}{'peak, MiB':>11}{'graft is':>10}", end="")
    print(f"{'steps':>7}{'held-out loss':>22}")
    for name in sides:
        line = f"{name:<28}{_middle(_speed(turn[name]) for turn in turns):>10.0f}"
        line += f"{_ratio(turns, name, _speed):>20}{_ratio(turns, name, _speed_of_processor, spread=False):>10}"
        line += f"{_middle(turn[name]['peak_mib'] for turn in turns):>11.0f}"
        line += f"{_ratio(turns, name, lambda found: found['peak_mib'], spread=False):>10}"
        print(line + f"{turns[0][name]['steps']:>7}{_range([turn[name]['loss'] for turn in turns]):>22}")


def fastest(tuned: str, shared: Found, threads: int) -> int:
    """The micro-batch with which the Trainer takes the same rows fastest, the better of two tries each."""
    asked = {**shared, "tuned": tuned, "side": "trainer", "grouped": True, "max_steps": TRIED_STEPS}
    return min(
        MICRO_BATCHES,
        key=lambda rows: min(ask(threads, micro_batch=rows, **asked)["seconds"] for _ in range(2)),
    )


def join(tuned: str, shared: Found, repeats: int) -> None:
    """Print one worker beside two."""
    sides: dict[str, Found] = {
        "1 worker, 1 thread": {},
        "1 worker, 2 threads": {"threads": 2},
        "2 workers, DDP": {"workers": 2},
        "2 workers, FSDP2": {"workers": 2, "strategy": "fsdp"},
    }
    turns = [
        {
            name: ask(side.get("threads", 1), side="workers", tuned=tuned, seed=seed, **side, **shared)
            for name, side in sides.items()
        }
        for seed in range(repeats)
    ]
    alone = next(iter(sides))
    print(f"\n{tuned}, {turns[0][alone]['steps']} steps, {repeats} turns")
    print(f"{'':<28}{'targets/s':>10}{'against 1 thread':>20}{'peak, MiB':>11}{'losses differ by':>18}")
    for name in sides:
        line = f"{name:<28}{_middle(_speed(turn[name]) for turn in turns):>10.0f}"
        line += f"{_ratio([{'graft': turn[name], name: turn[alone]} for turn in turns], name, _speed):>20}"
        line += f"{_middle(turn[name]['peak_mib'] for turn in turns):>11.0f}"
        print(line + f"{max(_difference(turn[alone]['curve'], turn[name]['curve']) for turn in turns):>18.1e}")


def _speed(found: Found) -> float:
    """Target tokens per second."""
    return float(found["targets"] / found["seconds"])


def _speed_of_processor(found: Found) -> float:
    """Target tokens per second that the processor has worked: what others do on the machine counts less."""
    return float(found["targets"] / found["processor_seconds"])


def _ratio(turns: list[dict[str, Found]], name: str, what: Callable[[Found], float], spread: bool = True) -> str:
    """Median and range of graft's figure over another side's, turn by turn."""
    if name == "graft":
        return ""
    ratios = [what(turn["graft"]) / what(turn[name]) for turn in turns]
    return f"{statistics.median(ratios):.2f}x" + (f" ({min(ratios):.2f}-{max(ratios):.2f})" if spread else "")


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _middle(values: Any) -> float:
    return float(statistics.median(values))


def _difference(one: list[float], other: list[float]) -> float:
    """The largest relative one of two loss curves."""
    return max(abs(a - b) / a for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
