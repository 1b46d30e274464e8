"""Products in one buffer, and kernels over what lies side by side; tests/engine/test_launches.py: they change no number."""

import torch

from pycotmech.model.families.launches import products_in_one_buffer, side_by_side
from tests.reference.tiny import tiny_llama


def test_products_share_a_buffer_and_one_kernel_goes_over_it():
    attention = tiny_llama(n_heads=4, n_key_value_heads=2).model.layers[0].self_attn
    x = torch.randn(5, attention.q_proj.in_features)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    assert products_in_one_buffer(x, projections) is None  # a gradient may be asked for
    with torch.no_grad():
        parts = products_in_one_buffer(x, projections)
        for part, projection in zip(parts, projections, strict=True):
            torch.testing.assert_close(part, projection(x))
        D = attention.head_dim
        q, k, v = (part.unflatten(1, (-1, D)) for part in parts)
        assert [t.shape[1] for t in side_by_side((q, k))] == [6] and torch.equal(side_by_side((q, k))[0][:, 4:], k)
        assert [t.shape[1] for t in side_by_side((k, q, k, v))] == [2, 8] and [t.shape[1] for t in side_by_side((q, v))] == [
            4,
            2,
        ]
        assert products_in_one_buffer(x.double(), projections) is None
    assert [t.shape[1] for t in side_by_side((torch.randn(5, 4, D), torch.randn(5, 2, D)))] == [4, 2]
