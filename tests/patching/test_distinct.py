import torch

from pycotmech.patching.distinct import distinct


def test_rows_are_those_of_unique():
    g = torch.Generator().manual_seed(0)
    for n, bounds in ((200, ((-3, 4), (0, 2), (-1, 5))), (50, ((7, 8), (-1, 0))), (40, ((-9, 9),))):
        columns = [torch.randint(low, end, (n,), generator=g) for low, end in bounds]
        found = distinct(*columns)
        want = torch.stack(columns, 1).unique(dim=0, return_inverse=True, return_counts=True)
        for x, y in zip(found, want, strict=True):
            assert torch.equal(x, y)


def test_of_no_rows():
    rows, inverse, counts = distinct(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert rows.shape == (0, 2) and len(inverse) == len(counts) == 0
