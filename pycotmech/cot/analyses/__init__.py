"""The paper's analyses (arXiv 2402.18312), one file each; what they share is in bootstrap, cells, cost and result.

Every analysis is a function `name(model, examples, *, steps=None, right=None, ..., seed=0, progress=None)` that returns an
`Analysis`, and has a `cost(cfg, workload, ...)` beside it that says what the function is going to need.
"""
