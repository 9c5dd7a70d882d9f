"""Submits a spec to a cluster as a job, follows its log, and ends with the job's own exit code.

    python jobs/submit.py SPEC.yaml [key.path=value ...] [--storage URI] [--address http://HOST:8265]

The repository travels with it, without what .gitignore names. Needs the cluster's token in ~/.ray/auth_token.
"""

import argparse
import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "platform"))

from graft.cluster import use_tokens  # noqa: E402 -- found by the line above
from graft.errors import ClusterError, GraftError, SpecError  # noqa: E402
from graft.spec import Experiment  # noqa: E402
from graft.specfile import read_yaml  # noqa: E402


async def follow(spec: Path, words: list[str], address: str) -> int:
    """Submit, write the log as it comes, and give the exit code of the job's driver."""
    if not address.startswith(("http://", "https://")):
        raise SpecError(f"--address {address}: give the dashboard's, for example http://127.0.0.1:8265")
    if not spec.resolve().is_relative_to(REPO):
        raise SpecError(f"{spec}: a job sees only what lies in {REPO}; move the spec there")
    script = "jobs/pretrain.py"
    if "model" not in read_yaml(spec):
        script = "jobs/sweep.py" if Experiment.from_yaml(spec).sweep else "jobs/run.py"
    entrypoint = shlex.join(["python", script, str(spec.resolve().relative_to(REPO)), *words])
    use_tokens(create=False)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to what its client is told
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # Ray says much of how it packs
    with plain_errors(address):
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(REPO)})
        print(f"{job}: {entrypoint}\ndashboard  {address}/#/jobs/{job}")
        for word in ("logs", "status", "stop"):
            print(f"{word:<10} RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS={address} ray job {word} {job}", flush=True)
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)
        while not (info := client.get_job_info(job)).status.is_terminal():
            await asyncio.sleep(0.5)
    print(f"{job}: {info.status.value}", flush=True)
    return info.driver_exit_code if info.driver_exit_code in range(256) else int(info.status.value != "SUCCEEDED")


@contextmanager
def plain_errors(address: str) -> Iterator[None]:
    """What can go wrong between here and the Jobs API, in one line each."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(f"{address}: refuses the token; copy the cluster's own to ~/.ray/auth_token") from error
    except ConnectionError as error:
        raise ClusterError(f"{address}: no cluster answers here; give its dashboard's with --address") from error
    except (RuntimeError, ValueError, OSError) as error:
        cause = " ".join(str(error).split())[-300:]
        if "exceeds the maximum size" in str(error):
            cause = f"{REPO} is larger than the 512 MiB that may travel; name its large files in .gitignore"
        raise ClusterError(f"{address}: {cause}") from error


def main() -> None:
    """Read the command line; errors are lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("spec", type=Path)
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    asked, words = parser.parse_known_args()
    try:
        sys.exit(asyncio.run(follow(asked.spec, words, asked.address.rstrip("/"))))
    except GraftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)  # the job goes on; the lines above say how to stop it


if __name__ == "__main__":
    main()
