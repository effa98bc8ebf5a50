"""Which backend serves a call, and the one place where a call reaches it.

    backend     runs on                                    code
    reference   any device                                 cutefp4.reference, plain PyTorch
    sm90        CUDA, compute capability 9.0               cutefp4.ops, CuTe-DSL kernels
    sm100       CUDA, compute capability 10.x              cutefp4.ops, CuTe-DSL kernels
    emulator    CPU tensors                                cutefp4.ops, the kernels' PTX executed on the CPU

Nothing falls back: a call whose backend lacks the operation raises.

How a kernel backend plugs in: `cutefp4.ops.OPS` is a dictionary {backend: {operation: function}} over the names of
`OPERATIONS`. Each function takes the arguments of the function of the same name here in `_REFERENCE`, which are the
oracle's plus the preallocated `out` and `batch_invariant` of the GEMMs, and returns the same kind of result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from cutefp4 import env, ops, reference
from cutefp4.errors import BackendUnavailableError, OperandError, UnsupportedError

BACKENDS = ("reference", "sm90", "sm100", "emulator")
OPERATIONS = (
    *("quantize", "quantize_grouped", "swiglu_quantize", "deinterleave_quantize", "rmsnorm_quantize", "dequantize"),
    *("gemm", "gemm_a16", "gemm_plan", "grouped_gemm"),
)
"""The public functions; backends also have "gemm_tree", the gemm of a composed epilogue."""
CAPABILITY_MAJOR = {9: "sm90", 10: "sm100"}


def choose(device: torch.device, requested: str | None = None) -> str:
    """The backend for tensors on `device`.

    Args:
        device: where the operands are.
        requested: a name of `BACKENDS`; None or "auto" follows CUTEFP4_BACKEND, and with that unset the device: CPU
            tensors go to "reference", CUDA tensors to the kernels of their compute capability.

    Raises:
        OperandError: no backend has this name.
        BackendUnavailableError: the backend does not serve tensors on this device.
    """
    name = requested or "auto"
    if name == "auto":
        name = env.read("CUTEFP4_BACKEND")
    if name == "auto":
        return "reference" if device.type == "cpu" else native(device)
    if name not in BACKENDS:
        raise OperandError(f"backend={name!r}", f"auto, {', '.join(BACKENDS)}", "choose one of these backends")
    if name == "emulator" and device.type != "cpu":
        raise BackendUnavailableError(
            f"backend='emulator' with tensors on {device}", "CPU tensors", "call .cpu() first"
        )
    if name in CAPABILITY_MAJOR.values() and (device.type != "cuda" or native(device) != name):
        raise BackendUnavailableError(
            f"backend={name!r} with tensors on {device}",
            f"CUDA tensors on a GPU that {name!r} is for",
            "move the tensors there, or name no backend",
        )
    return name


@cache
def native(device: torch.device) -> str:
    """The kernel backend of a CUDA device, by compute capability.

    Raises:
        UnsupportedError: no kernels exist for this device.
    """
    fix = "use one of these GPUs, or pass backend='reference' (plain PyTorch, slow, any device)"
    if device.type != "cuda":
        raise UnsupportedError(f"tensors on {device}", "CPU or CUDA tensors", fix)
    major, minor = torch.cuda.get_device_capability(device)
    if major == 12:
        fix = "the tensor cores of this GPU have no tcgen05 (kernels/sm100) and no wgmma (kernels/sm90); " + fix
    if major not in CAPABILITY_MAJOR or (major == 9 and minor != 0):
        given = f"{torch.cuda.get_device_name(device)} with compute capability {major}.{minor}"
        raise UnsupportedError(given, "9.0 (H100, H200) and 10.x (B200, B300)", fix)
    return CAPABILITY_MAJOR[major]


def run(operation: str, backend: str, *args, **kwargs):
    """Call `operation` (a name of `OPERATIONS`) on a backend that `choose` returned.

    Raises:
        UnsupportedError: this backend does not have the operation.
    """
    if backend == "reference":
        return _run_reference(operation, *args, **kwargs)
    available = kernel_operations(backend)
    if operation not in available:
        raise UnsupportedError(
            f"{operation} on backend {backend!r}",
            f"{backend!r} has {', '.join(available) or 'no operations in this release'}",
            "pass backend='reference' (plain PyTorch, slow, any device)",
        )
    return available[operation](*args, **kwargs)


@torch._disable_dynamo(recursive=True)
def _run_reference(operation: str, *args, **kwargs):
    # Never compiled: a code generator would contract and reorder the oracle's roundings. torch.compiler.disable would
    # import torch._dynamo here (nine tenths of what `import cutefp4` takes beyond torch); torch's own form does so at
    # the first call.
    return _REFERENCE[operation](*args, **kwargs)


def kernel_operations(backend: str) -> dict[str, Callable]:
    """The operations that a kernel backend has, by name; {} if there are none yet."""
    return ops.OPS.get(backend, {})


@dataclass(frozen=True)
class Status:
    """Whether a backend works on this machine: its name, the answer, the reason, and the operations that it has."""

    name: str
    usable: bool
    reason: str
    operations: tuple[str, ...]


def status(name: str) -> Status:
    """What `cutefp4 doctor` says about a backend."""
    if name == "reference":
        return Status(name, True, "plain PyTorch, any device", OPERATIONS)
    operations = tuple(kernel_operations(name))
    if name == "emulator":
        reason = "executes the kernels' PTX on the CPU; ask for it with CUTEFP4_BACKEND=emulator"
        return Status(name, bool(operations), reason if operations else "no kernels in this release", operations)
    wanted = {"sm90": "compute capability 9.0 (H100, H200)", "sm100": "compute capability 10.x (B200, B300)"}[name]
    found = [f"{torch.cuda.get_device_name(i)} ({m}.{n})" for i, m, n in _devices() if CAPABILITY_MAJOR.get(m) == name]
    if not found:
        return Status(name, False, f"no GPU of {wanted} here", operations)
    return Status(name, bool(operations), ", ".join(found), operations)


def _devices() -> list[tuple[int, int, int]]:
    """(index, major, minor) of every CUDA device."""
    return [(i, *torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]


def _reference_gemm(a, b, *, out=None, batch_invariant=False, **kwargs) -> torch.Tensor:
    # The oracle's sums do not depend on M, so batch_invariant asks nothing of it.
    return _into(out, reference.gemm(a, b, **kwargs))


def _into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    return result if out is None else out.copy_(result)


def _reference_gemm_tree(a, b, tree, tensors, *, out=None, batch_invariant=False, **kwargs) -> torch.Tensor:
    return _into(out, reference.gemm_tree(a, b, tree, tensors, **kwargs))


def _reference_gemm_a16(x, w, *, out=None, batch_invariant=False, **kwargs) -> torch.Tensor:
    return _into(out, reference.gemm_a16(x, w, **kwargs))


@dataclass(frozen=True)
class ReferenceGemm:
    """What the reference does for a product: its plan, as the kernel backends have theirs."""

    kind: str
    m: int
    n: int
    k: int
    batch: int
    out_dtype: str
    epilogue: str

    def explain(self) -> str:
        """How the oracle computes this product."""
        how = "exact sums (integers in fp64)" if self.kind == "W4A4" else "sums in fp64"
        return (
            f"{self.kind} {self.m}x{self.n}x{self.k}, batch {self.batch}, D {self.out_dtype}\n"
            f"reference: plain PyTorch, {how}, rounded once to fp32; then {self.epilogue}, each operation in fp32"
        )


def _reference_gemm_plan(a, b, *, out_dtype, tree=None, bias=None, activation=None, c=None, **_) -> ReferenceGemm:
    steps = ["outer scales", *(["bias"] if bias is not None else []), *([activation] if activation else [])]
    epilogue = " + ".join(steps + (["C"] if c is not None else [])) if tree is None else "the composed epilogue"
    is_a16 = isinstance(a, torch.Tensor)
    rows, batch = (a.shape[0], 1) if is_a16 else (a.rows, a.batch_shape[0] if a.batch_shape else 1)
    dtype = str(out_dtype).removeprefix("torch.")
    return ReferenceGemm("W4A16" if is_a16 else "W4A4", rows, b.rows, b.k, batch, dtype, epilogue)


def _reference_grouped_gemm(a, b, *, out=None, batch_invariant=False, **kwargs) -> torch.Tensor:
    return _into(out, reference.grouped_gemm(a, b, **kwargs))


_REFERENCE = {
    "quantize": reference.quantize,
    "quantize_grouped": reference.quantize_grouped,
    "swiglu_quantize": reference.swiglu_quantize,
    "deinterleave_quantize": reference.deinterleave_quantize,
    "rmsnorm_quantize": reference.rmsnorm_quantize,
    "dequantize": reference.dequantize,
    "gemm": _reference_gemm,
    "gemm_tree": _reference_gemm_tree,
    "gemm_a16": _reference_gemm_a16,
    "gemm_plan": _reference_gemm_plan,
    "grouped_gemm": _reference_grouped_gemm,
}
