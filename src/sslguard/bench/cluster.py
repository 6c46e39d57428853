"""Run cells as jobs of a cluster, through submitit. Cells, files and results are the same as on one machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sslguard.bench.cells import Pool, Prepare
from sslguard.errors import UsageError, required_by

CLUSTERS = ("slurm", "local", "debug")


class Jobs(ThreadPoolExecutor):
    """An executor that runs each call as a job; one thread waits for each job.

    The result of a job that is lost is the text of its error.
    """

    def __init__(self, executor: Any, workers: int, prepare: Prepare) -> None:
        """Start no job yet.

        Args:
            executor: submitit executor that starts the jobs.
            workers: Largest number of jobs at a time.
            prepare: Called at the start of every job.
        """
        super().__init__(workers)
        self._executor, self._prepare = executor, prepare
        self._jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` as a job and return the future of its result."""
        return super().submit(self._waited, fn, *args, **kwargs)

    def _waited(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            job = self._executor.submit(_prepared, self._prepare, fn, *args, **kwargs)
            self._jobs.append(job)
            return job.result()
        except Exception as error:  # killed, out of time, or refused by the cluster
            return f"The job ended without a result: {error}"

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the executor. With `cancel_futures`, cancel the jobs that are still running, too."""
        if cancel_futures:
            for job in self._jobs:
                with contextlib.suppress(Exception):  # the job has ended already
                    job.cancel()
        super().shutdown(wait, cancel_futures=cancel_futures)


def cluster_pool(kind: str, folder: Path, *, partition: str | None = None, minutes: int = 240, gpus: int = 0) -> Pool:
    """Return the `pool` argument of `run_cells` for a cluster.

    Args:
        kind: "slurm"; "local", for processes that submitit starts on this machine; or "debug", for this process.
        folder: Folder for submitit's logs and pickles.
        partition: Slurm partition; None leaves the choice to slurm.
        minutes: Time limit of a job, in minutes.
        gpus: Number of GPUs of a job.

    Raises:
        UsageError: `kind` is unknown.
        MissingExtraError: submitit is not installed.
    """
    if kind not in CLUSTERS:
        raise UsageError(f"cluster must be one of {', '.join(CLUSTERS)}, not {kind!r:.40}")
    with required_by("running on a cluster", "bench"):
        import submitit
    executor = submitit.AutoExecutor(folder=folder, cluster=kind)
    executor.update_parameters(name="sslguard", timeout_min=minutes, cpus_per_task=1, gpus_per_node=gpus)
    if partition is not None:
        executor.update_parameters(slurm_partition=partition)

    def pool(workers: int, prepare: Prepare) -> Jobs:
        return Jobs(executor, workers, prepare)

    return pool


def _prepared(prepare: Prepare, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    prepare()
    return fn(*args, **kwargs)
