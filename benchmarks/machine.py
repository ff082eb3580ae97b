"""What a measured number was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..inference.evidence.estimate import versions


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
