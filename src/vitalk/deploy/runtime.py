"""The eye: a classifier in an ONNX file that names what is in a picture, without torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from vitalk.errors import UserError, nearest

from .pictures import open_picture, to_rgb
from .preprocess import Preprocess

Engine = Literal["onnxruntime", "openvino"]
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Eye:
    """Sees: picture in, labels with probabilities out.

    name: of the model. labels: of the classes, in the order of the logits. preprocess: picture -> input.
    run: the engine, float32 [batch, 3, height, width] -> logits [batch, classes].

    >>> eye = Eye.load()
    >>> eye.see("picture.jpg", k=1)
    [('cat', 0.97)]
    """

    name: str
    labels: list[str]
    preprocess: Preprocess
    run: Run

    @classmethod
    def load(cls, model: str | Path | None = None, engine: Engine = "onnxruntime", threads: int | None = None) -> Self:
        """Open an ONNX file made by ``vitalk export`` or ``vitalk compress``, or a packaged model ("eye" by default).

        engine: "onnxruntime", or "openvino" (from ``vitalk[bench]``), which computes in bfloat16 where the CPU can.
        threads: of the engine; None lets it decide.

        Raises UserError for models and engines that do not exist, and for files that are damaged or carry no labels.
        """
        path = find_model(model)
        run, metadata = open_engine(path, engine, threads)
        if not {"vitalk.preprocess", "vitalk.labels"} <= metadata.keys():
            raise UserError(f"{path} does not say how to see with it; make it with vitalk export MODEL -o {path.name}")
        try:
            labels = [str(label) for label in json.loads(metadata["vitalk.labels"])]
        except (ValueError, TypeError):
            raise UserError(f"the labels in {path} cannot be read; export the model again") from None
        preprocess = Preprocess.from_json(metadata["vitalk.preprocess"])
        return cls(metadata.get("vitalk.model") or path.stem, labels, preprocess, run)

    def see(self, picture: str | Path | Image.Image, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` likeliest labels of a picture (a file or a PIL image) with their probabilities, likeliest first.

        Raises UserError for pictures that cannot be read.
        """
        if k < 1:
            raise UserError(f"k must be 1 or more, got {k}")
        if not isinstance(picture, str | Path | Image.Image):
            raise UserError(f"see takes a file or a PIL image, got {type(picture).__name__}")
        rgb = to_rgb(picture) if isinstance(picture, Image.Image) else open_picture(picture)
        return self.likeliest(self.logits(self.preprocess(rgb)[None])[0], k)

    def likeliest(self, logits: np.ndarray, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` likeliest labels of one picture's logits [classes] with their probabilities, likeliest first."""
        logits = logits.astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")[:k]
        return [(self.labels[i], float(shares[i])) for i in order]

    def describe(self, picture: str | Path | Image.Image) -> str:
        """What is in a picture as sentences to be said, such as "I see a cat. I am 97 percent sure."

        Raises UserError as ``see``.
        """
        return sentences(*self.see(picture, 1)[0])

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """float32 [batch, 3, height, width], as ``preprocess`` makes it -> logits float32 [batch, classes].

        Raises UserError for other shapes and for a model whose labels or numbers are broken.
        """
        batch, expected = np.asarray(batch), (3, *self.preprocess.size)
        if batch.ndim != 4 or batch.shape[1:] != expected or len(batch) == 0:
            raise UserError(
                f"the input must have the shape [batch, {', '.join(map(str, expected))}], got {batch.shape}"
            )
        out = self.run(np.ascontiguousarray(batch, np.float32))
        if out.shape != (len(batch), len(self.labels)):
            raise UserError(f"{self.name} has {len(self.labels)} labels but puts out {out.shape}; export it again")
        if not np.isfinite(out).all():
            raise UserError(f"{self.name} puts out numbers that are not finite; export it again from sound weights")
        return out


def sentences(label: str, probability: float) -> str:
    """What was seen, as sentences to be said."""
    name = label.replace("_", " ")
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"I see {article} {name}. I am {round(100 * probability)} percent sure."


def packaged_models() -> dict[str, Path]:
    """Name -> file of the models that ship with the package."""
    folder = Path(str(resources.files("vitalk"))) / "assets"
    return {path.stem: path for path in sorted(folder.glob("*.onnx"))}


def find_model(model: str | Path | None = None) -> Path:
    """The ONNX file that ``model`` names: a path, a packaged model's name, or None for "eye".

    Raises UserError where there is none.
    """
    packaged = packaged_models()
    name = "eye" if model is None else str(model)
    if name in packaged:
        return packaged[name]
    path = Path(name)
    if path.is_file():
        if path.suffix == ".onnx":
            return path
        raise UserError(f"{path} is not an ONNX file; make one with vitalk export {path} -o {path.stem}.onnx")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name an ONNX file")
    if path.suffix == ".onnx" or path.parent != Path("."):
        beside = [p.name for p in path.parent.glob("*.onnx")]
        raise UserError(f"there is no model at {path}.{nearest(path.name, beside)}")
    known = ", ".join(packaged) or "none"
    raise UserError(
        f"there is no packaged model {name} (there is: {known}); name an ONNX file, which"
        f" vitalk export {name} -o FILE.onnx makes of timm models.{nearest(name, [*packaged])}"
    )


def open_engine(path: Path, engine: Engine = "onnxruntime", threads: int | None = None) -> tuple[Run, dict[str, str]]:
    """An ONNX file in an engine, ready to be called, and the metadata that it carries. Raises as ``Eye.load``."""
    engines = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if engine not in engines:
        raise UserError(f"there is no engine {engine}; use onnxruntime or openvino.{nearest(engine, [*engines])}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be 1 or more, got {threads}")
    return engines[engine](path, threads)


def _onnxruntime(path: Path, threads: int | None) -> tuple[Run, dict[str, str]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine has a dozen kinds of its own, with no common ancestor
        raise _unreadable(path, error) from None
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0], session.get_modelmeta().custom_metadata_map


def _openvino(path: Path, threads: int | None) -> tuple[Run, dict[str, str]]:
    try:
        import openvino
    except ImportError:
        raise UserError('the engine openvino is not installed; run: pip install "vitalk[bench]"') from None
    config = {"PERFORMANCE_HINT": "LATENCY"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
    try:
        core = openvino.Core()
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", config)
    except Exception as error:
        raise _unreadable(path, error) from None
    carried = model.rt_info["framework"] if model.has_rt_info(["framework"]) else {}
    metadata = {key: str(value.value) for key, value in carried.items()}
    return lambda batch: np.array(compiled(batch)[0]), metadata


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[-1][-160:]
    return UserError(f"{path} is damaged or not a model that this engine runs ({reason}); export it again")
