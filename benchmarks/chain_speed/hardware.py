"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def processor_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def hardware_name(device: str) -> str:
    """Name of the GPU on "cuda", else of the processor with its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {os.cpu_count()} cores"


def slug(text: str) -> str:
    """The text as part of a file name: lower case, words joined by "-"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def describe(device: str, threads: int) -> dict[str, Any]:
    """Hardware, versions, threads, and how busy the machine was when asked."""
    return {
        "hardware": hardware_name(device),
        "device": device,
        "threads": threads,
        "clock": "processor" if torch.device(device).type == "cpu" and threads == 1 else "wall",
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
    }
