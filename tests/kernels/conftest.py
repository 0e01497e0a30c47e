"""The device on which kernels are tested: a GPU where there is one, else the CPU through Triton's interpreter."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_device" in metafunc.fixturenames:
        on_gpu = pytest.param(torch.device("cuda"), id="gpu", marks=pytest.mark.gpu)
        interpreted = pytest.param(torch.device("cpu"), id="interpreted")
        metafunc.parametrize("kernel_device", [interpreted if INTERPRETED else on_gpu])


@pytest.fixture(scope="session")
def poisoned() -> Callable[[], AbstractContextManager[None]]:
    """`with poisoned():` fills every new buffer with NaN, or an integer's largest value."""
    return _poisoned


@contextmanager
def _poisoned() -> Iterator[None]:
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
