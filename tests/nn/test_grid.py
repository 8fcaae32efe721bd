"""Offsets between the tokens of a grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitalk.nn.grid import grid_offsets


@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_offsets_are_those_of_raster_positions(height, width):
    rows, columns = grid_offsets(height, width)
    place = [(i // width, i % width) for i in range(height * width)]
    assert rows.tolist() == [[a[0] - b[0] for b in place] for a in place]
    assert columns.tolist() == [[a[1] - b[1] for b in place] for a in place]
    assert torch.equal(rows, -rows.T) and torch.equal(columns, -columns.T)


def test_empty_grids_are_refused():
    with pytest.raises(ValueError, match="0 x 3"):
        grid_offsets(0, 3)
