"""Trace every byte of a compiled checkpoint to the source: each slot, router and other tensor is where it belongs.

This walks from the source to the output, the opposite way of the compiler, and shares with it the family table alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.copy_bytes import BUFFER_BYTES, SourceFiles
from specmoe.placement.reshard.expert_numbers import read_expert_numbers
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.moe_model import ByteRange, ExpertPiece, MoeLayer, MoeModel
from specmoe.placement.reshard.progress import Report
from specmoe.placement.reshard.verify_report import VerifyCheck
from specmoe.safetensors_header import TensorEntry, read_header

KINDS = ("experts", "routers", "other tensors")
_MAX_PROBLEMS = 20


class Place(NamedTuple):
    """Where some source bytes must be: at `offset` of tensor `name` in `file` (the shared files, or a rank's).

    With `old_of_new` they are expert numbers, which must be there under the plan's new numbers; with `transposed` they
    are a matrix of these rows and columns, which must be there transposed.
    """

    kind: str
    source: ByteRange
    file: int
    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    old_of_new: tuple[int, ...] = ()
    transposed: tuple[int, int] | None = None


SHARED = -1  # `Place.file` of the shared files, and of all files in layout hf


def read_outputs(out: Path, manifest: CompiledManifest) -> dict[int, dict[str, TensorEntry]]:
    """The tensors of the output by rank, those of the shared files under `SHARED`."""
    shared: dict[str, TensorEntry] = {}
    for name in manifest.shared_files:
        shared |= read_header(out / name)
    ranks = {rank: read_header(out / name) for rank, name in enumerate(manifest.rank_files)}
    return {SHARED: shared, **ranks}


def check_origin(
    model: MoeModel,
    plan: PlacementPlan,
    manifest: CompiledManifest,
    outputs: Mapping[int, Mapping[str, TensorEntry]],
    report: Report,
) -> list[VerifyCheck]:
    """One check per kind of tensor, and one that nothing of the source is missing and nothing else is there."""
    problems: dict[str, list[str]] = {kind: [] for kind in KINDS}
    compared: Counter[str] = Counter()
    covered: Counter[tuple[int, str]] = Counter()
    uses: Counter[ByteRange] = Counter()
    places = _places_in_ranks(model, plan, manifest) if manifest.layout == "ranks" else _places_in_hf(model, plan)
    with SourceFiles() as files:
        for place in places:
            length = place.source.end - place.source.begin
            compared[place.kind] += length
            covered[place.file, place.name] += length
            uses[place.source] += 1
            if problem := _compare(files, model, place, outputs[place.file].get(place.name)):
                problems[place.kind].append(problem)
            report(length)
    checks = [
        VerifyCheck(
            name=kind,
            proven=f"{compared[kind]} bytes equal the source's, each where the plan puts it",
            problems=tuple(problems[kind][:_MAX_PROBLEMS]),
        )
        for kind in KINDS
    ]
    return [*checks, _check_complete(model, outputs, covered, uses)]


def _places_in_hf(model: MoeModel, plan: PlacementPlan) -> Iterator[Place]:
    for row, layer in enumerate(model.layers.values()):
        old_of_new = plan.physical_to_logical[row].tolist()
        for piece in layer.pieces.values():
            for new, old in enumerate(old_of_new):
                source = piece.ranges[old]
                if piece.is_fused:
                    shape = (len(old_of_new), *piece.shape)
                    offset = new * (source.end - source.begin)
                    yield Place("experts", source, SHARED, source.tensor, offset, piece.dtype, shape)
                else:
                    name = f"{layer.prefix}{model.family.experts}.{new}.{piece.label}"
                    yield Place("experts", source, SHARED, name, 0, piece.dtype, piece.shape)
        for name, axis in layer.routers.items():
            yield from _router_entries(model, name, axis, old_of_new)
        for place in _unchanged(model, "routers", layer.expert_numbers):
            yield place._replace(old_of_new=tuple(old_of_new))
    yield from _unchanged(model, "other tensors", sorted(model.rest))


def _router_entries(model: MoeModel, name: str, axis: int, old_of_new: Sequence[int]) -> Iterator[Place]:
    """Each expert's entry under its new number, and the entries of what is no expert where they were."""
    entry = model.checkpoint.tensors[name]
    step = entry.num_bytes // entry.shape[axis]
    for new in range(entry.shape[axis]):
        old = old_of_new[new] if new < len(old_of_new) else new
        source = ByteRange(name, old * step, (old + 1) * step)
        yield Place("routers", source, SHARED, name, new * step, entry.dtype, entry.shape)


def _places_in_ranks(model: MoeModel, plan: PlacementPlan, manifest: CompiledManifest) -> Iterator[Place]:
    for row, (layer, module) in enumerate(zip(model.layers.values(), manifest.expert_modules, strict=True)):
        for rank in range(plan.ep_size):
            first, last = plan.slot_offsets[rank : rank + 2]
            experts = plan.physical_to_logical[row, first:last].tolist()
            for name, pieces in _parameters(model, layer).items():
                places = _slots(rank, f"{module}.{name}", pieces, experts)
                if model.has_plain_experts and pieces[0].is_transposed:
                    places = (_turned(place) for place in places)
                yield from places
        yield from _unchanged(model, "routers", sorted((*layer.routers, *layer.expert_numbers)))
    yield from _unchanged(model, "other tensors", sorted(model.rest))


def _parameters(model: MoeModel, layer: MoeLayer) -> dict[str, list[ExpertPiece]]:
    """The names in a rank file, and the pieces that lie one after the other in each slot of them."""
    if not model.has_plain_experts or layer.pieces.keys() != set(model.family.projection_weights):
        return {label: [piece] for label, piece in layer.pieces.items()}
    return {
        parameter: [layer.pieces[f"{projection}.weight"] for projection in projections]
        for parameter, projections in model.family.parameters.items()
    }


def _slots(rank: int, name: str, pieces: Sequence[ExpertPiece], experts: Sequence[int]) -> Iterator[Place]:
    shape = pieces[0].shape
    if len(pieces) > 1:
        shape = (sum(piece.shape[0] for piece in pieces), *shape[1:])
    offset = 0
    for expert in experts:
        for piece in pieces:
            source = piece.ranges[expert]
            yield Place("experts", source, rank, name, offset, piece.dtype, (len(experts), *shape))
            offset += source.end - source.begin


def _turned(place: Place) -> Place:
    slots, rows, columns = place.shape
    return place._replace(shape=(slots, columns, rows), transposed=(rows, columns))


def _unchanged(model: MoeModel, kind: str, names: Sequence[str]) -> Iterator[Place]:
    for name in names:
        entry = model.checkpoint.tensors[name]
        yield Place(kind, ByteRange(name, 0, entry.num_bytes), SHARED, name, 0, entry.dtype, entry.shape)


def _compare(files: SourceFiles, model: MoeModel, place: Place, output: TensorEntry | None) -> str | None:
    """What is wrong with one place, or None."""
    if output is None:
        return f"{place.name} is missing, which should hold {place.source.tensor}"
    if (output.dtype, output.shape) != (place.dtype, place.shape):
        return (
            f"{place.name} in {output.file.name} is {output.dtype} {list(output.shape)}, "
            f"{place.dtype} {list(place.shape)} was expected"
        )
    if place.old_of_new:
        return _compare_numbers(model, place, output)
    if not _holds_source(files, model.checkpoint.tensors[place.source.tensor], place, output):
        return f"{place.name} in {output.file.name} at byte {place.offset} is not {place.source.tensor} of the source"
    return None


def _holds_source(files: SourceFiles, source: TensorEntry, place: Place, output: TensorEntry) -> bool:
    theirs, ours = source.begin + place.source.begin, output.begin + place.offset
    size = place.source.end - place.source.begin
    if place.transposed is not None:
        rows, columns = place.transposed
        matrix = np.frombuffer(files.read(output.file, ours, size), dtype=f"u{size // (rows * columns)}")
        turned_back: bytes = matrix.reshape(columns, rows).T.tobytes()
        return turned_back == files.read(source.file, theirs, size)
    return all(
        files.read(source.file, theirs + start, min(BUFFER_BYTES, size - start))
        == files.read(output.file, ours + start, min(BUFFER_BYTES, size - start))
        for start in range(0, size, BUFFER_BYTES)
    )


def _compare_numbers(model: MoeModel, place: Place, output: TensorEntry) -> str | None:
    """Whether each new expert number of the output stands for the source's old one."""
    written = replace(model.checkpoint, tensors={place.name: output})
    new = read_expert_numbers(written, place.name, len(place.old_of_new))
    old = read_expert_numbers(model.checkpoint, place.name, len(place.old_of_new))
    if not np.array_equal(np.asarray(place.old_of_new)[new], old):
        return f"{place.name} in {output.file.name} does not name the experts of the source under their new numbers"
    return None


def _check_complete(
    model: MoeModel,
    outputs: Mapping[int, Mapping[str, TensorEntry]],
    covered: Mapping[tuple[int, str], int],
    uses: Mapping[ByteRange, int],
) -> VerifyCheck:
    problems = []
    for file, entries in outputs.items():
        for name, entry in entries.items():
            if covered.get((file, name), -1) != entry.num_bytes:
                problems.append(f"{name} in {entry.file.name} holds bytes that no tensor of the source accounts for")
    used = Counter[str]()
    for source in uses:
        used[source.tensor] += source.end - source.begin
    for name, entry in model.checkpoint.tensors.items():
        if name not in used or used[name] != entry.num_bytes:
            problems.append(f"{name} of the source is not in the output")
    proven = f"all {len(model.checkpoint.tensors)} tensors of the source are used, and nothing else is there"
    return VerifyCheck(name="completeness", proven=proven, problems=tuple(problems[:_MAX_PROBLEMS]))
