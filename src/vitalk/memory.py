"""How much memory a command takes."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vitalk.errors import UserError

# A child inherits its parent's high-water mark on Linux, so a bare interpreter stands in between.
WATCH = """
import resource, subprocess, sys
with open(sys.argv[1], "w") as report:
    done = subprocess.run(sys.argv[2:])
    report.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(done.returncode)
"""


def peak_memory(command: Sequence[str]) -> int:
    """Largest resident size of a command, bytes: the most physical memory that it held at any time.

    Run it fresh, for instance ``[sys.executable, "-c", "..."]``: a process never gives its own peak back.
    Raises UserError where the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "peak"
        watched = [sys.executable, "-I", "-S", "-c", WATCH, str(report), *map(str, command)]
        done = subprocess.run(watched, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise UserError(f"{' '.join(map(str, command))[:200]} failed: {said[-1] if said else done.returncode}")
        peak = int(report.read_text())
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kibibytes
