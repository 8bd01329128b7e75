"""A command of ours as a Ray job: the same words, run on the cluster, its log followed here."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ServiceError
from cluster.ray_private.environment import cluster_address
from cluster.settings import Settings


def submit(arguments: Sequence[str], settings: Settings) -> int:
    """Submits `firstline <arguments>`, prints its log as it grows, and returns its exit code.

    The cluster is named by FIRSTLINE_RAY_ADDRESS or RAY_ADDRESS; its nodes must see
    FIRSTLINE_HOME and the data files at the same paths.

    Raises:
        ServiceError: no cluster there, or it does not take the job.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    address = cluster_address(settings.ray_address) or "http://127.0.0.1:8265"
    root = str(Path(__file__).resolve().parent.parent)
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=f"python -m cluster.cli {shlex.join(arguments)}",
            runtime_env={"working_dir": root, "env_vars": settings.worker_env()},
        )
    except AuthenticationError:
        raise ServiceError(
            f"{address} asks for a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the token it was started with."
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise ServiceError(
            f"The job was not taken by {address}: {str(error).splitlines()[0]} Start a cluster "
            "with `ray start --head`, or set RAY_ADDRESS to the dashboard of one."
        ) from None
    sys.stderr.write(f"Submitted as {job} to {address}.\n")

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()

    asyncio.run(follow())
    return 0 if client.get_job_status(job) == JobStatus.SUCCEEDED else 1
