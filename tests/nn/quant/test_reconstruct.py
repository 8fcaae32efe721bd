"""Block reconstruction: units, what goes through them, and what learns."""

import timm
import torch
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.nn.quant import Policy, calibrate, place, switched_off
from vitalk.nn.quant.reconstruct import capture, reconstruct, units
from vitalk.vision.tokens import TokenReducer, Trunk


def test_units_are_stem_blocks_downsampling_and_head():
    assert list(units(place(tiny_vit(), 4, 4, Policy()))) == ["patch_embed", "blocks.0", "blocks.1", "head"]
    swin = list(units(place(tiny_swin(), 4, 4, Policy())))
    assert swin[0] == "patch_embed" and "layers.1.downsample" in swin and "layers.0.blocks.0" in swin
    assert swin[-1] == "head"
    trunk = units(place(Trunk(tiny_vit(), [TokenReducer(), TokenReducer()]), 4, 4, Policy()))
    assert list(trunk) == ["vit.patch_embed", "vit.blocks.0", "vit.blocks.1", "vit.head"]
    hybrid = units(place(timm.create_model("mobilevitv2_050", num_classes=3), 4, 4, Policy()))
    assert "stages.2.1" in hybrid and "stem" in hybrid


def test_what_goes_through_a_unit_is_kept_and_the_rest_is_not_run():
    model, images = place(tiny_vit(), 8, 8, Policy()), torch.randn(10, 3, 16, 16)
    later = []
    model.blocks[1].register_forward_hook(lambda *_: later.append(1))
    with switched_off(model):
        inputs, outputs = capture(model, model.blocks[0], images, batch=4)
        assert len(inputs) == 10 and not later
        torch.testing.assert_close(model.blocks[0](inputs), outputs)


def test_a_reconstructed_block_is_nearer_to_float_and_only_the_chosen_learn():
    torch.manual_seed(0)
    model, images = place(tiny_vit(drop_path_rate=0.5), 3, 3, Policy()), torch.randn(32, 3, 16, 16)
    with switched_off(model):
        inputs, targets = capture(model, model.blocks[0], images)
    calibrate(model, images)
    block = model.blocks[0]
    weights = [m.weight for m in block.modules() if isinstance(m, nn.Linear)]
    kept = {name: p.detach().clone() for name, p in block.named_parameters() if "norm" in name or "bias" in name}
    before = (block(inputs) - targets).square().mean().item()
    first, last = reconstruct(block, inputs, targets, [{"params": weights, "lr": 1e-3}], steps=40, batch=16)
    assert last < first
    assert (block(inputs) - targets).square().mean().item() < 0.9 * before
    for name, parameter in block.named_parameters():
        assert parameter.requires_grad
        if name in kept:
            assert torch.equal(parameter, kept[name])
    assert not block.training


def test_no_steps_change_nothing_and_the_penalty_sees_the_progress():
    model, images = place(tiny_vit(), 4, 4, Policy()), torch.randn(8, 3, 16, 16)
    calibrate(model, images)
    block, seen = model.blocks[0], []
    inputs, targets = capture(model, block, images)
    before = [p.detach().clone() for p in block.parameters()]
    groups = [{"params": [block.mlp.fc1.weight], "lr": 0.01}]
    reconstruct(block, inputs, targets, groups, steps=0)
    assert all(torch.equal(a, b) for a, b in zip(before, block.parameters(), strict=True))

    def penalty(progress):
        seen.append(progress)
        return block.mlp.fc1.weight.square().sum()

    reconstruct(block, inputs, targets, groups, steps=5, batch=16, penalty=penalty)
    torch.testing.assert_close(seen, [0.2, 0.4, 0.6, 0.8, 1.0])
    assert block.mlp.fc1.weight.square().sum() < before[-4].new_tensor(1e9)
