"""An HTTP front that sends each completion request to the data-parallel rank that the plan gives it.

    python examples/request_router/front.py experts.plan --tokenizer MODEL http://127.0.0.1:8001 http://127.0.0.1:8002
    curl localhost:8000/v1/completions -d '{"model": "m", "prompt": "The capital of France is", "max_tokens": 8}'

Several WORKER addresses: one per data-parallel rank, in the order of the ranks. One address: an engine that takes the
rank in the header `X-data-parallel-rank`, as vLLM and SGLang do; give --dp-size with it. Answers are handed through as
they come, streams too.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from specmoe import RequestRouter

RANK_HEADER = "X-data-parallel-rank"
_LARGEST_BODY = 64 * 2**20
_CHUNK = 65_536

Tokenize = Callable[[dict[str, Any]], Sequence[int]]


class Front(ThreadingHTTPServer):
    """Routes POST requests; tokenize: the token ids of a request's prompt, from its JSON body."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], router: RequestRouter, workers: Sequence[str], tokenize: Tokenize):
        super().__init__(address, _Handler)
        self.router, self.workers, self.tokenize = router, list(workers), tokenize


class _Handler(BaseHTTPRequestHandler):
    server: Front

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > _LARGEST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(length)
        try:
            token_ids = self.server.tokenize(json.loads(body))
        except (ValueError, TypeError, KeyError) as error:
            self.send_error(HTTPStatus.BAD_REQUEST, explain=f"no prompt could be read: {error}")
            return
        rank = self.server.router.route(token_ids)
        self._hand_through(rank, body)

    def _hand_through(self, rank: int, body: bytes) -> None:
        """Pass the request on to `rank`, and its answer back."""
        workers = self.server.workers
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json"), RANK_HEADER: str(rank)}
        if "Authorization" in self.headers:
            headers["Authorization"] = self.headers["Authorization"]
        target = (workers[rank] if len(workers) > 1 else workers[0]).rstrip("/") + self.path
        try:
            answer = urlopen(Request(target, data=body, headers=headers))
        except HTTPError as error:
            answer = error
        except URLError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain=f"rank {rank} at {target}: {error.reason}")
            return
        with answer:
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Length"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.send_header(RANK_HEADER, str(rank))
            self.end_headers()
            while chunk := answer.read1(_CHUNK):  # what there is, so that streams stay streams
                self.wfile.write(chunk)


def tokenize_with(tokenizer: Any) -> Tokenize:
    """How to read the prompt of the completion and the chat API; tokenizer: a Hugging Face one."""

    def tokenize(request: dict[str, Any]) -> Sequence[int]:
        if "messages" in request:
            encoded = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        prompt = request["prompt"]
        return prompt if isinstance(prompt, list) else list(tokenizer(prompt)["input_ids"])

    return tokenize


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("workers", metavar="WORKER", nargs="+")
    parser.add_argument("--tokenizer", required=True, help="the model's folder or hub name")
    parser.add_argument(
        "--dp-size", type=int, help="data-parallel ranks of the engine; default: one per worker address"
    )
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    dp_size = arguments.dp_size or (len(arguments.workers) if len(arguments.workers) > 1 else None)
    router = RequestRouter(arguments.plan, dp_size=dp_size)
    tokenize = tokenize_with(AutoTokenizer.from_pretrained(arguments.tokenizer))
    with Front(("127.0.0.1", arguments.port), router, arguments.workers, tokenize) as front:
        print(f"listening on http://127.0.0.1:{front.server_port}", flush=True)
        front.serve_forever()


if __name__ == "__main__":
    main()
