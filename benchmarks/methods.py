"""Eight methods, three amounts of data, three seeds, six searched settings each: killed three times, and its page.

    python benchmarks/methods.py [--storage methods] [--page docs/methods.html]

The sweep of jobs/specs/compare-methods.yaml is killed (SIGKILL to its driver) when a quarter, a half and three quarters
of its runs are done, and each time the same command goes on. What was run before is read.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

SPEC = Path("jobs/specs/compare-methods.yaml")
KILLED_AT = (0.25, 0.5, 0.75)
PROGRESS = re.compile(r": (\d+) of (\d+) runs done")


def main() -> None:
    """Carry it out, and keep the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="methods", help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/methods.html"), help="where the page is copied to")
    options = parser.parse_args()
    command = [sys.executable, "-m", "graft.cli", "sweep", str(SPEC), "--storage", options.storage]
    began = time.perf_counter()
    report = None
    for share in (*KILLED_AT, None):
        report = carry_out(command, share) or report
        print(f"{(time.perf_counter() - began) / 60:.1f} minutes so far", flush=True)
    assert report is not None
    print(f"{machine()}")
    shutil.copyfile(report, options.page)
    shutil.copyfile(report.with_suffix(".md"), options.page.with_suffix(".md"))


def carry_out(command: list[str], share: float | None) -> Path | None:
    """The page of the sweep; None where it was killed at this share of its runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    report = None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("report: "):
            report = Path(line.removeprefix("report: ").strip())
        if share and (found := PROGRESS.search(line)) and int(found[1]) >= share * int(found[2]):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed after {found[1]} of {found[2]} runs", flush=True)
            return None
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return report


if __name__ == "__main__":
    main()
