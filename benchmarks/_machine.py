"""What every benchmark writes beside its numbers: the machine, without its name, and where the result goes."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Cores, processor, memory, accelerator and versions."""
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


def path(name: str) -> Path:
    """``results/<name>-<machine>.json``, the machine being its GPU or its number of cores."""
    gpu = describe()["gpu"]
    kind = gpu.split(",")[0].lower().replace(" ", "-") if gpu else f"cpu{os.cpu_count()}"
    return RESULTS / f"{name}-{kind}.json"


def write(name: str, body: dict[str, Any]) -> Path:
    """Write a result to its ``path``."""
    RESULTS.mkdir(exist_ok=True)
    target = path(name)
    target.write_text(json.dumps({"machine": describe(), **body}, indent=2) + "\n", encoding="utf-8")
    return target
