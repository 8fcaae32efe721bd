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
