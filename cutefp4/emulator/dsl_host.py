"""The DSL's side of an emulated device: its host code runs unchanged over our stand-in for the CUDA runtime.

Compiled host functions load a fat binary, find kernels in it by name and launch them; :class:`HostRuntime` receives
these calls from native/host_runtime.c and finds the PTX that belongs to a binary by the hash of the cubin in it.
:func:`dsl_on_emulator` is what has to be different in the DSL on a machine without a GPU: which runtime library its
functions link, how many devices and SMs there are, and that CPU tensors count as device memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

from cutefp4.dsl import compiling_plan

from .errors import EmulatorError
from .relink import relink, runtime_names

LAUNCH_FAILURE = 719
DLPACK_CUDA = 2
FATBIN_MAGIC = 0xBA55ED50
FATBIN_WRAPPER_MAGIC = 0x466243B1

_LOAD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p)
_DIMS = ctypes.POINTER(ctypes.c_uint32)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, _DIMS, _DIMS, _DIMS, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
)
_ATTRIBUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)

_ptx_by_cubin: dict[bytes, str] = {}


def register_ptx(cubin: bytes, ptx: str) -> None:
    """Remember which PTX a cubin was assembled from; launches of its kernels execute that text."""
    _ptx_by_cubin[hashlib.sha256(cubin).digest()] = ptx


def elf_images(image: bytes) -> Iterator[bytes]:
    """The ELF files inside a fat binary (or the image itself if it is one)."""
    at = image.find(b"\x7fELF")
    while at >= 0:
        # e_shoff, e_shentsize, e_shnum: the section table ends the file (cubins put program headers behind it)
        header = image[at : at + 64]
        phoff, shoff = (int.from_bytes(header[o : o + 8], "little") for o in (32, 40))
        phsize, phnum, shsize, shnum = (int.from_bytes(header[o : o + 2], "little") for o in (54, 56, 58, 60))
        end = at + max(phoff + phsize * phnum, shoff + shsize * shnum)
        yield image[at:end]
        at = image.find(b"\x7fELF", end)


def read_image(address: int) -> bytes:
    """The bytes of a fat binary or of an ELF file at ``address``; a fat binary may be reached through its wrapper."""
    magic = ctypes.c_uint32.from_address(address).value
    if magic == FATBIN_WRAPPER_MAGIC:
        return read_image(ctypes.c_uint64.from_address(address + 8).value)
    if magic == FATBIN_MAGIC:
        header = ctypes.c_uint16.from_address(address + 6).value
        return ctypes.string_at(address, header + ctypes.c_uint64.from_address(address + 8).value)
    header = ctypes.string_at(address, 64)
    if header[:4] != b"\x7fELF":
        raise EmulatorError(
            f"the host code loads a binary that is neither a fat binary nor ELF (starts {header[:8]!r})"
        )
    return next(elf_images(header + ctypes.string_at(address + 64, _elf_size(header) - 64)))


def _elf_size(header: bytes) -> int:
    phoff, shoff = (int.from_bytes(header[o : o + 8], "little") for o in (32, 40))
    phsize, phnum, shsize, shnum = (int.from_bytes(header[o : o + 2], "little") for o in (54, 56, 58, 60))
    return max(phoff + phsize * phnum, shoff + shsize * shnum)


class HostRuntime:
    """Receives the calls of compiled host code and turns them into launches of PTX.

    ``launch(ptx, kernel, grid, block, cluster, shared_bytes, args)`` runs one kernel; ``args`` is the host's array of
    pointers, one to each parameter's bytes. An exception in it fails the host call and is raised again by
    :meth:`raise_pending`, never through the host's C frames.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        launch: Callable,
        attribute: Callable[[int], int],
        notice: Callable[[object], None] = lambda tensor: None,
    ):
        self.notice = notice  # called with every tensor that is about to be given to a kernel
        self._images: dict[int, str] = {}
        self._kernels: dict[int, tuple[str, str]] = {}
        self._handles = itertools.count(0x1000, 16)
        self._launch = launch
        self.pending: BaseException | None = None
        self._library = library
        self._callbacks = (
            _LOAD(self._guard(self._load)),
            _KERNEL(self._guard(self._find)),
            _LAUNCH(self._guard(self._run)),
            _ATTRIBUTE(attribute),
            _ERROR(self._refuse),
        )

    def connect(self) -> None:
        self._library.host_runtime_connect(*self._callbacks)

    def disconnect(self) -> None:
        self._library.host_runtime_connect(None, None, None, None, None)

    def raise_pending(self) -> None:
        """Raise what a launch raised, if anything."""
        error, self.pending = self.pending, None
        if error is not None:
            raise error

    def _guard(self, call: Callable) -> Callable:
        def guarded(*args) -> int:
            try:
                call(*args)
                return 0
            except BaseException as error:
                self.pending = self.pending or error
                return LAUNCH_FAILURE

        return guarded

    def _load(self, library, image: int) -> None:
        data = read_image(image)
        for elf in elf_images(data):
            ptx = _ptx_by_cubin.get(hashlib.sha256(elf).digest())
            if ptx is not None:
                handle = next(self._handles)
                self._images[handle] = ptx
                library[0] = handle
                return
        raise EmulatorError(
            "a kernel was compiled outside the emulated device, and its PTX is not known; compile it inside "
            "`with cutefp4.emulator.device(...)`, or give it to cutefp4.emulator.register_ptx(cubin, ptx)"
        )

    def _find(self, kernel, library: int, name: bytes) -> None:
        handle = next(self._handles)
        self._kernels[handle] = (self._images[library], name.decode())
        kernel[0] = handle

    def _refuse(self, call: bytes, what: bytes) -> None:
        self.pending = self.pending or EmulatorError(f"{call.decode()}: {what.decode()}")

    def _run(self, kernel: int, grid, block, cluster, shared_bytes: int, args) -> None:
        if self.pending is not None:  # the call that failed before may have left this launch without its arguments
            raise self.pending
        ptx, name = self._kernels[kernel]
        self._launch(ptx, name, tuple(grid[:3]), tuple(block[:3]), tuple(cluster[:3]), shared_bytes, args)


