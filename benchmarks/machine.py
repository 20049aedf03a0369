"""What a figure was measured on, and how a benchmark writes its results."""

import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dualppo.core.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"


def describe() -> dict:
    """Processor, cores, memory and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.system(),
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def sgemm_rate(n: int = 1024, repeats: int = 8) -> float:
    """The best rate of a large single-precision matrix product, in flop/s."""
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return 2 * n**3 / min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(repeats))


def triad_rate(size: int, repeats: int = 40) -> float:
    """The best bytes/s, read and written, of a = b + 2 c or of a copy on arrays of so many bytes together."""
    a, b, c = torch.zeros(size // 12), torch.ones(size // 12), torch.ones(size // 12)
    big, other = torch.zeros(size // 8), torch.ones(size // 8)
    triad = min(seconds(lambda: torch.add(b, c, alpha=2, out=a)) for _ in range(repeats))
    copy = min(seconds(lambda: big.copy_(other)) for _ in range(repeats))
    return max(12 * len(a) / triad, 8 * len(big) / copy)


def cache_bytes() -> int:
    """Size of the second-level cache of one core; 1 MiB where the system does not say."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    return int(path.read_text().strip().removesuffix("K")) * 1024 if path.exists() else 2**20


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def save(name: str, figures: dict) -> None:
    """Write `results/NAME.json` with the machine beside the figures."""
    atomic_write(RESULTS / f"{name}.json", json.dumps({"machine": describe()} | figures, indent=1) + "\n")
