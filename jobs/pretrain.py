"""Trains a model from scratch as a job on a cluster: `graft pretrain`, brought along with its own code.

    ray job submit --working-dir . -- python jobs/pretrain.py SPEC.yaml [key.path=value ...]

The model goes to `$GRAFT_MODELS`; without it to `~/graft/models` on the head node, which every node has to share. What
jobs/run.py says of the working directory and exit codes holds here.
"""

import os
import sys
from pathlib import Path

import run  # jobs/run.py: the folder of a script is on its path

if __name__ == "__main__":
    os.environ.setdefault("GRAFT_MODELS", str(Path.home() / "graft" / "models"))
    sys.argv[1:] = ["pretrain", *sys.argv[1:]]
    run.main()
