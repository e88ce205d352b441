"""Time and peak memory of a piece of work, with the standard library alone.

On a CPU the time is the process's own (user and system), so that other load on the machine weighs
less; on a GPU it is the wall clock between two synchronisations. Memory is the peak of the resident
set since :func:`reset_peak` (Linux), or what the allocator of the GPU says.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def _status_mb(key: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def resident_mb() -> float:
    """The resident set now, in MiB; where /proc is missing, its peak so far."""
    return _status_mb("VmRSS") if _STATUS.is_file() else _whole_peak_mb()


def reset_peak() -> bool:
    """Forget the peak so far; False where the system cannot (then the peak is the whole run's)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float:
    """The peak of the resident set since :func:`reset_peak`, in MiB."""
    return _status_mb("VmHWM") if _STATUS.is_file() else _whole_peak_mb()


def _whole_peak_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Probe:
    """Seconds and peak memory of steps, beside what was resident when it was made.

    Make one when the model is loaded; then ``start()`` before and ``stop()`` after each step.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device.startswith("cuda")
        self.base_mb = self._used_mb()
        self.seconds: list[float] = []
        self.wall: list[float] = []
        self.peak_mb = 0.0
        self._cpu_at = self._wall_at = 0.0

    def start(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
        self._cpu_at, self._wall_at = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = peak_mb()
        wall = time.perf_counter() - self._wall_at
        self.wall.append(wall)
        self.seconds.append(wall if self.cuda else time.process_time() - self._cpu_at)
        self.peak_mb = max(self.peak_mb, peak)

    def _used_mb(self) -> float:
        if not self.cuda:
            return resident_mb()
        import torch

        return float(torch.cuda.memory_allocated() / 2**20)

    def timed(self, work: Callable[[], Any], steps: int = 1) -> Any:
        """Run ``work`` ``steps`` times under the probe; returns the last result."""
        result = None
        for _ in range(steps):
            self.start()
            result = work()
            self.stop()
        return result

    def row(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "wall": self.wall,
            "extra_mb": self.peak_mb - self.base_mb,
            "base_mb": self.base_mb,
        }
