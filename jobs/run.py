"""Carries out one experiment as a job on a cluster: `graft run`, brought along with its own code.

    ray job submit --working-dir . -- python jobs/run.py SPEC.yaml [key.path=value ...] [--storage URI]

The working directory is the repository; the job runs in a copy of it that is thrown away afterwards. Results go to
`--storage`; without it to `~/graft` on the head node, which every node has to share (see cluster/README.md).
Exit codes are those of `graft run`: 0 done, 1 failed, 2 the input is wrong.
"""

import sys
from pathlib import Path

PLATFORM = Path(__file__).resolve().parent.parent / "platform"
if (PLATFORM / "graft").is_dir():
    sys.path.insert(0, str(PLATFORM))

from graft.cli import main  # noqa: E402 -- found by the line above


def carry_out(command: str) -> None:
    """Run `graft COMMAND` with this job's words, and end with its exit code."""
    words = sys.argv[1:]
    if not any(word.split("=")[0] == "--storage" for word in words):
        words += ["--storage", str(Path.home() / "graft")]
        sys.stdout.write(f"results go to {words[-1]} on this node; --storage changes that\n")
    sys.stdout.flush()
    sys.argv[1:] = [command, *words]
    main()


if __name__ == "__main__":
    carry_out("run")
