"""Which kernels a file really runs: onnxruntime's own profile, not what the graph hopes for."""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

INTEGER = ("MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "ConvInteger",
           "DynamicQuantizeMatMul")  # fmt: skip
FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "MatMulNBits", "Attention",
         "MultiHeadAttention")  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """The kernels of one run by operator: how many, and the microseconds that they took together."""

    counts: dict[str, int]
    microseconds: dict[str, float]

    @property
    def integer(self) -> int:
        """Products and convolutions that ran in integers."""
        return sum(self.counts.get(name, 0) for name in INTEGER)

    @property
    def in_float(self) -> int:
        """Products and convolutions that ran in float."""
        return sum(self.counts.get(name, 0) for name in FLOAT)


def profile(file: str | Path, feeds: dict[str, np.ndarray], threads: int = 1) -> Kernels:
    """Run an ONNX file twice in onnxruntime and say what the second run did. feeds: its inputs by name."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(2):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    second = nodes[len(nodes) // 2 :]
    counts = Counter(event["args"]["op_name"] for event in second)
    times: Counter[str] = Counter()
    for event in second:
        times[event["args"]["op_name"]] += event["dur"]
    return Kernels(dict(counts), {name: float(value) for name, value in times.items()})
