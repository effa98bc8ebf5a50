"""The acceptance matrix: what kernels must do, as data, for `cutefp4 verify`, the tests and the hardware fixtures.

machine.py      where a case runs: this machine's GPU, or an emulated one with an adversarial schedule
case.py         one case: a name, the kernel it shares a compile with, and a check that raises `Difference`
inputs.py       matrices and operands that are the same on every machine and in every version
compare.py      bit for bit, or within a bound; the first coordinate that differs
quantise.py, producers.py, gemm.py, repeat.py, composed.py, configurations.py, code.py    the cases by area
matrix.py       all cases of an architecture
run.py          cases over worker processes
"""
