"""What the analyses share: cells, activations, means, ablation, cost, probes, graphs, results.

Tests: `tests/cot/analyses/test_foundation.py` for `cells`, `checks`, `cost`; `test_keep_only.py` for `ablation`,
`ablation_results`; `test_information_flow.py` for `flow_exact`, `flow_graph`, `flow_paper`; `test_attention_by_source.py` for
`activations`; `test_knock_out_curve.py` for `held_out`; `test_decision_copy.py` for `head_probe`, `rows`;
`test_relation_heads.py` for `question_runs`, `relation_tests`, `word_attention`; `test_pair_probes.py` for `probe_tasks`;
`test_answer_writers.py` for `written`; `test_circuits.py` for `circuit_values`; `test_select_heads.py` for `head_sets`;
`tests/paper/test_entries.py` for `registry`; the others have tests of their own names.
"""
