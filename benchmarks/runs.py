"""Run folders: one folder holds one training run and everything that was measured on it.

    run.json                 settings, data set and its fingerprint, versions, command, result
    checkpoint.safetensors   the state of training, from which it goes on exactly
    model.safetensors        the trained model, for `pyrovae.models.load`, where it can be described
    history.csv              one row an epoch
    learning-curve.png
    tensorboard/             event files, where they were asked for
    evidence-*.nc            what `pyrovae evidence` found

A folder that holds anything is never written over: it is gone on with, or another one is chosen.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..inference.files import write_atomically
from ..inference.training.checkpoint import load as load_checkpoint

FORMAT = "pyrovae-run-1"
MAY_DIFFER = ("epochs", "device", "data_folder", "tensorboard")  # when a run goes on


@dataclass(frozen=True)
class Settings:
    """What decides a training run; ``options`` go to the model's factory."""

    data: str = "digits"
    model: str = "vae"
    options: dict[str, Any] = field(default_factory=dict)
    objective: str = "Trace_ELBO"
    objective_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 100
    learning_rate: float = 1e-3
    warm_up: int = 0
    patience: int | None = None
    clip: float | None = None
    schedule: str | None = None
    seed: int = 0
    device: str = "auto"
    binarise: bool = True
    compile: bool = False
    data_folder: str | None = None
    tensorboard: bool = False

    def command(self, output: str | Path) -> str:
        """The command line that makes this run.

        >>> Settings(options={"latent_dim": 16}, epochs=5).command("runs/a")
        'pyrovae train --option latent_dim=16 --epochs 5 --output runs/a'
        """
        words = ["pyrovae", "train"]
        defaults = Settings()
        for one in fields(self):
            value = getattr(self, one.name)
            if value == getattr(defaults, one.name):
                continue
            flag = f"--{one.name.replace('_', '-')}"
            if isinstance(value, dict):
                for key, item in value.items():
                    text = item if isinstance(item, str) else json.dumps(item)
                    words += [flag.removesuffix("s"), f"{key}={text}"]
            elif isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                words += [flag, str(value)]
        return shlex.join([*words, "--output", str(output)])


@dataclass(frozen=True)
class Run:
    """A run folder and what its ``run.json`` says besides the settings.

    Of several processes that train together, one ``writes``.
    """

    path: Path
    settings: Settings
    record: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = True

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning-curve.png"

    @property
    def result(self) -> dict[str, Any] | None:
        """How training ended; None while it has not."""
        return self.record.get("result")

    def epochs_done(self) -> int:
        """Epochs that the checkpoint has behind it; 0 without one.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        return self._progress()[0]

    def position(self) -> str:
        """How far its parameters are trained, for the name of a file.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        if self.result is not None:
            return f"epoch{self.result['epochs']}"
        done, batch = self._progress()
        return f"epoch{done}-batch{batch}" if batch else f"epoch{done}"

    def _progress(self) -> tuple[int, int]:
        """Whole epochs that the checkpoint has behind it, and batches of the next one."""
        if not self.checkpoint.exists():
            return 0, 0
        position = load_checkpoint(self.checkpoint)["position"]
        return int(position["epoch"]) - 1, int(position["batch"])

    def write(self, **record: Any) -> Run:
        """Write ``run.json`` with these entries added; returns the run as it then is."""
        run = replace(self, record={**self.record, **record})
        if not self.writes:
            return run
        content = {
            "format": FORMAT,
            "command": self.settings.command(self.path),
            "settings": asdict(self.settings),
            **run.record,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / "run.json", text.encode())
        return run


