"""All-to-alls of rows whose numbers every process knows without being told, and how many bytes they sent."""

import torch
import torch.distributed as dist

from specmoe.runtime.errors import others_answer
from specmoe.runtime.workers import Workers


class RowExchange:
    """`sent_bytes` counts what this process sent to others since it was made."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.sent_bytes = 0

    def all_to_all(self, sent: torch.Tensor, sent_rows: list[int], received_rows: list[int]) -> torch.Tensor:
        """[sum of received_rows, H], by sender; sent: [sum of sent_rows, H], by receiver; both lists by process."""
        received = sent.new_empty((sum(received_rows), sent.shape[1]))
        # As bytes: backends differ in the dtypes that they know.
        with others_answer(self.workers.process, "the shuffle of tokens"):
            dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), received_rows, sent_rows)
        to_others = sum(sent_rows) - sent_rows[self.workers.process]
        self.sent_bytes += to_others * sent.shape[1] * sent.dtype.itemsize
        return received
