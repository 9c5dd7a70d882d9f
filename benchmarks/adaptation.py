"""Ways to adapt one small real language model, on text it never saw and on labels.

    python benchmarks/adaptation.py [--storage DIR] [--data DIR] [--model DIR] [--seeds 5] [--out docs/adaptation.md]

The model is a Llama of 260,032 parameters that was trained on tiny stories alone. Two tasks:

- continue a passage of Darwin's books (perplexity of 300 characters, given the 100 before them);
- tell unwanted text messages from wanted ones (log-probability of the words ham and spam).

Every tuned arm has the same examples, the same batches and the same number of steps. Its learning rate is the best of
five on held-out examples of seed 1000; reported are seeds from 0, drawn anew, on a fixed test set. Nothing is chosen
on test rows. A killed command goes on where it stopped: runs are known by their ids.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graft.results.records import Result
from graft.results.tables import Cell, cell_text, summary
from graft.spec import Experiment
from machine import machine

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED = 1000
TRAINING = {"max_steps": 80, "tokens_per_batch": 2048}

TUNED: dict[str, dict[str, Any]] = {
    "full tuning": {"name": "full"},
    "LoRA": {"name": "peft", "adapter": {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"]}},
    "prefix tuning": {"name": "peft", "adapter": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 16}},
    "prompt tuning": {"name": "peft", "adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 16}},
    "IA3": {"name": "peft", "adapter": {"peft_type": "IA3"}},
    "bottleneck, serial": {"name": "adapter", "adapter": {"kind": "serial", "bottleneck": 16}},
    "bottleneck, parallel": {"name": "adapter", "adapter": {"kind": "parallel", "bottleneck": 16}},
}
SHORT = 80
"""So many tokens of a message are shown where five of them must fit the context of 512."""
UNTUNED = {
    "darwin": {"as it is": {"name": "icl", "num_shots": 0}},
    "sms": {
        "majority": {"name": "probe", "classifier": "majority"},
        "probe (logistic)": {"name": "probe", "classifier": "logistic"},
        "probe (knn)": {"name": "probe", "classifier": "knn"},
        "as it is": {"name": "icl", "num_shots": 0},
        f"4 demonstrations, calibrated; texts of {SHORT} tokens": {"name": "icl", "num_shots": 4, "calibrate": True},
    },
}
METRICS = {"darwin": ("perplexity",), "sms": ("accuracy", "balanced_accuracy", "log_loss")}


def main() -> None:
    """Run everything that is not done yet, and write the page."""
    words = argparse.ArgumentParser()
    words.add_argument("--storage", type=Path, default=Path("adaptation"))
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--model", type=Path, default=Path("../shared/models/stories260K"))
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--out", type=Path, default=Path("docs/adaptation.md"))
    given = words.parse_args()
    given.storage.mkdir(parents=True, exist_ok=True)
    tables = [task_table(task, given) for task in ("darwin", "sms")]
    head = (__doc__ or "").strip().partition("\n\n")
    page = ["# Adapting a small language model", head[0], *head[2].partition("\n\n")[2].split("\n\n"), *tables]
    page.append(f"Means and 95 % intervals (t) over seeds. Made by `python benchmarks/adaptation.py` on {machine()}.")
    given.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def task_table(task: str, given: argparse.Namespace) -> str:
    """All arms of a task, best first by its first metric, as a section of the page."""
    section = {"darwin": darwin, "sms": sms}[task](given)
    found: dict[str, list[Result]] = {}
    rates: dict[str, float] = {}
    for arm, method in TUNED.items():
        rates[arm] = best_rate(task, section, method, given)
        for seed in range(given.seeds):
            found.setdefault(arm, []).append(run(task, section, method, seed, given, learning_rate=rates[arm]))
    for arm, method in UNTUNED[task].items():
        for seed in range(given.seeds):
            found.setdefault(arm, []).append(run(task, section, method, seed, given))
    return as_markdown(task, found, rates, given.seeds)


def best_rate(task: str, section: dict[str, Any], method: dict[str, Any], given: argparse.Namespace) -> float:
    """The learning rate with the lowest loss on held-out examples of the tuning seed."""
    losses = {}
    for rate in RATES:
        steps = TRAINING["max_steps"]
        result = run(task, section, method, TUNING_SEED, given, learning_rate=rate, validate_every_steps=steps)
        points = pq.read_table(Path(result.folder) / "training.parquet")["validation_loss"].drop_null()
        losses[rate] = points[-1].as_py()
        print(f"{task} {method} learning_rate={rate:g}: held-out loss {losses[rate]:.4g}", flush=True)
    return min(losses, key=losses.__getitem__)


def run(
    task: str, section: dict[str, Any], method: dict[str, Any], seed: int, given: argparse.Namespace, **training: Any
) -> Result:
    """One run, or its result where it was done before."""
    role = "encoder" if method["name"] == "probe" else "base"
    section = {**section, "max_tokens": SHORT} if method.get("num_shots") else section
    values = {
        "name": f"{task}-{method['name']}",
        "models": {role: {"source": str(given.model)}},
        "task": section,
        "regime": {"examples": 512 if task == "darwin" else 256, "seed": seed},
        "method": {**method, "max_new_tokens": 1} if task == "darwin" else method,
        "training": {**TRAINING, **training, "seed": seed},
    }
    result = Experiment.from_mapping(values).run(given.storage)
    print(result.run_id, {name: round(value, 4) for name, value in result.values.items()}, flush=True)
    return result


def darwin(given: argparse.Namespace) -> dict[str, Any]:
    """Passages: 100 characters to read, about 300 to write; books of the test set are no books of the training set."""
    texts = pq.read_table(given.data / "gutenberg_darwin.parquet")["text"].to_pylist()
    held = len(texts) * 4 // 5
    for name, several, limit in (("train", texts[:held], 4000), ("test", texts[held:], 400)):
        pieces = [piece for text in several for piece in textwrap.wrap(text, 400)[1:-1]]
        pieces = pieces[:: max(1, len(pieces) // limit)][:limit]
        split = [piece.find(" ", 100) for piece in pieces]
        rows = [(p[:at], p[at + 1 :]) for p, at in zip(pieces, split, strict=True) if 0 < at < len(p) - 100]
        table = pa.table({"beginning": [a for a, _ in rows], "rest": [b for _, b in rows]})
        pq.write_table(table, given.storage / f"darwin-{name}.parquet")
    files = {name: str(given.storage / f"darwin-{name}.parquet") for name in ("train", "test")}
    return {"name": "file", **files, "text": "beginning", "target": "rest", "template": "{beginning} {target}"}


def sms(given: argparse.Namespace) -> dict[str, Any]:
    """Messages with their labels; long ones are cut."""
    path = str(given.data / "sms_spam.parquet")
    return {"name": "file", "path": path, "text": "text", "label": "label", "max_tokens": 200}


def as_markdown(task: str, found: dict[str, list[Result]], rates: dict[str, float], seeds: int) -> str:
    """A table with means and 95 % intervals over seeds."""
    cells = {
        (arm, metric): summary(pa.concat_tables([result.metrics for result in results]), metric)[0]
        for arm, results in found.items()
        for metric in METRICS[task]
    }
    first = METRICS[task][0]
    order = sorted(found, key=lambda arm: _mean(cells[arm, first]), reverse=first == "accuracy")
    about = found[order[0]][0].metrics
    lines = [
        f"## {task}: {about['examples'][0]} examples, {about['n'][0]} test rows, {seeds} seeds",
        "",
        "| | " + " | ".join(METRICS[task]) + " | trained parameters | learning rate |",
        "|---|" + "---|" * (len(METRICS[task]) + 2),
    ]
    for arm in order:
        metrics = found[arm][0].metrics
        rate = f"{rates[arm]:g}" if arm in rates else "–"
        values = " | ".join(cell_text(cells[arm, metric], seeds) for metric in METRICS[task])
        lines.append(f"| {arm} | {values} | {metrics['parameters_trainable'][0].as_py():,} | {rate} |")
    return "\n".join(lines)


def _mean(cell: Cell) -> float:
    assert cell.interval is not None  # a failed run has raised
    return cell.interval.mean


if __name__ == "__main__":
    main()
