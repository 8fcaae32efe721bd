"""What registered variants have in common."""

import timm

from vitalk.vision.variants import default_cfg


def test_a_configuration_is_imagenets_but_for_what_is_named():
    own = default_cfg(32, 10, classifier="head.fc", license="mit")
    assert own["input_size"] == (3, 32, 32) and own["num_classes"] == 10 and own["classifier"] == "head.fc"
    assert set(own) - set(default_cfg()) == {"license"} and own["mean"] == default_cfg()["mean"]


def test_feature_maps_are_those_of_the_variant_unless_others_are_named():
    assert timm.create_model("tic_tiny_cifar", features_only=True).feature_info.channels() == [32, 64, 128]
    named = timm.create_model("tic_tiny_cifar", features_only=True, out_indices=(1,))
    assert named.feature_info.channels() == [64]
