"""Names of other people's weights, and weights that are one in ours."""

import torch

from vitalk.nn.checkpoints import joined, renamed, unwrapped


def test_patterns_are_replaced_one_after_the_other():
    table = ((r"^enc\.", "encoder."), (r"\.layer_(\d+)\.", lambda found: f".blocks.{int(found[1]) - 1}."),
             (r"^encoder\.blocks\.0\.", "first."))  # fmt: skip
    assert renamed("enc.layer_2.enc.weight", table) == "encoder.blocks.1.enc.weight"
    assert renamed("enc.layer_1.weight", table) == "first.weight" and renamed("head", table) == "head"


def test_parts_are_joined_in_order_whatever_theirs_in_the_file():
    parts = [(i, n, part) for i in (0, 1) for n, part in enumerate("vqk")]
    state = {f"{i}.attn.{part}.weight": torch.full((2, 3), 10.0 * i + n) for i, n, part in parts}
    found = joined({"head": torch.zeros(1), **state}, r"\.(attn)\.([qkv])\.", r".\1.qkv.", "qkv")
    assert set(found) == {"head", "0.attn.qkv.weight", "1.attn.qkv.weight"}
    assert found["1.attn.qkv.weight"][:, 0].tolist() == [11, 11, 12, 12, 10, 10]


def test_weights_are_taken_out_of_training_checkpoints():
    weights = {"head.weight": torch.zeros(1)}
    averaged = {"module.head.weight": torch.ones(1)}
    assert unwrapped(weights) == weights == unwrapped({"epoch": 3, "model": {"state_dict": weights}})
    both = {"model": weights, "model_ema": averaged}
    assert unwrapped(both) == {"head.weight": averaged["module.head.weight"]}
    assert unwrapped(both, averaged=False) == weights
