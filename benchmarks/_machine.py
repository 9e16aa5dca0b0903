"""What a benchmark ran on, and where its results go: ``results/<name>-<machine>.json``."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Cores, models, memory and library; never a host's name or a path."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": model[1].strip() if model else "unknown",
        "cores": os.cpu_count(),
        "threads_used": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gib": round(gpu.total_memory / 2**30) if gpu else None,
        "torch": torch.__version__,
    }


def write(name: str, results: dict[str, Any]) -> Path:
    """Merge ``results`` into this machine's file: a part that was not run again keeps its numbers."""
    place = machine()
    label = place["gpu"] or f"{place['cpu']} {place['cores']} cores"
    path = RESULTS / f"{name}-{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, "machine": place, **results}, indent=2) + "\n", encoding="utf-8")
    return path
