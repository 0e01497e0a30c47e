"""Traces and plans to report on, and a real browser to open the page in."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.placement.report.findings import Findings, gather, with_drift
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `browser` on a machine without one."""
    if CHROMIUM is None:
        marked = [item for item in items if item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def make_profile(
    seed: int = 0, *, num_tokens: int = 300, num_layers: int = 3, num_experts: int = 8, top_k: int = 2
) -> RoutingProfile:
    """Random routing in requests of 30 tokens, with token ids and gate weights."""
    rng = np.random.default_rng(seed)
    noise = rng.random((num_tokens, num_layers, num_experts)) + rng.random(num_experts)
    ids = np.argpartition(-noise, top_k, axis=-1)[..., :top_k].astype(np.uint16)
    used = np.zeros((num_layers, num_tokens, num_experts), dtype=np.float32)
    np.put_along_axis(used, ids.transpose(1, 0, 2).astype(np.int64), 1.0, axis=-1)
    coactivation = (used.transpose(0, 2, 1) @ used).astype(np.int64)
    return RoutingProfile(
        layer_ids=np.arange(1, num_layers + 1, dtype=np.int32),
        expert_counts=np.ascontiguousarray(np.diagonal(coactivation, axis1=1, axis2=2)),
        coactivation_counts=coactivation,
        num_logical_experts=num_experts,
        top_k=top_k,
        num_tokens=num_tokens,
        vocab_size=50,
        sample=RoutingSample(
            expert_ids=ids,
            gate_weights=rng.random(ids.shape).astype(np.float16),
            token_ids=rng.integers(0, 50, num_tokens, dtype=np.int32),
            request_ids=np.arange(num_tokens, dtype=np.int32) // 30,
            domain_ids=(np.arange(num_tokens) // 30 % 3 == 0).astype(np.int16),
        ),
        source="random </script><b>routing",
    )


@pytest.fixture(scope="session")
def profile_of() -> Callable[..., RoutingProfile]:
    return make_profile


@pytest.fixture(scope="session")
def folder(random_plan, tmp_path_factory) -> Path:
    """`trace` and `older`, profiles; `dp.plan` (replicas, a table), `tp.plan` (a table), `nodes.plan` (2 nodes)."""
    path, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(1)
    make_profile().save(path / "trace")
    make_profile(seed=1).save(path / "older")
    shape: dict[str, Any] = {"num_experts": 8, "top_k": 2, "layer_ids": (1, 2, 3)}
    dp = random_plan(rng, ranks_per_node=(2,), extra_slots=1, replica_choice="cover", **shape)
    affinity = rng.random((40, 2)).astype(np.float16)
    affinity[:10] = 0.5
    replace(dp, token_affinity=affinity).save(path / "dp.plan")
    tp = replace(random_plan(rng, ranks_per_node=(2,), **shape), attention="tp")
    ranks = rng.integers(-1, 2, (3, 50)).astype(np.int16)
    replace(tp, token_to_rank=ranks, token_confidence=np.full((3, 50), 0.5, dtype=np.float16)).save(path / "tp.plan")
    random_plan(rng, ranks_per_node=(2, 2), extra_slots=1, **shape).save(path / "nodes.plan")
    return path


@pytest.fixture(scope="session")
def findings(folder) -> Findings:
    """All three plans on `trace`, with capacity bounds and the drift since `older`."""
    plans = [folder / name for name in ("dp.plan", "tp.plan", "nodes.plan")]
    return with_drift(gather(plans, folder / "trace", capacity=[1.0, 2.0]), folder / "older")


class Browser:
    """Chromium without a window, told what to do through pipes by its debugging protocol."""

    def __init__(self, folder: Path) -> None:
        commands, self._send = os.pipe()
        self._receive, answers = os.pipe()
        # The protocol's descriptors are 3 and 4: the shell moves ours there.
        launch = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}")
        arguments = ["bash", "-c", launch, str(CHROMIUM), *options, "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            arguments, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Show `page` and wait until its script has drawn."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        drawn = "new Promise(done => addEventListener('load', () => requestAnimationFrame(() => setTimeout(done, 50))))"
        self.run(f"document.readyState === 'complete' ? new Promise(done => setTimeout(done, 100)) : {drawn}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key such as "ArrowRight"."""
        codes = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def complaints(self) -> list[str]:
        """Errors and messages of the page, and what it asked the network for, since it was opened."""
        self.run("1")
        wrong = [e for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
        wrong += [event for event in self.events if event["method"] == "Log.entryAdded"]
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [json.dumps(event["params"]) for event in wrong] + [
            url for url in urls if not url.startswith(("file:", "data:"))
        ]

    def close(self) -> None:
        os.close(self._send)
        self._process.wait(timeout=30)
        os.close(self._receive)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._receive, 2**16)
            assert part, "the browser ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