class EmulatedHardwareInfo:
    """Answers the DSL's questions about a GPU for an emulated device with ``sms`` SMs."""

    sms = 8

    def __init__(self, device_id: int = 0):
        self.device_id = device_id

    def get_max_active_clusters(self, cluster_size: int, stream: object = None) -> int:
        return self.sms // cluster_size

    def get_l2_cache_size_in_bytes(self) -> int:
        return 64 << 20

    def get_device_multiprocessor_count(self) -> int:
        return self.sms


class _CudaCapsule:
    """A tensor's DLPack capsule in which the device says CUDA."""

    def __init__(self, tensor: object):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return as_cuda(self.tensor.__dlpack__())

    def __dlpack_device__(self):
        return (DLPACK_CUDA, 0)


def as_cuda(capsule: object) -> object:
    """Change the device type inside a DLPack capsule to CUDA, in place."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]
    for name, at in ((b"dltensor", 8), (b"dltensor_versioned", 40)):
        if is_valid(capsule, name):
            ctypes.c_int32.from_address(get(capsule, name) + at).value = DLPACK_CUDA
    return capsule


def device_tensor(tensor: object) -> object:
    """A TVM-FFI tensor over a CPU tensor's memory that says it is CUDA memory: what compiled functions accept."""
    import tvm_ffi

    return tvm_ffi.from_dlpack(_CudaCapsule(tensor))


def _device_argument(arg: object) -> object:
    """An argument of a compiled function: CPU tensors become device tensors, also inside tuples."""
    if isinstance(arg, tuple):
        return tuple(_device_argument(a) for a in arg)
    return device_tensor(arg) if hasattr(arg, "__dlpack__") else arg


def load_object(runtime: HostRuntime, data: bytes, symbol: str, library_path: str) -> Callable:
    """The exported function ``symbol`` of an object file's bytes, linked with the emulator instead of the CUDA runtime.

    It takes CPU tensors and scalars in the order of its parameters; errors of a launch are raised as they are.
    """
    import tvm_ffi
    from cutlass._mlir._mlir_libs._cutlass_ir._execution_engine import BinaryExecutionEngine

    engine = BinaryExecutionEngine(relink(data), [library_path, tvm_ffi.libinfo.find_libtvm_ffi()], True)
    function = tvm_ffi.Function.__from_extern_c__(engine.lookup("__tvm_ffi_" + symbol), keep_alive_object=engine)

    def call(*args):
        for arg in args:
            for each in arg if isinstance(arg, tuple) else (arg,):
                runtime.notice(each)
        try:
            function(*(_device_argument(a) for a in args))
        finally:
            runtime.raise_pending()

    return call


