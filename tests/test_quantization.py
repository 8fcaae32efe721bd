"""Quantization by name: all methods answer the same call."""

import pytest
import torch

from tests.nn.quant.test_sites import tiny_vit
from vitalk.errors import UserError
from vitalk.nn.quant.describe import arithmetic, bits_of
from vitalk.nn.quant.export import check_exportable
from vitalk.quantization import METHODS, quantize


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_form_that_runs_in_integers(name):
    model = tiny_vit(depth=1)
    steps = 1 if METHODS[name].steps else None
    quantized = quantize(name, model, images(), (8, 8), attention="float", steps=steps)
    check_exportable(quantized)
    assert set(arithmetic(quantized).values()) == {"int8"}
    assert not any(buffer.requires_grad for buffer in quantized.buffers())  # such a model could not be copied
    found, expected = quantized(images()), model(images())
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.98


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.mixed])
def test_mixed_precision_gives_sites_bits_of_their_own(name):
    torch.manual_seed(0)
    plain, mixed = (
        quantize(name, tiny_vit(), images(), (5, 5), attention="float", mixed=mixed) for mixed in (False, True)
    )
    assert len(set(list(bits_of(plain).values())[1:])) == 1 < len(set(bits_of(mixed).values()))


def test_refuses_what_a_method_has_not():
    for words, options in (
        ("Did you mean adalog", {"name": "adalg"}),
        ("reconstructs nothing", {"name": "repq-vit", "steps": 3}),
        ("one number of bits", {"name": "adalog", "mixed": True}),
        ("2 to 8", {"name": "adalog", "bits": (1, 8)}),
    ):
        with pytest.raises(UserError, match=words):
            quantize(**{"model": tiny_vit(), "images": images(), "bits": (8, 8), **options})
