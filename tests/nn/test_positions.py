"""The sinusoidal position table."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitalk.nn.positions import sinusoid_table


@given(position=st.integers(0, 600), column=st.integers(0, 255))
def test_every_entry_follows_the_formula(position, column):
    angle = position / 10000 ** (2 * (column // 2) / 256)
    wanted = math.sin(angle) if column % 2 == 0 else math.cos(angle)
    assert sinusoid_table(position + 1, 256)[position, column].item() == pytest.approx(wanted, abs=1e-6)


@given(positions=st.integers(1, 50), half=st.integers(1, 40), shift=st.integers(0, 20))
def test_products_of_rows_depend_on_their_distance_alone(positions, half, shift):
    table = sinusoid_table(positions + shift, 2 * half).double()
    products = (table[shift:] * table[:positions]).sum(1)
    torch.testing.assert_close(products, products[:1].expand_as(products), atol=1e-4, rtol=0)


@given(dim=st.integers(1, 30))
def test_odd_widths_are_the_even_table_without_its_last_column(dim):
    table = sinusoid_table(5, dim)
    assert table.shape == (5, dim) and table.dtype == torch.float32
    assert torch.equal(table[0], (torch.arange(dim) % 2).float())


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (-1, 4)])
def test_refuses_empty_tables(shape):
    with pytest.raises(ValueError, match="at least one position"):
        sinusoid_table(*shape)
