"""SASS text of a cubin, by NVIDIA's nvdisasm: the PyPI wheel nvidia-cuda-nvdisasm, or a CUDA toolkit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cutefp4.errors import UnsupportedError


def find_nvdisasm() -> str:
    """Path of nvdisasm: on PATH, under CUDA_HOME or CUDA_PATH, or in an installed wheel.

    Raises:
        UnsupportedError: there is none.
    """
    places = [shutil.which("nvdisasm")]
    places += [Path(os.environ[name]) / "bin" / "nvdisasm" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    for directory in sys.path:
        places += sorted(Path(directory).glob("nvidia/*/bin/nvdisasm"), reverse=True)
    for place in places:
        if place and os.access(place, os.X_OK):
            return str(place)
    raise UnsupportedError(
        "no nvdisasm on this machine",
        "nvdisasm on PATH, under CUDA_HOME, or from PyPI",
        "pip install 'cutefp4[disasm]'",
    )


def disassemble(image: bytes) -> str:
    """SASS text of a cubin, as `nvdisasm -c` prints it.

    Raises:
        UnsupportedError: nvdisasm is missing, or does not know the cubin's architecture.
    """
    tool = find_nvdisasm()
    with tempfile.TemporaryDirectory(prefix="cutefp4-") as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(image)
        run = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True)
    if run.returncode:
        raise UnsupportedError(
            f"{tool} failed: {run.stderr.strip()}",
            "an nvdisasm at least as new as the DSL's compiler",
            "pip install -U nvidia-cuda-nvdisasm",
        )
    return run.stdout
