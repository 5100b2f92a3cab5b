"""What was measured on what: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("triptych", "torch", "transformers", "sentence-transformers", "tokenizers", "pymilvus", "milvus-lite")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_CHECKOUT = Path(__file__).resolve().parents[2]


def environment(packages: Sequence[str] = (), precision: str = "") -> dict[str, Any]:
    """Commit, date, versions (of `packages` too, where installed) and hardware of this run.

    Args:
        precision: what models computed in, where that matters.
    """
    import torch

    found = {
        **_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: told for name in (*PACKAGES, "numpy", *packages) if (told := _version(name))},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
    return {**found, "precision": precision} if precision else found


def _commit() -> dict[str, Any]:
    """The commit of the checkout that this package runs from; `"none"` for an installed package."""
    if not (_CHECKOUT / ".git").exists():
        return {"commit": "none", "uncommitted_changes": False}
    # safe.directory: a checkout that belongs to somebody else (a container's volume) is still only read
    git = ["git", "-c", f"safe.directory={_CHECKOUT}"]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=_CHECKOUT, capture_output=True, text=True, check=True)
        rest = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md"],
            cwd=_CHECKOUT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "uncommitted_changes": True}
    return {"commit": head.stdout.strip(), "uncommitted_changes": bool(rest.stdout.strip())}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text("utf-8")
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return f"{name} ({', '.join(feature for feature in FEATURES if f' {feature}' in text)})"


def _memory_gb() -> float:
    import psutil

    return round(float(psutil.virtual_memory().total) / 2**30, 1)
