"""How many tokens a program of `assign` holds at once, and with how many warps."""

from dataclasses import dataclass

from specmoe.kernels.launch.compiler import power_of_two

# A block's tokens x pairs x max(pairs, ranks): with a token a thread it is what one thread holds, times the threads.
ELEMENTS_OF_ONE_PROGRAM = 16384
ELEMENTS_OF_MANY_PROGRAMS = 8192
# With few pairs and ranks a token takes little, but its addresses count too.
MAX_TOKENS = 512
# The smallest block: of fewer tokens some places stay empty.
WARP_TOKENS = 32
# What the registers of a warp hold well: 64 values in each of 32 threads.
WARP_ELEMENTS = 2048
MAX_WARPS = 8


@dataclass(frozen=True, kw_only=True)
class TokenBlock:
    """tokens, pairs and ranks: powers of two, pairs and ranks with places for the real `top_k` and number of ranks."""

    top_k: int
    tokens: int
    pairs: int
    ranks: int

    @classmethod
    def of_one_program(cls, top_k: int, num_ranks: int, num_tokens: int) -> "TokenBlock":
        """As large as one program can hold; small where that is enough, for small batches want no idle threads."""
        block = cls._of(top_k, num_ranks, ELEMENTS_OF_ONE_PROGRAM)
        if num_tokens > WARP_TOKENS or block.tokens <= WARP_TOKENS:
            return block
        return cls(top_k=top_k, tokens=WARP_TOKENS, pairs=block.pairs, ranks=block.ranks)

    @classmethod
    def of_many_programs(cls, top_k: int, num_ranks: int) -> "TokenBlock":
        """Smaller, so that there is work for all of the device."""
        return cls._of(top_k, num_ranks, ELEMENTS_OF_MANY_PROGRAMS)

    @classmethod
    def _of(cls, top_k: int, num_ranks: int, elements: int) -> "TokenBlock":
        pairs, ranks = power_of_two(top_k), power_of_two(num_ranks)
        tokens = min(max(elements // (pairs * max(pairs, ranks)), 1), MAX_TOKENS)
        return cls(top_k=top_k, tokens=tokens, pairs=pairs, ranks=ranks)

    @property
    def warps(self) -> int:
        """A thread for each token, so that no token's pairs and ranks are spread over threads; more where they are so
        many that a thread could not hold them."""
        elements = self.tokens * self.pairs * max(self.pairs, self.ranks)
        return max(1, min(max(self.tokens // WARP_TOKENS, elements // WARP_ELEMENTS), MAX_WARPS))

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' compile-time sizes."""
        return {"TOP_K": self.top_k, "T": self.tokens, "K": self.pairs, "R": self.ranks}
