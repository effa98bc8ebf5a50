"""Run NVIDIA's CuTe DSL examples in the emulator, unchanged, and print what came out.

    git clone https://github.com/NVIDIA/cutlass            (anywhere outside this tree)
    python perf/run_cutlass_examples.py PATH/TO/cutlass [--only TEXT] [--further] [--seed N] [--jobs N] [--json FILE]

Every example checks its own result against its own reference and raises if it is wrong; that check decides here too.
Each runs in a process of its own. With ``--seed`` the adversarial scheduler runs it instead of the eager one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from further_cutlass_examples import FURTHER

EXAMPLES = Path("examples/python/CuTeDSL")
BLACKWELL, HOPPER = "cute/blackwell", "cute/hopper"
TUTORIAL = f"{BLACKWELL}/tutorial/tutorial_gemm"
BLOCKSCALED = f"{BLACKWELL}/kernel/blockscaled_gemm/dense_blockscaled_gemm_persistent.py"
GROUPED_BLOCKSCALED = f"{BLACKWELL}/kernel/blockscaled_grouped_gemm/grouped_blockscaled_gemm.py"
DENSE = f"{BLACKWELL}/kernel/dense_gemm"


@dataclass(frozen=True)
class Example:
    """One run: a script below the examples' folder and its arguments."""

    script: str
    arguments: str
    arch: str = "sm_100a"

    @property
    def title(self) -> str:
        return f"{Path(self.script).stem} {self.arguments}".strip()


def _blockscaled() -> list[Example]:
    """Tiles, clusters, 1 and 2 CTAs, output types and majors, ragged sizes, several batches, MX formats."""
    base = "--tolerance 1e-3"
    shapes = [((128, 64), (1, 1)), ((128, 128), (1, 1)), ((128, 192), (1, 1)), ((128, 256), (1, 1)), ((128, 128), (2,
              1)),
              ((128, 128), (1, 2)), ((128, 256), (2, 2)), ((256, 64), (2, 1)), ((256, 128), (2, 1)), ((256, 192), (2,
              1)),
              ((256, 256), (2, 1)), ((256, 128), (2, 2)), ((256, 128), (4, 1)), ((256, 256), (4, 2))]  # fmt: skip
    out = []
    for tile, cluster in shapes:
        tm, tn = tile
        m, n = max(512, tm * cluster[0]), max(256, 2 * tn) if tn != 192 else 384
        out.append(f"--mnkl {m},{n},512,1 --mma_tiler_mn {tm},{tn} --cluster_shape_mn {cluster[0]},{cluster[1]}")
    tile = "--mma_tiler_mn 128,128 --cluster_shape_mn 1,1"
    out += [f"--mnkl 256,256,512,1 {tile} --c_dtype {c}" for c in ("Float32", "BFloat16", "Float8E4M3FN")]
    out += [f"--mnkl 256,256,512,1 {tile} --c_major m", f"--mnkl 200,160,320,1 {tile}", f"--mnkl 256,128,256,3 {tile}",
            "--mnkl 200,160,320,1 --mma_tiler_mn 256,128 --cluster_shape_mn 2,1",
            f"--mnkl 256,256,512,1 {tile} --sf_dtype Float8E8M0FNU --sf_vec_size 32",
            f"--mnkl 256,256,512,1 {tile} --sf_dtype Float8E8M0FNU --sf_vec_size 16",
            *(f"--mnkl 256,256,512,1 {tile} --a_dtype {t} --b_dtype {t} --sf_dtype Float8E8M0FNU --sf_vec_size 32"
              for t in ("Float8E4M3FN", "Float8E5M2"))]  # fmt: skip
    return [Example(BLOCKSCALED, f"{line} {base}") for line in out]


def _grouped() -> list[Example]:
    sizes = '--num_groups 3 --problem_sizes_mnkl "(256,128,256,1),(128,384,512,1),(512,128,128,1)"'
    out = [f"{sizes} --mma_tiler_mn 128,128 --cluster_shape_mn 1,1",
           f"{sizes} --mma_tiler_mn 256,128 --cluster_shape_mn 2,1",
           f"{sizes} --mma_tiler_mn 128,128 --cluster_shape_mn 1,2",
           f"{sizes} --mma_tiler_mn 256,128 --cluster_shape_mn 2,2"]  # fmt: skip
    return [
        Example(GROUPED_BLOCKSCALED, f"{line} --sf_dtype Float8E4M3FN --sf_vec_size 16 --tolerance 1e-2")
        for line in out
    ]


