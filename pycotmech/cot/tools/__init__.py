"""What the analyses share: cells, activations, means, ablation, cost, probes, graphs, results."""
