"""The processes that ``torchrun`` started this one among.

    torchrun --nproc-per-node 2 -m pyrovae train --data mnist --output runs/mnist

Each process gets this machine's GPU of its own number, if there are GPUs, and talks to the others
by NCCL; on CPUs by Gloo.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import torch
import torch.distributed as processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@contextmanager
def joined(device: str = "auto") -> Iterator[ProcessGroup | None]:
    """The group of all, left again at the end; None where nothing started several.

    Processes but the first show nothing.

    Raises:
        ValueError: there are fewer GPUs here than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "LOCAL_RANK" not in os.environ:
        yield None
        return
    on_gpus = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpus:
        here = int(os.environ["LOCAL_RANK"])
        if here >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun should start at most {torch.cuda.device_count()} processes here, one a "
                f"GPU, or be told --device cpu; this is number {here}"
            )
        torch.cuda.set_device(here)
    # objects and flags of the CPU go by Gloo
    processes.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    try:
        if processes.get_rank() == 0:
            yield processes.group.WORLD
        else:
            with _silent():
                yield processes.group.WORLD
    finally:
        processes.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    """Show no more than a line, of what goes wrong: the first process tells the same at length."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            text = str(error).partition("\n")[0]
            raise ChildProcessError(
                f"process {processes.get_rank()}: {type(error).__name__}: {text}"
            ) from error
