"""The results as markdown tables."""

from typing import Any

# Figures of other projects' own pages, on an H200 with bfloat16, E 128, K 8, H 7168, unless said otherwise.
PUBLISHED = [
    ("permute, a row per pair", "T 4096", "2.40 TB/s", "TileOPs issue 2125"),
    ("permute, a row per pair", "T 4096", "0.275 ms", "vLLM's Triton kernel, same page"),
    ("permute, a row per pair", "T 512 / 128 / 32", "31.9 / 13.5 / 9.1 us", "TileOPs issue 2125"),
    ("permute, a row per pair", "T 512 / 128 / 32", "54.6 / 28.6 / 22.6 us", "vLLM's Triton kernel, same page"),
    ("unpermute, a row per pair", "", "about 2.9 TB/s", "TileOPs issue 608"),
    ("align and sort", "fixed cost a layer", "20-27 us", "vLLM issue 55225"),
    ("align and sort", "T 16384, K 8, E 256", "96 us", "SGLang pull request 5086"),
]


def markdown(record: dict[str, Any]) -> str:
    """Everything in `record` for people to read."""
    about = record["about"]
    lines = [
        f"# Kernels on {about['device']}",
        "",
        f"{about['date']}, " + ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        f"`{about['command']}`",
        "",
        f"A plain copy of 1 GiB reads and writes {about['copy_tb_per_s']:.2f} TB/s in all; shares are of that. "
        f"{about['ranks']} ranks, bfloat16. graph: inside a CUDA graph; eager: launched from Python one by "
        "one, between events; host: until the call returns, the device not waited for. TB/s are of the first that "
        "there is.",
    ]
    for shape in record["shapes"]:
        lines += ["", f"## {shape['name']}", ""]
        lines += _operations(shape["operations"], about["copy_tb_per_s"])
        if shape["layer"]:
            lines += ["", "Whole layer, all ranks on this GPU:", "", *_layer(shape["layer"])]
    lines += ["", "## Published by others, not measured here", "", "| operation | case | figure | source |"]
    lines += ["|---|---|---|---|", *(f"| {' | '.join(entry)} |" for entry in PUBLISHED)]
    return "\n".join(lines) + "\n"


def _operations(records: list[dict[str, Any]], copy_tb_per_s: float) -> list[str]:
    lines = [
        "| operation | by | T | graph us | eager us | host us | TB/s | share of copy |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in sorted(records, key=lambda e: (e["operation"], e["tokens"], e["implementation"] != "specmoe")):
        speed = entry["tb_per_s"]
        moved = ("", "") if speed is None else (f"{speed:.2f}", f"{100 * speed / copy_tb_per_s:.0f} %")
        cells = [entry["operation"], entry["implementation"], str(entry["tokens"]), *_times(entry), *moved]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _layer(records: list[dict[str, Any]]) -> list[str]:
    lines = ["| step | T | graph us | eager us | host us |", "|---|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join([entry['step'], str(entry['tokens']), *_times(entry)])} |" for entry in records]
    lines += ["", "| T | outside the grouped product | the layer's time over transformers' |", "|--:|--:|--:|"]
    for tokens in sorted({entry["tokens"] for entry in records}):
        taken = {entry["step"]: _device_us(entry) for entry in records if entry["tokens"] == tokens}
        whole = taken["whole layer, specmoe"]
        outside = 1 - taken["grouped product"] / whole
        ratio = whole / taken["whole layer, transformers grouped_mm"]
        lines.append(f"| {tokens} | {100 * outside:.0f} % | {ratio:.2f} |")
    return lines


def _times(entry: dict[str, Any]) -> list[str]:
    times = (entry["graph_us"], entry["eager_us"], entry["host_us"])
    return ["" if time is None else f"{time:.1f}" for time in times]


def _device_us(entry: dict[str, Any]) -> float:
    return float(entry["graph_us"] or entry["eager_us"] or entry["host_us"])
