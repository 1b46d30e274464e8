"""The fictional-ontology task: words, sentences, examples, steps and their counterfactuals.

Tests: `test_make.py` for `examples`, `pools`, `shape`, `tokens`, `vocabulary`, `wording`;
`tests/cot/analyses/test_corruptions.py` for `corruptions`; the others have tests of their own names.
"""
