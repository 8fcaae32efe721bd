"""The eye: a model file and the engine that runs it, without torch."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from vitalk.errors import UserError, nearest

from .pictures import open_picture
from .preprocess import Preprocess

ENGINES = ("onnxruntime", "openvino")


class Eye:
    """A classifier from an ONNX file that carries its preprocessing and labels.

    >>> Eye.load().see("picture.jpg")
    [('cat', 0.97), ('dog', 0.01), ...]
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], preprocess: Preprocess, labels: list[str]):
        self.run, self.preprocess, self.labels = run, preprocess, labels

    @classmethod
    def load(cls, model: str | Path | None = None, engine: str = "onnxruntime", threads: int | None = None) -> Self:
        """A model file, a packaged model by name, or the embedded one.

        engine: "onnxruntime", or "openvino" where that package is installed. threads: all cores by default.
        Raises UserError for files and names that do not exist, are damaged or carry no preprocessing.
        """
        path = find_model(model)
        run = open_engine(path, engine, threads)
        preprocess, labels = run.metadata()
        return cls(run, preprocess, labels)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Images [batch, 3, height, width], normalised -> logits [batch, classes]."""
        return self.run(images)

    def see(self, picture: str | Path | Image.Image, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most likely labels of a picture with their probabilities, the likeliest first."""
        if not isinstance(picture, Image.Image):
            picture = open_picture(picture)
        logits = self.logits(self.preprocess(picture.convert("RGB"))[None])[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        return [(self.labels[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[:k]]


def find_model(model: str | Path | None) -> Path:
    """The file of a packaged model (``eye`` where none is named) or the file itself."""
    packaged = {f.stem: f for f in _assets().glob("*.onnx")}
    if model is None or str(model) in packaged:
        name = "eye" if model is None else str(model)
        if name not in packaged:
            raise UserError("this installation carries no embedded model; name one with --model FILE.onnx")
        return packaged[name]
    path = Path(model)
    if path.is_file():
        return path
    raise UserError(
        f"there is no model {model}; name an .onnx file or one of {', '.join(packaged) or 'no packaged models'}."
        f"{nearest(str(model), list(packaged))}"
    )


def _assets() -> Path:
    return Path(str(resources.files("vitalk"))) / "assets"


def open_engine(path: Path, engine: str = "onnxruntime", threads: int | None = None) -> "Engine":
    """The file in an engine; the engine is called with images and gives logits."""
    if engine not in ENGINES:
        raise UserError(f"there is no engine {engine}; choose {' or '.join(ENGINES)}.{nearest(engine, list(ENGINES))}")
    return (OnnxRuntime if engine == "onnxruntime" else OpenVino)(path, threads)


class OnnxRuntime:
    """A model file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes differ from release to release
            raise UserError(f"{path} is not a model that runs ({str(error).splitlines()[0][:120]})") from None
        self.path, self.input = path, self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [batch, 3, height, width] -> logits [batch, classes]."""
        return self.session.run(None, {self.input: images})[0]

    def metadata(self) -> tuple[Preprocess, list[str]]:
        """The preprocessing and the labels that the file carries."""
        return _read(self.session.get_modelmeta().custom_metadata_map, self.path)


class OpenVino:
    """A model file in OpenVINO, on the CPU; what is not quantized is computed in the processor's preferred format."""

    def __init__(self, path: Path, threads: int | None = None):
        try:
            import openvino
        except ImportError:
            raise UserError('OpenVINO is not installed; run pip install "vitalk[bench]" or use onnxruntime') from None
        core = openvino.Core()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            self.compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise UserError(f"{path} is not a model that runs ({str(error).splitlines()[0][:120]})") from None
        self.path, self.request = path, self.compiled.create_infer_request()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [batch, 3, height, width] -> logits [batch, classes]."""
        return np.array(self.request.infer([images])[0])

    def metadata(self) -> tuple[Preprocess, list[str]]:
        """The preprocessing and the labels that the file carries."""
        import onnx

        return _read({p.key: p.value for p in onnx.load(self.path, load_external_data=False).metadata_props}, self.path)


Engine = OnnxRuntime | OpenVino


def _read(meta: dict[str, str], path: Path) -> tuple[Preprocess, list[str]]:
    try:
        return Preprocess.from_json(meta["vitalk.preprocess"]), json.loads(meta["vitalk.labels"])
    except KeyError:
        raise UserError(f"{path} does not say how pictures are prepared; export it with vitalk export") from None
