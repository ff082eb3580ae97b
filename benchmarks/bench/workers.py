"""Who does the jobs: processes of this machine, or the workers of a Dask cluster.

Both take jobs and give back outcomes, in whatever order they end. A process does one job and is
gone, so that one that runs out of memory takes nothing with it; it is forked from a server that has
imported everything, which takes a tenth of a second.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from .folder import Folder
from .jobs import Job, Outcome, do

# imported by others when first used, which would cost every process a second
LATE = ("torch._dynamo", "sklearn.datasets")


class Workers(Protocol):
    """Does jobs: as many at once as ``size`` says."""

    @property
    def size(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start(self, job: Job) -> None:
        """Begin with a job."""

    def wait(self, timeout: float) -> list[tuple[Job, Outcome]]:
        """Jobs that have ended; none where none does in so many seconds."""


class Processes:
    """Processes of this machine, each with its share of the threads.

    Args:
        folder: of the study.
        size: how many at once.
        threads: of each.
    """

    def __init__(self, folder: Folder, size: int, threads: int = 1) -> None:
        self.folder, self.size, self.threads = folder, size, threads
        # a GPU cannot be shared with a fork; this server forks before anything touches one
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *LATE])
        self._running: dict[Connection, tuple[Job, Any, float]] = {}

    def __enter__(self) -> Self:
        return self

    def start(self, job: Job) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_do_and_tell, args=(job, self.folder, self.threads, theirs)
        )
        process.start()
        theirs.close()
        self._running[ours] = job, process, time.perf_counter()

    def wait(self, timeout: float) -> list[tuple[Job, Outcome]]:
        ended = []
        for pipe in wait(list(self._running), timeout):
            assert isinstance(pipe, Connection)
            job, process, start = self._running.pop(pipe)
            try:
                outcome = pipe.recv()
            except EOFError:  # it is gone without a word
                process.join()
                seconds = time.perf_counter() - start
                if process.exitcode == -signal.SIGTERM:  # as a scheduler asks
                    outcome = Outcome("stopped", seconds)
                else:
                    outcome = Outcome("failed", seconds, _death(process, job))
            pipe.close()
            process.join()
            ended.append((job, outcome))
        return ended

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End those that still run; a training saves its state first."""
        for _, process, _ in self._running.values():
            process.terminate()
        for pipe, (_, process, _) in self._running.items():
            process.join(30)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self._running.clear()


def _do_and_tell(job: Job, folder: Folder, threads: int, pipe: Connection) -> None:
    """What a process does. Without its parent nobody waits for it: it saves its state and ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which tells us by TERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome = do(job, folder, threads)
    with contextlib.suppress(BrokenPipeError):  # what was done is in the folder
        pipe.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _death(process: Any, job: Job) -> dict[str, str]:
    code = process.exitcode
    if code == -signal.SIGKILL:
        message = "killed by signal 9: out of memory, it may be"
    elif code < 0:
        message = f"ended by signal {-code} ({signal.Signals(-code).name})"
    else:
        message = f"ended with exit code {code}"
    return {"type": "Died", "message": message, "traceback": "", "where": job.where}


class Cluster:
    """The workers of a Dask cluster.

    Args:
        folder: of the study; every worker must see it under the same path.
        scheduler: the address of its scheduler; None for a cluster on this machine.
        workers: how many, of a cluster on this machine.
        threads: of torch, in each; None leaves them to the workers.
    """

    def __init__(
        self, folder: Folder, scheduler: str | None, workers: int | None, threads: int | None = 1
    ) -> None:
        try:
            import distributed
        except ImportError as error:
            raise ValueError(
                "a cluster needs dask.distributed: pip install 'pyrovae[cluster]'"
            ) from error
        self.folder = Folder(folder.path.resolve())
        self.threads = threads
        self._local = None
        self._futures: dict[Any, Job] = {}
        if scheduler is None:
            self._local = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs=logging.ERROR,
            )
        try:
            self._client = distributed.Client(scheduler or self._local, timeout=30)
        except OSError as error:
            raise OSError(f"scheduler: there is none to be reached at {scheduler}") from error
        threads_each = [one["nthreads"] for one in self._workers().values()]
        if any(count > 1 for count in threads_each):
            self.__exit__(None, None, None)
            raise ValueError(
                "scheduler: its workers should have one thread each (--nthreads 1), for two jobs "
                f"in one process get in each other's way; found {max(threads_each)}"
            )
        self._lost = distributed.scheduler.KilledWorker
        self._gone: tuple[type[BaseException], ...] = (
            asyncio.CancelledError,
            concurrent.futures.CancelledError,
            distributed.comm.core.CommClosedError,
        )

    @staticmethod
    def _lost_scheduler() -> ConnectionError:
        return ConnectionError("the scheduler of the cluster is gone")

    @property
    def size(self) -> int:
        return max(1, len(self._workers()))

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def __enter__(self) -> Self:
        return self

    def start(self, job: Job) -> None:
        # a name of its own: Dask would give back an earlier, perhaps busy, outcome of the same job
        future = self._client.submit(do, job, self.folder, self.threads, pure=False)
        self._futures[future] = job

    def wait(self, timeout: float) -> list[tuple[Job, Outcome]]:
        import distributed

        try:
            done = distributed.wait(
                list(self._futures), timeout=timeout, return_when="FIRST_COMPLETED"
            ).done
        except TimeoutError:
            return []
        except self._gone as error:
            raise self._lost_scheduler() from error
        ended = []
        for future in done:
            job = self._futures.pop(future)
            try:
                outcome = future.result()
            except self._lost as error:  # several workers died of it
                outcome = Outcome(
                    "failed",
                    error={
                        "type": "Died",
                        "message": f"its workers died, of memory it may be: {error}",
                        "traceback": "",
                        "where": job.where,
                    },
                )
            except self._gone as error:
                raise self._lost_scheduler() from error
            ended.append((job, outcome))
        return ended

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for future in self._futures:
            future.cancel()
        self._client.close()
        if self._local is not None:
            self._local.close()


def default_size() -> int:
    """Processes of this machine: one for each core that may be used, or one for a GPU."""
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
