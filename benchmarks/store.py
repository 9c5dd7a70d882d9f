"""What the column store saves: twelve trials of the quickstart with and without it, in one run.

    python benchmarks/store.py [ROWS]

Each trial is one classifier on one draw of examples; every trial embeds its examples and the test set. Without the
store each pays for that itself; with it the first trial pays and the others read. Prints forward passes (sequences
put through the encoder) and wall-clock of both sides, and their ratios. Both sides start with the encoder loaded.
"""

import sys
import tempfile
import time
from pathlib import Path

from graft import planning, runner
from graft.spec import Experiment
from graft.specfile import read_yaml
from graft.storage import open_storage
from graft.sweeps.axes import expand
from machine import machine

SPEC = Path(__file__).parent.parent / "jobs" / "specs" / "quickstart.yaml"
AXES = {"method.classifier": ["centroid", "logistic"], "regime.examples": [32, 512]}


def trials(test_examples: int) -> list[planning.Plan]:
    """Twelve planned experiments: 2 classifiers x 2 amounts of data x 3 seeds."""
    values = read_yaml(SPEC)
    values["task"]["test_examples"] = test_examples
    values["method"] = {"name": "probe"}
    values["sweep"] = {"axes": AXES, "seeds": 3}
    return planning.plans(expand(Experiment.from_mapping(values)))


def measure(planned: list[planning.Plan], with_store: bool) -> tuple[float, int, int]:
    """Seconds, forward passes and rows read from the store over all trials."""
    with tempfile.TemporaryDirectory() as folder:
        files = open_storage(folder)
        began = time.perf_counter()
        results = [
            runner.carry_out(plan, files, runner.open_store(files) if with_store else None).metrics for plan in planned
        ]
        seconds = time.perf_counter() - began
    passes = sum(table["forward_passes"][0].as_py() for table in results)
    reads = sum(table["store_reads"][0].as_py() for table in results)
    return seconds, passes, reads


def main() -> None:
    """Measure both sides and print them side by side."""
    test_examples = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    planned = trials(test_examples)
    planned[0].models["encoder"].embed(["warm up"])
    kept = measure(planned, with_store=True)
    plain = measure(planned, with_store=False)
    print(f"{len(planned)} trials, {planned[0].dataset.test.num_rows} test rows, {machine()}")
    print(f"{'':<16}{'seconds':>10}{'forward passes':>16}{'rows read':>12}")
    print(f"{'without store':<16}{plain[0]:>10.1f}{plain[1]:>16,}{plain[2]:>12,}")
    print(f"{'with store':<16}{kept[0]:>10.1f}{kept[1]:>16,}{kept[2]:>12,}")
    print(f"{'ratio':<16}{plain[0] / kept[0]:>9.1f}x{plain[1] / kept[1]:>15.1f}x")


if __name__ == "__main__":
    main()
