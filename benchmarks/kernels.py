"""The kernels and the whole MoE layer on a CUDA device: microseconds, TB/s, and the share of a plain copy's speed.

python benchmarks/kernels.py --tokens 1,32,128,512,4096,16384 --shapes Mixtral-8x7B,DeepSeek-V3

Prints the tables and writes them, with every figure, to benchmarks/results/kernels-DEVICE.{md,json}. Without a CUDA
device there is nothing to measure, and it says so.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    # In place of this file's own folder: on the path, a file named kernels.py would stand in for the package of that
    # name which transformers looks for.
    sys.path[:] = [str(HERE / "kernel_suite"), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    from measure_all import main

    main()
