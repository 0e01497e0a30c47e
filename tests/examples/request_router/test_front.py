"""The example front, before two HTTP workers on this machine."""

import importlib.util
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from specmoe import RequestRouter

FRONT = Path(__file__).parents[3] / "examples/request_router/front.py"


@pytest.fixture(scope="module")
def front_module():
    spec = importlib.util.spec_from_file_location("front", FRONT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker(BaseHTTPRequestHandler):
    """Says who it is, which rank it was told, and what it was asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = self.headers["X-data-parallel-rank"]
        answer = json.dumps({"port": self.server.server_port, "told": told, "body": body}).encode()
        self.send_response(503 if body["prompt"] == [9] else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def started(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def workers():
    servers = [started(ThreadingHTTPServer(("127.0.0.1", 0), Worker)) for _ in range(2)]
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask(front_module, workers, random_plan):
    """`ask(prompt)`: the status and the answer that the front hands through; token 5 pulls to rank 1."""
    plan = random_plan(np.random.default_rng(0), num_experts=4, ranks_per_node=(2,), top_k=2)
    affinity = np.zeros((10, 2), dtype=np.float16)
    affinity[5] = [0.0, 1.0]
    router = RequestRouter(replace(plan, token_affinity=affinity))
    addresses = [f"http://127.0.0.1:{server.server_port}" for server in workers]
    front_module._Handler.log_message = lambda *_: None
    tokenize = front_module.tokenize_with(lambda text: {"input_ids": [int(text)]})
    front = started(front_module.Front(("127.0.0.1", 0), router, addresses, tokenize))

    def post(prompt):
        body = json.dumps({"prompt": prompt}).encode()
        try:
            with urlopen(Request(f"http://127.0.0.1:{front.server_port}/v1/completions", data=body)) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, error.read().decode()

    yield post
    front.shutdown()
    front.server_close()


def test_a_request_goes_to_the_rank_that_the_plan_gives_it(ask, workers):
    ports = [server.server_port for server in workers]
    assert ask([5, 5, 5]) == (200, {"port": ports[1], "told": "1", "body": {"prompt": [5, 5, 5]}})
    assert ask([1])[1]["port"] == ports[0]
    assert ask("5")[1]["port"] == ports[1]


def test_a_workers_error_is_handed_through(ask):
    status, text = ask([9])
    assert status == 503
    assert json.loads(text)["body"] == {"prompt": [9]}


def test_a_request_without_a_prompt_is_refused_by_the_front(ask):
    assert ask({"no": "list"})[0] == 400


def test_a_worker_that_is_gone_is_a_bad_gateway(ask, workers):
    workers[0].shutdown()
    workers[0].server_close()
    status, text = ask([1])
    assert status == 502
    assert "rank 0" in text
