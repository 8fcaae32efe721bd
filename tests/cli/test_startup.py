"""What starts without torch, and what registers with timm; every check in a fresh interpreter."""

import subprocess
import sys
import tomllib

import pytest

import vitalk
from vitalk.measurement import checkout


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# None in sys.modules makes an import fail: what passes here also runs where only the light core is installed.
WITHOUT_TORCH = "import sys\nfor name in ('torch', 'timm', 'lightning', 'onnx'): sys.modules[name] = None\n"


@pytest.mark.parametrize("args", [["--help"], ["systems"], ["systems", "show", "evit"], ["reproduce", "--help"]])
def test_commands_that_need_no_torch(args):
    code = f"{WITHOUT_TORCH}sys.argv = ['vitalk', *{args!r}]\nfrom vitalk.cli import main\nmain()"
    assert "evit" in fresh(code) or args == ["--help"]


@pytest.mark.parametrize("args", [["--help"], ["systems"]])
def test_nothing_heavy_is_imported(args):
    code = (
        f"import sys\nsys.argv = ['vitalk', *{args!r}]\nfrom vitalk.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'lightning', 'onnx', 'onnxruntime', 'openvino', 'matplotlib', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    assert "HEAVY []" in fresh(code)


@pytest.mark.parametrize("name", ["Eye", "Voice"])
def test_eye_and_voice_need_no_torch(name):
    assert name in fresh(f"{WITHOUT_TORCH}from vitalk import {name}\nprint({name}.__name__)")


@pytest.mark.parametrize(
    "first", ["vitalk, timm", "timm, vitalk", "vitalk.vision.tokens, timm", "vitalk.systems.evit.method, timm"]
)
def test_backbones_register_whatever_is_imported_first(first):
    code = (
        f"import {first}\n"
        "for name in ('t2t_vit_7', 'evit_deit_tiny', 'vitalk_eye'):\n"
        "    timm.create_model(name, num_classes=3)\n"
        "    print(timm.model_entrypoint(name).__module__.rpartition('.')[0])"
    )
    assert fresh(code).splitlines() == ["vitalk.systems.t2t_vit", "vitalk.systems.evit", "vitalk.vision"]


def test_version_is_the_one_of_the_package():
    pyproject = tomllib.loads((checkout() / "pyproject.toml").read_text())
    assert vitalk.__version__ == pyproject["project"]["version"]


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError, match="Ear"):
        _ = vitalk.Ear
