"""The proof before writing: a layout that loses, repeats or resizes bytes is refused, whoever made it."""

import pytest

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import CheckpointError
from specmoe.placement.reshard.layout import CheckpointLayout, OutputFile, OutputTensor, whole
from specmoe.placement.reshard.moe_model import ByteRange

NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tmp_path, make_checkpoint, recipes):
    """Two tensors: NORM, 16 bytes, and EMBED, 128 bytes."""
    recipe = recipes["mixtral"]
    return open_checkpoint(make_checkpoint(tmp_path / "m", type(recipe)(**{**vars(recipe), "tensors": {}})))


def layout(*tensors: OutputTensor) -> CheckpointLayout:
    return CheckpointLayout(
        layout="hf",
        family="mixtral",
        expert_format="fused",
        expert_modules=(),
        files=(OutputFile(name="one", tensors=tensors[:1]), OutputFile(name="two", tensors=tensors[1:])),
    )


def cut(*ranges: tuple[int, int]) -> OutputTensor:
    """NORM made of some of its bytes, of the size that these come to."""
    spans = tuple(ByteRange(NORM, begin, end) for begin, end in ranges)
    size = sum(end - begin for begin, end in ranges)
    return OutputTensor(name=NORM, dtype="U8", shape=(size,), ranges=spans)


def test_every_byte_once_is_complete(checkpoint) -> None:
    layout(whole(checkpoint, NORM), whole(checkpoint, EMBED)).check_complete(checkpoint, {})
    layout(cut((8, 16), (0, 8)), whole(checkpoint, EMBED)).check_complete(checkpoint, {})


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 8)], "leaves out bytes of model.norm.weight"),
        ([(0, 8), (9, 16)], "leaves out or repeats bytes of model.norm.weight"),
        ([(0, 10), (8, 16)], "leaves out or repeats bytes of model.norm.weight"),
        ([(0, 16), (0, 16)], "uses model.norm.weight 2 times, 1 were expected"),
        ([], "leaves out bytes of model.norm.weight"),
    ],
)
def test_bytes_that_are_lost_or_repeated(checkpoint, ranges, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        layout(cut(*ranges), whole(checkpoint, EMBED)).check_complete(checkpoint, {})


def test_a_replica_that_the_plan_asks_for_must_be_there(checkpoint) -> None:
    twice = layout(whole(checkpoint, NORM), whole(checkpoint, NORM, "copy"), whole(checkpoint, EMBED))
    copies = {ByteRange(NORM, 0, 16): 2}
    twice.check_complete(checkpoint, copies)
    with pytest.raises(CheckpointError, match="1 times, 2 were expected"):
        layout(whole(checkpoint, NORM), whole(checkpoint, EMBED)).check_complete(checkpoint, copies)


def test_a_shape_that_does_not_fit_the_bytes(checkpoint) -> None:
    wrong = OutputTensor(name=NORM, dtype="F32", shape=(5,), ranges=(ByteRange(NORM, 0, 16),))
    with pytest.raises(CheckpointError, match="16 bytes, 20 were expected"):
        layout(wrong, whole(checkpoint, EMBED)).check_complete(checkpoint, {})
