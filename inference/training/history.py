"""What a training run recorded, epoch by epoch.

Losses and ELBOs are in nats per datum: the training loss is the mean over the data of the
objective's loss (with the weight beta on the KL while it warms up), the validation ELBO is always
taken at beta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

Array = npt.NDArray[np.float64]
COLUMNS = {
    "loss": ("mean training loss", "nats per datum"),
    "validation_elbo": ("ELBO of the validation data", "nats per datum"),
    "beta": ("weight of the KL", "1"),
    "learning_rate": ("learning rate of the first parameter group", "1"),
    "gradient_norm": ("mean over steps of the gradient's norm before clipping", "nats per datum"),
    "seconds": ("wall-clock time of the epoch, validation included", "s"),
}


class History:
    """One row an epoch; NaN where a quantity was not taken.

    Attributes:
        best_epoch: the epoch of the highest validation ELBO after warm-up; None without one.
        stopped_early: whether patience ran out before the epochs did.
        collapsed: latents that carry nothing in the end, with their KL in nats.
        compile_seconds: what compiling took of the last call's seconds.
        settings: what the run was: objective, seed, batch size, ... and library versions.

    Example:
        >>> history = History()
        >>> history.append(loss=101.5, beta=1.0, learning_rate=1e-3, seconds=2.0)
        >>> history.append(loss=99.25, beta=1.0, learning_rate=1e-3, seconds=2.0)
        >>> history
        History(2 epochs, loss=99.25)
        >>> history.loss
        array([101.5 ,  99.25])
        >>> history.to_xarray().loss.sel(epoch=2).item()
        99.25
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings: dict[str, Any] = dict(settings or {})
        self.best_epoch: int | None = None
        self.stopped_early = False
        self.collapsed: dict[str, float] = {}
        self.compile_seconds = 0.0
        self._columns: dict[str, list[float]] = {name: [] for name in COLUMNS}

    def __len__(self) -> int:
        return len(self._columns["loss"])

    def append(self, **row: float) -> None:
        """Add an epoch. Columns that are not named become NaN."""
        if unknown := row.keys() - COLUMNS.keys():
            raise ValueError(f"row: columns are {sorted(COLUMNS)}, but got {sorted(unknown)}")
        for name, column in self._columns.items():
            column.append(float(row.get(name, np.nan)))

    def _array(self, name: str) -> Array:
        return np.asarray(self._columns[name], dtype=np.float64)

    @property
    def epoch(self) -> npt.NDArray[np.int64]:
        """The epochs' numbers, 1, 2, ...: ``(epochs,)``."""
        return np.arange(1, len(self) + 1)

    @property
    def loss(self) -> Array:
        """Mean training loss of each epoch, nats per datum."""
        return self._array("loss")

    @property
    def validation_elbo(self) -> Array:
        """ELBO of the validation data at beta = 1, nats per datum; NaN without validation."""
        return self._array("validation_elbo")

    @property
    def beta(self) -> Array:
        """Weight of the KL in each epoch."""
        return self._array("beta")

    @property
    def learning_rate(self) -> Array:
        """Learning rate of the first parameter group in each epoch."""
        return self._array("learning_rate")

    @property
    def gradient_norm(self) -> Array:
        """Mean norm of the gradient before clipping, nats per datum."""
        return self._array("gradient_norm")

    @property
    def seconds(self) -> Array:
        """Wall-clock seconds of each epoch, over all the processes that took part in it."""
        return self._array("seconds")

    def to_xarray(self) -> xr.Dataset:
        """A Dataset along ``epoch``, with units, and the settings in its attributes."""
        variables = {
            name: ("epoch", self._array(name), {"long_name": title, "units": unit})
            for name, (title, unit) in COLUMNS.items()
        }
        attrs: dict[str, Any] = {"stopped_early": int(self.stopped_early)}
        if self.best_epoch is not None:
            attrs["best_epoch"] = self.best_epoch
        for name, value in self.settings.items():  # what netCDF can hold
            attrs[name] = value if isinstance(value, int | float | str) else str(value)
        attrs = {k: int(v) if isinstance(v, bool) else v for k, v in attrs.items()}
        return xr.Dataset(variables, coords={"epoch": self.epoch}, attrs=attrs)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` indexed by epoch."""
        return self.to_xarray().to_dataframe()

    def __repr__(self) -> str:
        parts = [f"{len(self)} epoch{'s' if len(self) != 1 else ''}"]
        if len(self):
            parts.append(f"loss={self.loss[-1]:.2f}")
            if not np.isnan(self.validation_elbo[-1]):
                parts.append(f"validation_elbo={self.validation_elbo[-1]:.2f}")
        if self.best_epoch is not None:
            parts.append(f"best_epoch={self.best_epoch}")
        if self.stopped_early:
            parts.append("stopped early")
        if self.collapsed:
            parts.append(f"collapsed: {', '.join(self.collapsed)}")
        return f"History({', '.join(parts)})"

    def state(self) -> dict[str, Any]:
        """Everything, as plain values for a checkpoint."""
        return {
            "settings": self.settings,
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
            "columns": {name: list(column) for name, column in self._columns.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """The history whose :meth:`state` this is."""
        history = cls(state["settings"])
        history.best_epoch = state["best_epoch"]
        history.stopped_early = state["stopped_early"]
        history._columns = {name: list(state["columns"][name]) for name in COLUMNS}
        return history
