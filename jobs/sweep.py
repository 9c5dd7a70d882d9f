"""Carries out a sweep as a job on a cluster: `graft sweep`, brought along with its own code.

    ray job submit --working-dir . -- python jobs/sweep.py SPEC.yaml [key.path=value ...] [--storage URI]

Its trials run on every node. What jobs/run.py says of the working directory, the storage and exit codes holds here.
"""

from run import carry_out  # jobs/run.py: the folder of a script is on its path

if __name__ == "__main__":
    carry_out("sweep")
