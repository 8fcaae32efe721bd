"""The post-net's size and its padding; its values are checked within FastSpeech 2."""

import torch

from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.postnet import PostNet


def test_has_tacotron_s_size():
    assert sum(p.numel() for p in PostNet().parameters()) == 4_348_144


def test_padding_changes_nothing():
    net = PostNet(6, 8).eval()
    mel = torch.randn(2, 6, 20)
    together = net(mel, length_mask(torch.tensor([20, 9]), 20))
    assert torch.allclose(together[1, :, :9], net(mel[1:, :, :9])[0], atol=1e-5)


def test_a_causal_one_sees_no_later_frame():
    net, mel = PostNet(6, 8, causal=True).eval(), torch.randn(1, 6, 20)
    changed = mel.clone()
    changed[:, :, 12] += 1
    a, b = net(mel), net(changed)
    assert a.shape == mel.shape and len(net.norms) == 4
    assert torch.equal(a[:, :, :12], b[:, :, :12]) and not torch.allclose(a[:, :, 12:], b[:, :, 12:])
