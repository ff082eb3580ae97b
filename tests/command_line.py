"""What the tests of the command line share: calling it, and reading what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrovae.benchmarks import cli

TESTS = Path(__file__).parent
BITS = ["--data", "cli_toys:bits", "--model", "cli_toys:ours", "--epochs", "2"]


def invoke(*words: str, code: int = 0):
    result = CliRunner().invoke(cli.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def process(*words: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pyrovae.benchmarks", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def told(result, message: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, result.stderr
    assert lines[0].startswith("pyrovae: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def same_model(one: Path, other: Path) -> bool:
    """Bit for bit, that is in its tensors: safetensors writes its header in any order."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
