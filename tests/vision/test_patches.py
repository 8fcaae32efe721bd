"""The patch embedding that names what it cannot read."""

import pytest
import torch
from timm.layers import PatchEmbed

from vitalk.errors import UserError
from vitalk.vision.patches import Patches


def test_it_is_timms_in_all_else():
    ours, timms = Patches(16, 4, embed_dim=8), PatchEmbed(16, 4, embed_dim=8)
    timms.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours(images), timms(images))
    assert Patches(16, 4, dynamic_img_pad=True, strict_img_size=False)(torch.randn(1, 3, 15, 13)).shape[1] == 16


def test_pictures_that_do_not_fit():
    with pytest.raises(UserError, match="4 x 4 pixels do not tile a picture of 18 x 18"):
        Patches(18, 4)
    patches = Patches(16, 4)
    with pytest.raises(UserError, match=r"has 16 x 20 pixels, the model reads 16 x 16; .* img_size=\(16, 20\)"):
        patches(torch.randn(1, 3, 16, 20))
    with pytest.raises(UserError, match="are part of the network"):
        patches.set_input_size(patch_size=8)
    with pytest.raises(UserError, match="do not tile a picture of 15 x 16"):
        patches.set_input_size((15, 16))
    patches.set_input_size((16, 20))
    assert patches(torch.randn(1, 3, 16, 20)).shape[1] == 20
    with pytest.raises(UserError, match="do not tile a picture of 17 x 16"):
        Patches(16, 4, strict_img_size=False)(torch.randn(1, 3, 17, 16))
