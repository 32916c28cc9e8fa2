"""What the work runs on: its clock and its name."""

from __future__ import annotations

import os
import platform
import time

import torch


def clock(device: torch.device) -> float:
    """Seconds, read once the device has done all that it was given; a GPU works on while Python goes ahead."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def machine(device: torch.device) -> str:
    """The name of the GPU or the processor, for reports and logs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
            name = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), name)
    return name
