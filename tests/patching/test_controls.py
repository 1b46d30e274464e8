"""Controls of sweeps: self-patches, patches from an unrelated prompt, the sham position."""

import numpy as np

from pycotmech.patching.control_results import Controls


def controls(random, **more):
    random = np.asarray(random, dtype="f4")
    given = dict(random=random, random_raw=random.astype(float), sham=np.zeros(1), self_patches=np.zeros((1, 8)), share=1.0)
    return Controls(**{**given, **more})


def test_threshold_and_largest_leave_out_what_was_not_measured():
    found = controls(np.where(np.arange(200) < 99, np.arange(200.0), np.nan).reshape(20, 10))
    assert (found.n_random, found.threshold, found.largest) == (99, 94.0, 98.0)
    none = controls(np.full((2, 2), np.nan), missing={0: "no other pair of equal length"})
    assert none.n_random == 0 and np.isnan(none.threshold) and np.isnan(none.largest)
    assert "pair 0: no other pair of equal length" in str(none)