def default_output(settings: Settings) -> Path:
    """Where a run goes that is not told where to go.

    >>> default_output(Settings(model="mine.nets:build")).as_posix()
    'runs/digits-mine.nets-build'
    """
    return Path("runs") / re.sub(r"[^\w.-]+", "-", f"{settings.data}-{settings.model}")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, made at once; when nothing of value gets into it, it goes again.

    Raises:
        FileExistsError: it exists and holds something, or is no folder.
        OSError: it cannot be made or written to.
    """
    path = Path(path)
    made = not path.exists()
    if not made and (not path.is_dir() or any(path.iterdir())):
        instead = "choose another --output"
        if (path / "run.json").exists():
            instead += f", or go on: pyrovae train --output {shlex.quote(str(path))} --resume"
        raise FileExistsError(f"output: {path} exists and is never written over; {instead}")
    check_writable(path, make=True)
    try:
        yield path
    except BaseException:
        if _worthless(path):
            for file in path.iterdir():
                file.unlink()
            if made:
                path.rmdir()
        raise


def check_writable(folder: Path, make: bool = False) -> None:
    """Find out, before any work, whether files can be written into a folder.

    Raises:
        OSError: they cannot, or the folder is not there and cannot be made.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"output: cannot write into {folder}: {error.strerror}"
        raise type(error)(error.errno, what) from error


def open_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its ``run.json`` is damaged, or another program's.
    """
    path = Path(path)
    file = path / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"there is no run in {path}: it has no run.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        settings = _read_settings(content)
    except ValueError as error:
        raise ValueError(f"{file} is damaged, or not a run's record: {error}") from error
    rest = {key: content[key] for key in content.keys() - {"format", "command", "settings"}}
    return Run(path, settings, rest)


def _read_settings(content: Any) -> Settings:
    """The settings of a record, which anything may have written."""
    if not isinstance(content, dict):
        raise ValueError(f"it should be a JSON object, but is {content!r:.40}")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format should be {FORMAT}, but is {content.get('format')}")
    for name in ("settings", "dataset", "result"):
        part = content.get(name)
        if not isinstance(part, dict) and (part is not None or name == "settings"):
            raise ValueError(f"its {name} should be a JSON object, but is {part!r:.40}")
    _check_types(content["settings"], get_type_hints(Settings), "settings")
    if content.get("result") is not None:
        _check_types({"epochs": None, **content["result"]}, _RESULT, "result")
    return Settings(**content["settings"])


_RESULT = {
    "finished": str,
    "epochs": int,
    "stopped_early": bool,
    "parameters_of_epoch": int,
    "validation_elbo": float,
    "train_loss": float,
    "seconds": float,
    "unsaved": str | None,
}


def _check_types(part: dict[str, Any], kinds: Mapping[str, Any], name: str) -> None:
    if strange := part.keys() - kinds.keys():
        raise ValueError(f"its {name} hold {', '.join(sorted(strange))}, which are none")
    for key, value in part.items():
        kind = kinds[key]
        kind = get_origin(kind) if get_origin(kind) is dict else kind
        fits = isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind))
        if not fits or (isinstance(value, bool) and kind is not bool):
            wanted = getattr(kind, "__name__", str(kind))
            raise ValueError(f"its {name} should hold {wanted} as {key}, but hold {value!r:.40}")


def going_on(run: Run, given: Mapping[str, Any]) -> Run:
    """The run with what was asked anew on the command line, which may be little.

    Raises:
        ValueError: a setting that must stay as it is differs.
    """
    for name, value in given.items():
        recorded = getattr(run.settings, name)
        if name in MAY_DIFFER:
            continue
        if name in ("options", "objective_options"):  # the record holds the defaults too
            recorded = {key: recorded[key] for key in value if key in recorded}
        if value != recorded:
            raise ValueError(
                f"{run.path} was begun with {name.replace('_', '-')} {recorded!r}, not {value!r}: "
                "a run goes on with its own settings, of which only epochs and device may change"
            )
    changed = {name: value for name, value in given.items() if name in MAY_DIFFER}
    return Run(run.path, Settings(**{**asdict(run.settings), **changed}), run.record)


def _worthless(path: Path) -> bool:
    """Whether a folder holds nothing but the start of a run that never took a step."""
    if {file.name for file in path.iterdir()} - {"run.json", "checkpoint.safetensors"}:
        return False
    checkpoint = path / "checkpoint.safetensors"
    if not checkpoint.exists():
        return True
    position = load_checkpoint(checkpoint)["position"]
    return position["epoch"] == 1 and position["batch"] == 0
