"""Write a planned compilation into its staging folder: several files at once, the manifest last."""

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from specmoe.checkpoint import INDEX_FILE, Checkpoint
from specmoe.errors import OutputError
from specmoe.hashing import hash_file
from specmoe.placement.reshard.compilation import Compilation
from specmoe.placement.reshard.copy_bytes import CopyStoppedError, Part, Span, TransposedMatrix, write_file
from specmoe.placement.reshard.hf_layout import weight_index
from specmoe.placement.reshard.human_size import human_size
from specmoe.placement.reshard.layout import OutputFile
from specmoe.placement.reshard.manifest import PLAN_FILE, CompiledManifest, FileRecord
from specmoe.placement.reshard.progress import Report
from specmoe.placement.reshard.staging import Staging

# Room for the plan and the manifest, asked for beside the bytes that are copied.
_SPARE_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One file to write: `text`, then the bytes of a planned file or of a whole file of the source."""

    name: str
    text: bytes
    planned: OutputFile | None = None
    copied: Path | None = None

    @property
    def num_bytes(self) -> int:
        if self.planned is not None:
            return self.planned.num_bytes
        return len(self.text) + (self.copied.stat().st_size if self.copied else 0)

    def sources(self, checkpoint: Checkpoint) -> Iterator[Part]:
        if self.copied is not None:
            yield Span(self.copied, 0, self.copied.stat().st_size)
        for tensor in self.planned.tensors if self.planned else ():
            if tensor.content is not None:
                yield tensor.content
                continue
            for name, begin, end in tensor.ranges:
                entry = checkpoint.tensors[name]
                span = Span(entry.file, entry.begin + begin, entry.begin + end)
                yield span if tensor.transposed is None else TransposedMatrix(span, *tensor.transposed)


def write_compilation(compilation: Compilation, staging: Staging, jobs: int, report: Report) -> CompiledManifest:
    """Write all files of `compilation` that `staging` has not, `jobs` at once, then the manifest, all synced.

    `report` is called, from any thread, with the number of bytes done. Raises `OSError` as the system does, and
    `OutputError` before writing when the disk has too little room.
    """
    tasks = _tasks(compilation)
    pending = [task for task in tasks if task.name not in staging.finished]
    report(sum(task.num_bytes for task in tasks) - sum(task.num_bytes for task in pending))
    _check_room(staging.folder, sum(task.num_bytes for task in pending))
    _write_all(compilation.checkpoint, pending, staging, jobs, report)
    records = {task.name: staging.finished[task.name] for task in tasks}
    records[PLAN_FILE] = _write_plan(compilation, staging.folder / PLAN_FILE)
    manifest = CompiledManifest(
        layout=compilation.layout.layout,
        family=compilation.layout.family,
        model_fingerprint=compilation.checkpoint.fingerprint,
        plan_digest=compilation.plan.digest,
        ep_size=compilation.plan.ep_size,
        expert_format=compilation.layout.expert_format,
        expert_modules=compilation.layout.expert_modules,
        files=records,
    )
    manifest.save(staging.folder)
    return manifest


def total_bytes(compilation: Compilation) -> int:
    """Bytes of all files that are copied, for a progress bar."""
    return sum(task.num_bytes for task in _tasks(compilation))


def _tasks(compilation: Compilation) -> list[_Task]:
    """Large files first, so that the last threads to end have little left."""
    source = compilation.checkpoint.path
    tasks = [_Task(name=file.name, text=file.header, planned=file) for file in compilation.layout.files]
    tasks += [_Task(name=name, text=b"", copied=source / name) for name in compilation.sidecars]
    if compilation.layout.layout == "hf":
        index = json.dumps(weight_index(compilation.layout.files), indent=2) + "\n"
        tasks.append(_Task(name=INDEX_FILE, text=index.encode()))
    return sorted(tasks, key=lambda task: -task.num_bytes)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise OutputError(
            f"the disk of {folder.parent} has {human_size(free)} free, {human_size(needed + _SPARE_BYTES)} are needed; "
            "free some space or write elsewhere"
        )


def _write_all(checkpoint: Checkpoint, tasks: Sequence[_Task], staging: Staging, jobs: int, report: Report) -> None:
    stop = threading.Event()
    lock = threading.Lock()

    def work(task: _Task) -> None:
        path = staging.folder / task.name
        path.parent.mkdir(exist_ok=True)
        parts = task.sources(checkpoint)
        record = write_file(path, task.text, parts, num_bytes=task.num_bytes, report=report, stop=stop)
        with lock:
            staging.note_finished(task.name, record)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    failures = [error for future in done if (error := future.exception())]
    for error in sorted(failures, key=lambda error: isinstance(error, CopyStoppedError)):
        raise error


def _write_plan(compilation: Compilation, path: Path) -> FileRecord:
    compilation.plan.save(path, force=True)
    return FileRecord(num_bytes=path.stat().st_size, sha256=hash_file(path))
