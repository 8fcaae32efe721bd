"""Flows: they turn round, their determinants are those of their Jacobians, groups share what they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.flows import (
    ActNorm,
    AffineCoupling,
    Glow,
    InvertibleConv,
    MeanFlow,
    squeeze,
    unsqueeze,
    wavenet,
)
from vitalk.speech.acoustic.gated import fold


def moved(module, by=0.1):
    """The module, no longer as it began."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn_like(p))
    return module.eval()


def glow(**options):
    torch.manual_seed(0)
    return moved(Glow(**{"channels": 8, "hidden": 6, "steps": 4, "layers": 2, "condition": 3, "share": 2, **options}))


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
@torch.inference_mode()
def test_inverse_of_forward_is_the_identity(seed, pairs, share):
    flow, prior = glow(share=share), moved(MeanFlow(4, 6, 3, 2, condition=3))
    generator = torch.Generator().manual_seed(seed)
    x, condition = torch.randn(2, 8, 2 * pairs, generator=generator), torch.randn(2, 3, 2 * pairs, generator=generator)
    assert torch.allclose(flow.inverse(flow(x, condition)[0], condition), x, atol=1e-4)
    z = x[:, :4]
    assert torch.allclose(prior.inverse(prior(z, condition), condition), z, atol=1e-4)


def test_determinants_are_those_of_the_jacobians():
    flow, prior = glow(), moved(MeanFlow(4, 6, 3, 2, condition=3))
    x, condition = torch.randn(1, 8, 4), torch.randn(1, 3, 4)

    def determinant(function, x):
        jacobian = torch.autograd.functional.jacobian(lambda y: function(y.view(x.shape)).flatten(), x.flatten())
        return torch.linalg.slogdet(jacobian.double())[1]

    wanted = determinant(lambda y: flow(y, condition)[0], x)
    assert abs(wanted) > 0.1 and abs(wanted - flow(x, condition)[1][0]) < 1e-3
    assert abs(determinant(lambda z: prior(z, condition), x[:, :4])) < 1e-4


@torch.inference_mode()
def test_padding_changes_nothing():
    flow, prior, lengths = glow(), moved(MeanFlow(4, 6, 2, 2, condition=3)), torch.tensor([8, 4])
    mask = length_mask(lengths, 8)
    x, condition = torch.randn(2, 8, 8), torch.randn(2, 3, 8) * mask[:, None]
    together, gained = flow(x, condition, mask)
    alone, of_one = flow(x[1:, :, :4], condition[1:, :, :4])
    assert torch.allclose(together[1, :, :4], alone[0], atol=1e-5) and not together[1, :, 4:].any()
    assert torch.allclose(gained[1], of_one[0], atol=1e-4)
    back = flow.inverse(together, condition, mask)
    assert torch.allclose(back[1, :, :4], x[1, :, :4], atol=1e-4) and not back[1, :, 4:].any()
    z = x[:, :4] * mask[:, None]
    assert torch.allclose(prior(z, condition, mask)[1, :, :4], prior(z[1:, :, :4], condition[1:, :, :4])[0], atol=1e-5)


def test_couplings_begin_as_the_identity():
    x, condition = torch.randn(2, 8, 6), torch.randn(2, 3, 6)
    coupling = AffineCoupling(8, 6, wavenet(6, 2, 3, 3))
    y, gained = coupling(x, condition)
    assert torch.equal(y, x) and not gained.any()
    assert torch.equal(MeanFlow(8, 6, 4, 2, condition=3)(x, condition), x)


def test_groups_share_their_convolutions_and_nothing_else():
    flow = glow(steps=5, share=2)

    def ids(step, *names):
        layers = flow.steps[step].coupling.stack.layers
        return {
            id(p) for layer in layers for name in names if (part := getattr(layer, name)) for p in part.parameters()
        }

    shared, own = ("conv", "residual", "skip"), ("condition",)
    assert ids(0, *shared) == ids(1, *shared) and ids(2, *shared) == ids(3, *shared)
    assert not ids(0, *shared) & ids(2, *shared) and not ids(2, *shared) & ids(4, *shared)
    assert not ids(0, *own) & ids(1, *own)
    starts = {id(step.coupling.start.bias) for step in flow.steps} | {
        id(step.coupling.end.weight) for step in flow.steps
    }
    assert len(starts) == 10
    apart = sum(p.numel() for p in glow(steps=5, share=1).parameters())
    layers = glow(steps=5, share=1).steps[0].coupling.stack.layers
    group = sum(
        p.numel() for layer in layers for name in shared if (part := getattr(layer, name)) for p in part.parameters()
    )
    assert apart - sum(p.numel() for p in flow.parameters()) == 2 * group


@torch.inference_mode()
def test_folded_it_gives_the_same_and_folding_twice_does_no_harm():
    flow, x, condition = glow(), torch.randn(1, 8, 6), torch.randn(1, 3, 6)
    before = flow.inverse(x, condition)
    for _ in range(2):
        flow.fold(), fold(flow)
        assert torch.allclose(flow.inverse(x, condition), before, atol=1e-5)
    assert flow.steps[0].mix.inverted is not None and flow.train().steps[0].mix.inverted is None


def test_a_convolution_begins_as_a_rotation_of_its_groups():
    mix = InvertibleConv(4, 2)
    w = mix.weight()
    assert torch.allclose(w @ w.t(), torch.eye(4), atol=1e-5)
    x = torch.zeros(1, 16, 3)
    x[0, 5] = 1  # of the first time, the second of a pair of channels
    y, gained = mix(x)
    assert set(y[0, :, 0].nonzero().flatten().tolist()) == {4, 5, 12, 13} and torch.allclose(
        gained, torch.zeros(1), atol=1e-5
    )


def test_norms_are_fitted_to_a_batch():
    flow, mask = glow(), length_mask(torch.tensor([40, 30]), 40)
    x, condition = (3 + 2 * torch.randn(2, 8, 40)) * mask[:, None], torch.randn(2, 3, 40)
    flow.fit(x, condition, mask)
    y, _ = flow.steps[0].norm(squeeze(x), mask[:, 1::2])
    inside = y.transpose(0, 1)[:, mask[:, 1::2]]
    assert inside.mean(1).abs().max() < 1e-4 and (inside.std(1, correction=0) - 1).abs().max() < 1e-3
    dead = ActNorm(2)
    dead.fit(torch.zeros(1, 2, 5))
    assert dead.log_scale.isfinite().all()


def test_squeezing_is_undone():
    x = torch.randn(2, 4, 6)
    assert torch.equal(unsqueeze(squeeze(x)), x) and torch.equal(squeeze(x)[:, :4], x[..., ::2])


def test_learns_in_half_precision():
    flow, x, condition = glow().train(), torch.randn(2, 8, 8), torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        z, gained = flow(x, condition)
    (z.square().sum() / 2 - gained.sum()).backward()
    assert z.dtype == gained.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    exact, _ = flow(x, condition)
    assert torch.allclose(z, exact, atol=0.2)


def test_refuses_what_does_not_divide():
    with pytest.raises(UserError, match="5 frames are no multiple of 2"):
        glow()(torch.randn(1, 8, 5), torch.randn(1, 3, 5))
    with pytest.raises(UserError, match="6 bands"):
        Glow(6, condition=0)
    with pytest.raises(UserError, match="no halves"):
        MeanFlow(3)
    with pytest.raises(UserError, match="do not divide by 2"):
        InvertibleConv(3, 2)
