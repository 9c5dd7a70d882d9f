"""What writing each rationale once saves, and how fast a teacher writes.

    python benchmarks/fiat.py [--quick] [--rows ROWS] [--data flan_cot.parquet]

ladder    ten runs that read a teacher's text (five switches, two seeds) on one store, against the same runs when each
          asks the teacher for its test rows, and for its examples in every epoch, as a script without a store does
teacher   rationales with four exemplars: graft's batches, in which rows of similar length go together and the exemplars
          are read once, against transformers' `generate` prompt by prompt; the texts are compared, too

The student is graft-nano. The teacher of the ladder is a Llama with random weights of ten times its parameters: FIAT's
teacher is the larger model, and what it says changes no cost. The rows are of flan_cot (its own questions and
rationales), or made up where that file is not there. Both sides of each part run in one process; ratios are of one run.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from graft import models, planning, runner
from graft.execution import run_node
from graft.models import prefixes
from graft.spec import Experiment
from graft.storage import open_storage
from machine import machine

NANO = "recipe:graft-nano"
SOURCE = "sensemaking"
"""Of flan_cot's tasks the one with the shortest texts."""
SWITCHES: tuple[dict[str, Any], ...] = (
    {},
    {"instruction": False},
    {"rationale": "answer_only"},
    {"rationale": "corrupted", "corruption_rate": 0.3},
    {"rationale": "corrupted", "corruption_rate": 0.6},
)
SEEDS = 2
TOKENS = 1024
"""Of a batch."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows: that it runs, not what it gives")
    parser.add_argument("--rows", type=int, default=64, help="rows that the teacher explains in part `teacher`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/flan_cot.parquet"))
    parser.add_argument("--skip", choices=("ladder", "teacher"), action="append", default=[])
    options = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(rows(options.data), path)
        if "ladder" not in options.skip:
            ladder(str(larger(Path(folder))), path, 8 if options.quick else 16, 4 if options.quick else 10)
        if "teacher" not in options.skip:
            teacher(path, 8 if options.quick else options.rows, 1 if options.quick else 3)


def rows(data: Path) -> pa.Table:
    """Questions with answers and rationales."""
    if data.exists():
        table = pq.read_table(data)
        kept = table.filter(pa.array([source == SOURCE for source in table["source"].to_pylist()]))
        return kept.select(["question", "answer", "rationale"])
    made = [(f"Is {n} even or odd?", "even" if n % 2 == 0 else "odd", f"{n} ends in {n % 10}.") for n in range(4000)]
    return pa.table(dict(zip(("question", "answer", "rationale"), map(list, zip(*made, strict=True)), strict=True)))


def larger(folder: Path) -> Path:
    """A Llama of ten times graft-nano's parameters, with random weights and graft-nano's tokenizer."""
    nano = models.load(NANO)
    config = transformers.LlamaConfig(
        vocab_size=len(nano.tokenizer),
        hidden_size=480,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(config)
    print(f"student {nano.parameters / 1e6:.1f} million parameters, teacher {network.num_parameters() / 1e6:.1f}")
    network.save_pretrained(folder / "larger")
    nano.tokenizer.save_pretrained(folder / "larger")
    return folder / "larger"


def spec(path: Path, method: dict[str, Any], seed: int, examples: int, steps: int, teacher: str = NANO) -> Experiment:
    """A run."""
    return Experiment.from_mapping(
        {
            "name": "ladder",
            # Two handles, so that each counts its own tokens.
            "models": {"teacher": {"source": teacher, "variant": "pretrained"}, "student": {"source": NANO}},
            "task": {
                "name": "file",
                "path": str(path),
                "text": "question",
                "label": "answer",
                "rationale": "rationale",
                "test_examples": examples,
            },
            "regime": {"examples": examples, "seed": seed},
            "method": {"name": "fiat", "max_rationale_tokens": 48, **method},
            "training": {"max_steps": steps, "tokens_per_batch": TOKENS, "seed": seed},
        }
    )


def ladder(source: str, path: Path, examples: int, steps: int) -> None:
    """Print what ten runs cost with a store, and when every run and epoch asks the teacher."""
    specs = [spec(path, switch, seed, examples, steps, source) for seed in range(SEEDS) for switch in SWITCHES]
    sides = {"each rationale once": cost(specs, kept=True), "per run and epoch": cost(specs, kept=False)}
    print(f"\nladder: {len(specs)} runs of {examples} examples and as many test rows, {steps} steps")
    print(f"{'':<22}{'teacher tokens':>16}{'rationales':>12}{'seconds':>10}")
    for side, (tokens, written, seconds) in sides.items():
        print(f"{side:<22}{tokens:>16,}{written:>12,}{seconds:>10.1f}")
    (ours, _, fast), (theirs, _, slow) = sides.values()
    print(f"{'ratio':<22}{theirs / ours:>15.1f}x{'':>12}{slow / fast:>9.1f}x")


def cost(specs: list[Experiment], kept: bool) -> tuple[int, int, float]:
    """Teacher's tokens, rationales that it wrote, and seconds of all runs.

    Args:
        specs: the runs.
        kept: on one store; else each run has its own, and asks about its examples again in every further epoch.
    """
    tokens, written, began = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate(planning.plans(specs)):
            files = open_storage(Path(folder) / ("all" if kept else str(number)))
            store = runner.open_store(files)
            before = plan.models["teacher"].usage.tokens
            result = runner.carry_out(plan, files, store)
            written += store.tallies["teacher_calls"]
            if not kept:
                explain, student = result.graph.nodes
                learned = run_node(explain, plan.examples, store)
                further = (
                    round(
                        specs[number].training.max_steps * TOKENS / sum(student.encode(learned)["tokens"].to_pylist())
                    )
                    - 1
                )
                for _ in range(max(0, further)):
                    explain.run(plan.examples.select(explain.reads))
                    written += plan.examples.num_rows
            tokens += plan.models["teacher"].usage.tokens - before
    return tokens, written, time.perf_counter() - began


def teacher(path: Path, count: int, turns: int) -> None:
    """Print rationales per second, in batches with a common beginning and one by one."""
    plan = planning.plan(spec(path, {}, 0, count, 1))
    explain: Any = plan.graph.nodes[0]
    asked = plan.examples.select(explain.reads)
    sides = {"graft": lambda: explain.run(asked)["rationale"].to_pylist(), "one by one": lambda: singly(explain, asked)}
    found: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, list[str]] = {}
    for turn in range(turns + 1):
        for name, side in sides.items():
            explain.model.prefixes = prefixes.PrefixCaches()  # what the turn before has read is not known
            began = time.perf_counter()
            texts[name] = side()
            if turn:  # the first one warms up
                found[name].append(time.perf_counter() - began)
    same = sum(one == other for one, other in zip(*texts.values(), strict=True))
    prompts = explain._prompts(explain._template(), asked)
    length = statistics.mean(len(explain.model.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    print(f"\nteacher: {count} rationales of at most {explain.max_new_tokens} tokens after {length:.0f}, {turns} turns")
    for name, seconds in found.items():
        print(f"{name:<14}{count / statistics.median(seconds):>10.2f} rationales per s")
    ratios = [slow / fast for fast, slow in zip(*found.values(), strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"{'ratio':<14}{statistics.median(ratios):>9.2f}x ({spread}); {same} of {count} texts are the same")


def singly(explain: Any, asked: pa.Table) -> list[str]:
    """By transformers' own `generate`, prompt by prompt, each up to a blank line."""
    handle = explain.model
    found = []
    for prompt in explain._prompts(explain._template(), asked):
        ids = handle.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            written = handle.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=explain.max_new_tokens,
                stop_strings=["\n\n"],
                tokenizer=handle.tokenizer,
            )
        text = handle.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        found.append(text.partition("\n\n")[0].strip())
    return found


if __name__ == "__main__":
    main()
