"""The machine that measured: cores, processor, memory, accelerator and versions, without its name."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Plain values; ``gpu`` is None where there is none."""
    import transformers

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": None if gpu is None else f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