@contextlib.contextmanager
def dsl_on_emulator(runtime: HostRuntime, library_path: str, arch: str, sms: int) -> Iterator[None]:
    """Inside, the DSL compiles for ``arch`` and launches on the emulator; everything is put back afterwards."""
    import cutlass.utils as utils
    from cutlass.cutlass_dsl import CuTeDSL, CuteExperimentalDSL, cuda_jit_executor
    from cutlass.utils import hardware_info

    dialects = [dialect._get_dsl().envar for dialect in (CuTeDSL, CuteExperimentalDSL)]
    held = {
        "shared_libs": library_path,
        "keep_ptx": True,
        "keep_cubin": True,
        "_arch": arch,
        "disable_file_caching": True,
    }
    hardware = type("HardwareInfo", (EmulatedHardwareInfo,), {"sms": sms})
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(tempfile.TemporaryDirectory(prefix="cutefp4-emulator-"))
        stack.enter_context(mock.patch.dict(os.environ, {"CUTE_DSL_LIBS": library_path}))
        for owner, name, value in (
            *((settings, name, value) for settings in dialects for name, value in (held | {"dump_dir": dump}).items()),
            (cuda_jit_executor.CudaDialectJitCompiledFunction, "num_devices", 1),
            (utils, "HardwareInfo", hardware),
            (hardware_info, "HardwareInfo", hardware),
            *_compiler_patches(),
            *_link_patches(library_path),
            *_call_patches(runtime),
            *_tensor_patches(runtime),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        runtime.connect()
        stack.callback(runtime.disconnect)
        yield


def _compiler_patches() -> list[tuple[object, str, object]]:
    """Every compile inside the device leaves its PTX with us (keeping artifacts also bypasses the DSL's own caches)."""
    from cutlass.base_dsl.compile_backend import CompilerBackend

    compile_function = CompilerBackend.compile

    def compile_and_remember(self, ctx):
        function = compile_function(self, ctx)
        artifacts = getattr(function, "artifacts", None)
        if artifacts is not None and artifacts.PTX and isinstance(artifacts.CUBIN, bytes):  # not of host code alone
            register_ptx(artifacts.CUBIN, artifacts.PTX)
        return function

    return [(CompilerBackend, "compile", compile_and_remember)]


def _link_patches(library_path: str) -> list[tuple[object, str, object]]:
    """Functions that the DSL compiles inside the device call the emulator's runtime, whatever the process loaded."""
    from cutlass._mlir._mlir_libs._cutlass_ir import _execution_engine
    from cutlass.base_dsl.compiler import Compiler

    library = ctypes.CDLL(library_path)
    jit, binary_engine = Compiler.jit, _execution_engine.BinaryExecutionEngine

    def jit_on_emulator(self, *args, **kwargs):
        engine = jit(self, *args, **kwargs)
        for name, ours in runtime_names().items():
            engine.raw_register_runtime(name, ctypes.cast(getattr(library, ours), ctypes.c_void_p))
        return engine

    def relinked_engine(data, libraries, *args):
        return binary_engine(relink(data), libraries, *args)

    return [(Compiler, "jit", jit_on_emulator), (_execution_engine, "BinaryExecutionEngine", relinked_engine)]


def _call_patches(runtime: HostRuntime) -> list[tuple[object, str, object]]:
    """A call whose launch failed raises what the launch raised, not the DSL's CUDA error."""
    from cutlass.cutlass_dsl import cuda_jit_executor, tvm_ffi_provider

    def raising(original):
        def call(self, *args, **kwargs):
            for arg in args:
                runtime.notice(arg)
            try:
                return original(self, *args, **kwargs)
            finally:
                runtime.raise_pending()

        return call

    owners = (
        cuda_jit_executor.CudaDialectJitCompiledFunction,
        tvm_ffi_provider.TVMFFIJitCompiledFunction,
        tvm_ffi_provider.TVMFFIJitCompiledFunctionWithKwargs,
    )
    return [(owner, "__call__", raising(owner.__call__)) for owner in owners]


def _tensor_patches(host: HostRuntime) -> list[tuple[object, str, object]]:
    """CPU tensors count as device memory: in DLPack capsules, and in the checks that TVM-FFI functions make."""
    from cutlass.base_dsl.tvm_ffi_builder import spec, tvm_ffi_builder
    from cutlass.cute import runtime

    tensor_init, spec_init = runtime._Tensor.__init__, spec.Tensor.__init__

    def init_tensor(self, tensor, *args, **kwargs):
        host.notice(tensor)
        tensor_init(self, _CudaCapsule(tensor) if hasattr(tensor, "__dlpack__") else tensor, *args, **kwargs)

    def init_spec(self, *args, **kwargs):
        spec_init(self, *args, **(kwargs | {"device_type": "cuda"}))

    def always_cuda(original):
        def load_device_type(self, dltensor):
            # A plan's object goes into the cache, and must be what a GPU gets; its calls pass patched tensors instead.
            return original(self, dltensor) if compiling_plan() else self.i32(DLPACK_CUDA)

        return load_device_type

    builders = {
        cls for cls in vars(tvm_ffi_builder).values() if "load_dltensor_device_type" in getattr(cls, "__dict__", {})
    }
    return [
        (runtime._Tensor, "__init__", init_tensor),
        (spec.Tensor, "__init__", init_spec),
        *((cls, "load_dltensor_device_type", always_cuda(cls.load_dltensor_device_type)) for cls in builders),
    ]
