"""Launch shapes that were measured are kept for the device and used; a damaged table is left out with a warning."""

import json

import pytest
import torch

from specmoe.kernels.combine import fused as combine_module
from specmoe.kernels.combine.fused import combine_fused
from specmoe.kernels.dispatch import fused as dispatch_module
from specmoe.kernels.dispatch.fused import dispatch_fused
from specmoe.kernels.launch import shapes
from specmoe.kernels.launch.shapes import LaunchShape, device_name, table_path, tuned_shapes
from specmoe.kernels.launch.tune import CANDIDATES, tune

BEST = LaunchShape(block=2048, warps=8)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "cache_folder", lambda: tmp_path / "cache")
    tuned_shapes.cache_clear()
    yield tmp_path / "cache"
    tuned_shapes.cache_clear()


def pretended_milliseconds(work):
    return 1.0 if work.args[-1] == BEST else 2.0


class Launches:
    """Stands in for a kernel and notes with what it is launched."""

    def __init__(self):
        self.noted = []

    def __getitem__(self, grid):
        return lambda *_, **options: self.noted.append((grid, options["BLOCK"], options["num_warps"]))


def test_the_fastest_shape_is_kept_for_the_device_and_used(kernel_device, monkeypatch):
    path = tune(4096, 2, torch.bfloat16, kernel_device, pretended_milliseconds)
    assert path == table_path(device_name(kernel_device))
    copies, sums = Launches(), Launches()
    monkeypatch.setattr(dispatch_module, "_copy_rows", copies)
    monkeypatch.setattr(combine_module, "_combine_rows", sums)
    positions = torch.zeros((3, 2), dtype=torch.int32, device=kernel_device)
    for width, block, warps in ((4096, BEST.block, BEST.warps), (2048, 1024, 4)):
        rows = torch.zeros((3, width), dtype=torch.bfloat16, device=kernel_device)
        dispatch_fused(rows, positions, 6)
        combine_fused(rows, positions, None)
        # Dispatch counts in words of two values.
        assert copies.noted.pop() == ((3, -(-width // 2 // block)), block, warps)
        assert sums.noted.pop() == ((3, -(-width // block)), block, warps)


def test_a_second_model_is_added_to_the_table(kernel_device):
    for width in (64, 128):
        path = tune(width, 2, torch.float32, kernel_device, pretended_milliseconds)
    assert len(json.loads(path.read_text())["shapes"]) == 8


def test_every_candidate_moves_the_same_rows(kernel_device):
    rows = torch.arange(3 * 1500, dtype=torch.float32, device=kernel_device).view(3, 1500)
    positions = torch.tensor([[2, 0], [-1, 1], [-1, -1]], dtype=torch.int32, device=kernel_device)
    for shape in CANDIDATES:
        out = torch.zeros_like(rows)
        dispatch_module.copy_rows(positions, rows, out, None, None, shape)
        assert torch.equal(out, rows[[0, 1, 0]])
        combine_module.add_rows(rows, positions, None, out, shape)
        assert torch.equal(out, torch.stack([rows[2] + rows[0], rows[1], torch.zeros_like(rows[0])]))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": "other"}', json.dumps({"format": shapes.FORMAT, "shapes": {"a": [1000, 4]}})],
)
def test_a_damaged_table_is_left_out_with_a_warning(kernel_device, text):
    path = table_path(device_name(kernel_device))
    path.parent.mkdir()
    path.write_text(text)
    positions = torch.zeros((1, 1), dtype=torch.int32, device=kernel_device)
    with pytest.warns(UserWarning, match="delete it or tune again"):
        dispatch_fused(torch.ones((1, 4), device=kernel_device), positions, 1)
