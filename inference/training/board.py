"""Scalars of each epoch for TensorBoard, and nothing where none was asked for."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAGS = {
    "loss": "loss/training, nats per datum",
    "validation_elbo": "ELBO/validation, nats per datum",
    "beta": "schedule/weight of the KL",
    "learning_rate": "schedule/learning rate",
    "gradient_norm": "gradient/norm before clipping",
    "seconds": "time/seconds an epoch",
}


def check_tensorboard(folder: Path) -> None:
    """Find out before any work whether TensorBoard is there, and has a folder.

    Raises:
        ModuleNotFoundError, NotADirectoryError: not so.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"tensorboard: must be a folder, but {folder} is a file")
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tensorboard: needs the package of that name: pip install 'pyrovae[tensorboard]'"
        )


class Board:
    """Writes one row an epoch.

    Args:
        folder: of TensorBoard's event files; it may hold other runs.
        done: epochs that are done. What the folder holds of later ones, from a run that was killed
            and now goes on, TensorBoard is told to forget.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self.folder = folder
        self.purge = done + 1 if done else None
        self.writer: Any = None
        self.failed = False

    def add(self, epoch: int, row: Mapping[str, float]) -> None:
        """Write an epoch. A full disk is a warning, and training goes on without the board."""
        if self.failed:
            return
        try:
            if self.writer is None:  # nothing is left behind by a run that never finishes an epoch
                # which takes seconds to import, and only for those who ask
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
            for name, value in row.items():
                if not math.isnan(value):
                    self.writer.add_scalar(TAGS[name], value, epoch)
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.writer, self.failed = None, True
        warnings.warn(
            f"tensorboard: {self.folder} could not be written ({error}); training goes on without",
            RuntimeWarning,
            stacklevel=3,
        )

    def close(self) -> None:
        """Let go of the files."""
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            self._give_up(error)
