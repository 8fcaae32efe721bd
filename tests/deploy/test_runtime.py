"""The eye in both engines."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vitalk.deploy.runtime import Eye, find_model
from vitalk.errors import UserError


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sees_what_torch_sees(engine, model_file, small_vit, tmp_path):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the optional engine is not installed")
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "a.png")
    eye = Eye.load(model_file, engine)
    seen = eye.see(tmp_path / "a.png", k=2)
    with Image.open(tmp_path / "a.png") as picture, torch.inference_mode():
        expected = small_vit(torch.from_numpy(eye.preprocess(picture))[None]).softmax(1)[0]
    assert [label for label, _ in seen] == [eye.labels[i] for i in expected.argsort(descending=True)[:2]]
    # OpenVINO computes in bfloat16 where the processor has it
    np.testing.assert_allclose([p for _, p in seen], expected.sort(descending=True).values[:2], atol=2e-2)


def test_probabilities_sum_to_one(model_file):
    seen = Eye.load(model_file).see(Image.new("L", (9, 9)), k=3)
    assert sum(p for _, p in seen) == pytest.approx(1) and seen == sorted(seen, key=lambda s: -s[1])


def test_needs_no_torch(model_file):
    code = "import sys; from vitalk import Eye; Eye.load(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(model_file)], check=True)


def test_bad_models_get_a_sentence(tmp_path, model_file):
    (tmp_path / "text.onnx").write_text("no model")
    bare = onnx.load(model_file)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    for name, words in (("none.onnx", "no model"), ("text.onnx", "not a model"), ("bare.onnx", "vitalk export")):
        with pytest.raises(UserError, match=words):
            Eye.load(tmp_path / name)
    with pytest.raises(UserError, match="Did you mean onnxruntime"):
        Eye.load(model_file, "onnxruntim")


def test_the_embedded_model_is_found_by_name_and_by_default():
    assert find_model(None) == find_model("eye")
    with pytest.raises(UserError, match="Did you mean eye"):
        find_model("eyes")
