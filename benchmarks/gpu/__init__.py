"""What the kernels and the engine do on a GPU, in one command: `python -m benchmarks.gpu --minutes 8 --out DIR`.

It needs a checkout, a build of PyTorch for the device, Triton, transformers, and no network: `PYTHONPATH=.` from the root is
enough. Each phase is a process of its own with a time limit; a fault on the device costs one phase. What a phase finds is in
DIR (results.json, table.md, errors.txt) seconds after it was found. A figure whose check failed is withheld, and the exit
status is 1. `--device cpu --small` runs the same code on a CPU with small sizes, where figures say nothing about a GPU.
docs/gpu.md says how to read the table.
"""
