"""Run a command and measure it: wall and processor time, most memory, and what it read from the disk."""

import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 512  # the unit in which the system counts what was read


@dataclass(frozen=True, kw_only=True)
class Run:
    """seconds: wall time; cpu_seconds: of the command's processes; peak_mib: most resident memory; read_gb: from the
    disk, not from the page cache."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    read_gb: float


def measured_run(command: Sequence[str]) -> Run:
    """Run `command` to its end; raises `SystemExit` when it fails. What is dirty is synced before, not counted."""
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _peak_kib(process.pid))
        time.sleep(0.01)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    return Run(
        seconds=seconds,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak_mib=round(peak / 1024, 1),
        read_gb=round((after.ru_inblock - before.ru_inblock) * _BLOCK_BYTES / 1e9, 2),
    )


def _peak_kib(process_id: int) -> int:
    """The largest resident memory so far; not from rusage, which a child inherits from this process."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
