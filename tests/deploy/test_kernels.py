"""What onnxruntime says that it ran."""

import numpy as np
import torch

from tests.nn.quant.test_sites import tiny_vit
from vitalk.deploy.kernels import profile
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.systems.repq_vit import repq_vit


def test_quantized_products_run_in_integers_and_packed_ones_in_float(tmp_path):
    plain, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    labels = [str(i) for i in range(plain.num_classes)]
    preprocess = Preprocess((16, 16))
    model = repq_vit(plain, images, 4, 8, attention="float")
    feeds = {"image": np.zeros((2, 3, 16, 16), np.float32)}
    kernels = {
        name: profile(export_onnx(network, tmp_path / f"{name}.onnx", preprocess, labels, pack=name == "packed"), feeds)
        for name, network in (("float", plain), ("int8", model), ("packed", model))
    }
    assert kernels["float"].integer == 0 and kernels["float"].in_float >= 10
    assert kernels["int8"].counts["MatMulIntegerToFloat"] == kernels["int8"].integer == 10
    assert kernels["packed"].integer == 0 and kernels["packed"].counts["MatMulNBits"] == 10
    assert all(value >= 0 for value in kernels["int8"].microseconds.values())
