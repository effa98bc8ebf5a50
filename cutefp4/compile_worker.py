"""`python -m cutefp4.compile_worker`: plans in, one JSON line out for each (see compile_pool)."""

from __future__ import annotations

import json
import os
import sys
import time

from cutefp4 import compile as kernel_cache
from cutefp4 import dsl
from cutefp4.errors import CuteFP4Error
from cutefp4.plan import from_json


def _answer(line: str) -> dict:
    start = time.perf_counter()
    before = kernel_cache.stats().compiles
    error = None
    try:
        kernel_cache.artifacts(from_json(json.loads(line)))
    except CuteFP4Error as failure:
        error = str(failure)
    return {
        "compiled": kernel_cache.stats().compiles > before,
        "seconds": time.perf_counter() - start,
        "error": error,
    }


def main() -> None:
    """Serve standard input until it ends. What compilers print goes to standard error, not between the answers."""
    dsl.versions()  # loads the compiler, before there is a plan
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(line)) + "\n")


if __name__ == "__main__":
    main()
