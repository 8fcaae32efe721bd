"""What autocast must leave alone."""

import torch

from vitalk.nn.precision import full_precision


def test_products_inside_keep_their_type_whether_autocast_is_on_or_not():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
    with full_precision(x):
        assert (x @ x).dtype == torch.float32