EXAMPLES_RUN = [
    Example(f"{TUTORIAL}/nvfp4_gemm_0.py", "--mnkl 256,512,512,1"),
    Example(f"{TUTORIAL}/nvfp4_gemm_1.py", "--mnkl 512,512,512,1"),
    *[Example(f"{TUTORIAL}/fp16_gemm_{i}.py", "--mnk 512,512,256") for i in ("0", "1", "2", "3", "3_1", "4", "5", "6")],
    *_blockscaled(),
    *_grouped(),
    Example(f"{BLACKWELL}/kernel/blockscaled_gemm/dense_blockscaled_gemm_persistent_prefetch.py",
    "--mnkl 512,256,512,1"),
    Example(f"{BLACKWELL}/kernel/blockscaled_gemm/dense_blockscaled_gemm_persistent_amax.py", "--mnkl 512,256,512,1"),
    Example(f"{DENSE}/dense_gemm.py", "--mnkl 256,256,256,1 --mma_tiler_mn 128,128"),
    Example(f"{DENSE}/dense_gemm.py",
    "--mnkl 512,256,256,1 --mma_tiler_mn 256,128 --cluster_shape_mn 2,1 --use_2cta_instrs --use_tma_store"),
    Example(f"{DENSE}/dense_gemm_software_pipeline.py", "--mnkl 256,256,256,1 --mma_tiler_mn 128,128"),
    Example(f"{DENSE}/dense_gemm_alpha_beta_persistent.py", "--mnkl 256,256,256,1 --mma_tiler_mn 128,128"),
    Example(f"{DENSE}/dense_gemm_persistent.py", "--mnkl 256,256,256,1"),
    Example(f"{DENSE}/dense_gemm_persistent_dynamic.py", "--mnkl 256,256,256,1"),
    Example(f"{BLACKWELL}/kernel/grouped_gemm/grouped_gemm.py", "--tolerance 1e-2"),
    Example(f"{HOPPER}/kernel/dense_gemm/dense_gemm.py", "--mnkl 256,256,256,1", "sm_90a"),
    Example(f"{HOPPER}/kernel/dense_gemm/dense_gemm_persistent.py", "--mnkl 256,256,256,1", "sm_90a"),
    Example(f"{HOPPER}/kernel/dense_gemm/dense_gemm_persistent.py",
            "--mnkl 512,512,256,1 --tile_shape_mn 128,256 --cluster_shape_mn 2,1", "sm_90a"),
    Example(f"{HOPPER}/kernel/dense_gemm/dense_gemm_fp8_2xacc.py", "--mnkl 256,256,256,1", "sm_90a"),
    Example(f"{HOPPER}/kernel/grouped_gemm/grouped_gemm.py",
            '--num_groups 2 --problem_sizes_mnkl "(256,128,256,1),(128,256,128,1)"', "sm_90a"),
]  # fmt: skip


ALL = EXAMPLES_RUN + [
    Example(f"{folder}/{line.split(' ')[0]}.py", line.partition(" ")[2], arch)
    for (folder, arch), lines in FURTHER.items()
    for line in lines
]


def run_one(example: Example, checkout: Path, seed: int | None, sms: int) -> None:
    """In this process: the script as ``__main__``, under the emulator; the last line of output is a JSON summary."""
    import shlex

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(1)
    from cuda_on_cpu import cuda_on_cpu

    from cutefp4 import emulator

    script = checkout / EXAMPLES / example.script
    sys.argv = [str(script), *shlex.split(example.arguments)]
    sys.path[:0] = [str(checkout / EXAMPLES), str(script.parent)]
    start = time.perf_counter()
    with emulator.device(example.arch, seed=seed, sms=sms) as dev, cuda_on_cpu(example.arch, sms):
        runpy.run_path(str(script), run_name="__main__")
        report = dev.report()
    warnings = sorted({f.kind for f in report.findings})
    print(json.dumps({"launches": report.launches, "seconds": report.seconds, "total": time.perf_counter() - start,
                      "findings": warnings}))  # fmt: skip


def spawn(number: int, args: argparse.Namespace) -> dict:
    """Run example ``number`` in a process of its own; what happened."""
    example = ALL[number]
    command = [sys.executable, __file__, str(args.checkout), "--one", str(number), "--sms", str(args.sms)]
    command += [] if args.seed is None else ["--seed", str(args.seed)]
    environment = os.environ | {
        "CUTE_DSL_ARCH": example.arch,
        "OMP_NUM_THREADS": "1",
        "CUTE_DSL_DISABLE_FILE_CACHING": "1",
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return {"title": example.title, "arch": example.arch, "ok": False, "why": f"no end after {args.timeout} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        return {"title": example.title, "arch": example.arch, "ok": True} | json.loads(lines[-1])
    tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-args.tail :]
    return {"title": example.title, "arch": example.arch, "ok": False, "why": "\n".join(tail)}


def commit_of(checkout: Path) -> str:
    found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "(not a git checkout)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default="", help="a regular expression for the titles to run")
    parser.add_argument("--seed", type=int, default=None, help="adversarial scheduling with this seed")
    parser.add_argument("--sms", type=int, default=8, help="SMs of the emulated device")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one example")
    parser.add_argument("--tail", type=int, default=6, help="lines to show of a failure")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--further", action="store_true", help="also those of further_cutlass_examples.py")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        run_one(ALL[args.one], args.checkout.resolve(), args.seed, args.sms)
        return 0
    chosen = ALL if args.further else EXAMPLES_RUN
    numbers = [i for i, e in enumerate(chosen) if re.search(args.only, e.title)]
    print(f"NVIDIA/cutlass at {commit_of(args.checkout)}, {'eager' if args.seed is None else f'seed {args.seed}'}\n")
    print(
        f"| {'example':100} | arch    | result | emulated s | warnings |\n"
        f"|{'-' * 102}|---------|--------|-----------:|---|"
    )
    results = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for r in pool.map(lambda i: spawn(i, args), numbers):
            results.append(r)
            seconds = f"{r['seconds']:10.2f}" if r["ok"] else ""
            notes = ", ".join(r.get("findings", []))
            print(
                f"| {r['title']:100} | {r['arch']:7} | {'right' if r['ok'] else 'FAILED':6} | {seconds:10} | {notes} |",
                flush=True,
            )
            if not r["ok"]:
                print("    " + r["why"].replace("\n", "\n    "), flush=True)
    print(f"\n{sum(r['ok'] for r in results)} of {len(results)} right")
    if args.json:
        args.json.write_text(
            json.dumps({"commit": commit_of(args.checkout), "seed": args.seed, "results": results}, indent=1)
        )
    return 0 if all(r["ok"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
