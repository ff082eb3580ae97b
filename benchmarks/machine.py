"""What a measured number was measured on, and the files that keep both."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..inference.evidence.estimate import versions
from ..inference.files import write_atomically


def keep(folder: Path, name: str, text: str, record: Mapping[str, Any]) -> None:
    """Write a measured table and its raw numbers, ``name.md`` and ``name.json``, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.md", text.encode())
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=1).encode())


def clock(device: str | torch.device) -> float:
    """Seconds, once the device has done what it was told to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def suffix(device: str | torch.device) -> str:
    """What the files of results from another device than the CPU end in."""
    kind = torch.device(device).type
    return "" if kind == "cpu" else f"-{kind}"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, device, versions and date, and a one-line summary of them."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cores = os.cpu_count()
    date = datetime.date.today().isoformat()
    return {
        "summary": f"{device} ({processor}, {cores} cores), torch {torch.__version__}, {date}",
        "processor": processor,
        "cores": cores,
        "device": device,
        "versions": versions(),
        "date": date,
    }
