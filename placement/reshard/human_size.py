"""Numbers of bytes for people."""


def human_size(num_bytes: int) -> str:
    """`num_bytes` in the largest decimal unit that it fills, with two digits: 1.86 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes} bytes"
