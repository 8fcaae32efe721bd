"""One engine, timed in a process of its own: ``python -m vitalk.deploy.contest ENGINE FILE BATCH...``.

Engines keep thread pools that spin and clash, so each of a benchmark's rows runs alone; the benchmark takes the rows
in turns, several rounds, so that a machine that drifts is fair to all.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitalk.errors import UserError

MODEL, SIZE = "deit_small_patch16_224", 224
THREADS_ENV = {"OPENBLAS_NUM_THREADS": "1"}


def timed(run: Callable[[], object], warmup: int = 3, seconds: float = 4.0) -> float:
    """Median seconds of a call, of at least five."""
    for _ in range(warmup):
        run()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def in_own_process(engine: str, file: Path | None, batches: list[int]) -> dict[int, float]:
    """Images a second at each batch size. Raises UserError where the engine fails, with its last words."""
    import os

    command = [sys.executable, "-m", "vitalk.deploy.contest", engine, str(file or "-"), *map(str, batches)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS_ENV})
    if done.returncode:
        raise UserError(f"{engine} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return {int(k): v for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def _torch_runner(engine: str) -> Callable[[np.ndarray], object]:
    import timm
    import torch

    model = timm.create_model(MODEL).eval()
    if engine == "torch.compile":
        model = torch.compile(model, dynamic=False)

    def run(x: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(x))

    return run


def _peak(kind: str) -> float:
    """Multiply-accumulates a second of a large matrix product: what this machine can reach in this arithmetic.

    In single precision the faster of torch and onnxruntime: torch's library does not know every processor.
    """
    n = 2048
    runs = [] if kind == "bf16" else [_product(n, kind)]
    if kind != "int8":
        import torch

        a, b = (torch.randn(n, n).to(torch.bfloat16 if kind == "bf16" else torch.float32) for _ in range(2))
        runs.append(lambda: a @ b)
    return max(n**3 / timed(run, seconds=2) for run in runs)


def _product(n: int, kind: str) -> Callable[[], object]:
    """A product of n x n matrices in onnxruntime, in int8 (u8 times s8) or single precision."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    if kind == "int8":
        operator, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
        a, w = rng.integers(0, 255, (n, n), dtype=np.uint8), rng.integers(-127, 127, (n, n), dtype=np.int8)
    else:
        operator, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
        a, w = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "w"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", types[0], [n, n])],
        [helper.make_tensor_value_info("c", types[1], [n, n])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def main(engine: str, file: str, *batches: str) -> None:
    """Print {batch: images a second} as JSON, or the peak in MACs a second for ``peak`` engines."""
    if engine.startswith("peak-"):
        print(json.dumps({"1": _peak(engine.removeprefix("peak-"))}))
        return
    if engine in ("timm eager", "torch.compile"):
        run = _torch_runner(engine)
    else:
        from vitalk.deploy.runtime import open_engine

        run, _ = open_engine(Path(file), engine)
    rng, rates = np.random.default_rng(0), {}
    for batch in map(int, batches):
        x = rng.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)
        rates[batch] = batch / timed(lambda x=x: run(x))
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
