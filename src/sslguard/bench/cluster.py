"""Cells as jobs of a cluster, through submitit: the same cells, the same files, the same results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sslguard.bench.cells import Pool, Prepare
from sslguard.errors import MissingExtraError, UsageError

CLUSTERS = ("slurm", "local", "debug")


class Jobs(ThreadPoolExecutor):
    """An executor whose calls are jobs; a thread waits for each. A job that is lost ends as the text of its error.

    Args:
        executor: submitit's.
        workers: jobs at a time.
        prepare: called at the start of every job.
    """

    def __init__(self, executor: Any, workers: int, prepare: Prepare) -> None:
        super().__init__(workers)
        self._executor, self._prepare = executor, prepare
        self._jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._waited, fn, *args, **kwargs)

    def _waited(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            job = self._executor.submit(_prepared, self._prepare, fn, *args, **kwargs)
            self._jobs.append(job)
            return job.result()
        except Exception as error:  # killed, out of time, or refused by the cluster
            return f"its job ended without a result: {error}"

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As an executor's; what shall not be waited for is cancelled."""
        if cancel_futures:
            for job in self._jobs:
                with contextlib.suppress(Exception):  # one that has ended
                    job.cancel()
        super().shutdown(wait, cancel_futures=cancel_futures)


def cluster_pool(kind: str, folder: Path, *, partition: str | None = None, minutes: int = 240, gpus: int = 0) -> Pool:
    """What `run_cells` takes as `pool`.

    Args:
        kind: "slurm", "local" for processes that submitit starts here, or "debug" for none.
        folder: submitit's logs and pickles.
        partition: of slurm.
        minutes: limit of a job.
        gpus: of a job.

    Raises:
        UsageError: no such kind.
        MissingExtraError: submitit is not installed.
    """
    if kind not in CLUSTERS:
        raise UsageError(f"cluster must be one of {', '.join(CLUSTERS)}, not {kind!r:.40}")
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError("running on a cluster", "bench") from error
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
