"""Sizes follow the ridge point of a device."""

import torch

from pycotmech.model import sizes


def test_sizes_follow_the_ridge_point():
    assert sizes.for_device(torch.device("cpu")) == sizes.CPU == sizes.Sizes(segment=128, pass_rows=128, row_block=2048)
    assert [sizes.for_ridge(flop).segment for flop in (156, 266, 280)] == [256, 512, 512]
    assert sizes.for_ridge(266) == sizes.Sizes(segment=512, pass_rows=512, row_block=8192)


def test_a_gpu_is_known_by_its_compute_capability(monkeypatch):
    known = {"cuda:0": (9, 0), "cuda:1": (8, 0), "cuda:2": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: known[str(device)])
    found = [sizes.for_device(torch.device(name)).pass_rows for name in known]
    assert found == [512, 256, 256]
