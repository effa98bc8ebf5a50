"""Lowering of one kernel: PTX instructions -> the interpreter's instruction array, constants and memory layout.

`load` caches by the text's hash, so that a kernel is decoded once per process.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import lowering  # noqa: F401  (registers the lowerings)
from .errors import PtxError
from .lowering.context import SMEM_RESERVED, Context, Emitted, Memory, find_lowering
from .ptx_parser import Function, Instruction, Module, Scope, Variable, parse

INSTR = np.dtype(
    [
        ("op", "<u2"),
        ("nargs", "<u2"),
        ("guard", "<i4"),
        ("a", "<i4", 6),
        ("args", "<u4"),
        ("line", "<u4"),
        ("mod", "<u4"),
        ("target", "<i4"),
        ("imm", "<u8"),
        ("pc", "<u4"),
        ("aux", "<u4"),
    ]
)
RETURN = "<return>"


class CProgram(ctypes.Structure):
    """struct Program of native/emu.h."""

    _fields_ = [
        ("code", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("consts", ctypes.c_void_p),
        ("n_code", ctypes.c_uint32),
        ("n_slots", ctypes.c_uint32),
        ("n_preds", ctypes.c_uint32),
        ("use_start", ctypes.c_void_p),
        ("uses", ctypes.c_void_p),
        ("param_bytes", ctypes.c_uint32),
        ("smem_static", ctypes.c_uint32),
        ("local_bytes", ctypes.c_uint32),
        ("max_regs", ctypes.c_uint32),
        ("reqntid", ctypes.c_uint32),
        ("arch", ctypes.c_uint32),
    ]


@dataclass
class Parameter:
    """One kernel parameter: offset in the parameter block and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass
class Program:
    """A lowered kernel. Arrays stay alive with it: the C structure points into them."""

    name: str
    module: Module
    parameters: list[Parameter]
    code: np.ndarray
    arrays: tuple
    native: CProgram
    globals: dict[str, tuple[Variable, np.ndarray]]
    instructions: list[Instruction]  # of the kernel, for reports: PTX line -> instruction
    opcodes: list[str]  # PTX opcode per interpreter instruction
    directives: dict[str, list[int]]

    def python_line(self, ptx_line: int) -> str | None:
        """``file:line`` of the Python source of a PTX line, from .loc."""
        for ins in self.instructions:
            if ins.line == ptx_line and ins.loc:
                name = self.module.files.get(ins.loc[0])
                return f"{name}:{ins.loc[1]}" if name else None
        return None


def _align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


@dataclass
class _Inlined:
    """One call being inlined: parameter names of the callee -> names in the caller."""

    function: Function
    names: dict[str, tuple[Scope | None, str]]
    end_label: tuple[Scope | None, str]


class _Kernel(Context):
    """Lowering state of a kernel, with inlining of device functions."""

    def __init__(self, module: Module, function: Function, memory: Memory):
        super().__init__(module, function, memory)
        self.inlined: list[_Inlined] = []
        self.parameter_slots: dict[tuple[int, str, int], int] = {}
        self.opcodes: list[str] = []

    # -- parameters of calls

    def call_parameter(self, name: str) -> tuple[int, str] | None:
        """Key of a call parameter's storage, or None if the name is a kernel parameter or a register."""
        if self.inlined and name in self.inlined[-1].names:
            scope, original = self.inlined[-1].names[name]
            return (scope.uid if scope else 0, original)
        scope = self.ins.scope
        while scope is not None:
            if name in scope.variables and scope.variables[name].space == "param":
                return scope.uid, name
            scope = scope.parent
        return None

    def call_slot(self, name: str, offset: int, size: int) -> int:
        key = self.call_parameter(name)
        if key is None:
            raise self.fail(f"{name} is not a call parameter")
        at = (*key, offset)
        if at not in self.parameter_slots:
            self.parameter_slots[at] = self.scratch(64 if size == 8 else 32)
        return self.parameter_slots[at]

    def inline(self, callee: Function, returns: tuple, arguments: tuple) -> None:
        if not callee.instructions:
            raise self.fail(f"function {callee.name} has no body")
        if any(frame.function is callee for frame in self.inlined):
            raise self.fail(f"recursive call of {callee.name}")
        names = {}
        for formal, actual in zip([*callee.returns, *callee.params], [*returns, *arguments], strict=True):
            key = self.call_parameter(actual.name)
            if key is None:
                raise self.fail(f"argument {actual.name} is not in the parameter space")
            names[formal.name] = (self._declaring_scope(actual.name), actual.name)
        if self.ins.guard is not None:
            raise self.fail("a predicated call of a device function is not implemented")
        site = self.ins
        self.inlined.append(_Inlined(callee, names, (None, RETURN)))
        self.lower_body(callee)
        self.inlined.pop()
        self.ins = site

    def _declaring_scope(self, name: str) -> Scope | None:
        scope = self.ins.scope
        while scope is not None and name not in scope.variables:
            scope = scope.parent
        return scope

    # -- instructions

    def lower_body(self, function: Function) -> None:
        first, positions = len(self.code), []
        for ins in function.instructions:
            positions.append(len(self.code))
            self.lower(ins)
        positions.append(len(self.code))
        if not self.inlined:
            self.ins = function.instructions[-1] if function.instructions else None
            if self.ins is None:
                raise PtxError(f"kernel {function.name} has no instructions")
            self.emit("EXIT", guarded=False)
            self.opcodes += ["exit"] * (len(self.code) - len(self.opcodes))
        for emitted in self.code[first:]:
            self.resolve(emitted, positions)

    def lower(self, ins: Instruction) -> None:
        self.ins, self.uses = ins, []
        ins.kernel = self.function.name
        function, ins.prefix = find_lowering(ins.opcode)
        if function is None:
            raise self.fail(f"instruction {ins.opcode} is not implemented")
        try:
            function(self, ins)
        except PtxError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self.fail(f"cannot read the operands of {ins.opcode} ({error})") from error
        self.opcodes += [ins.opcode] * (len(self.code) - len(self.opcodes))

    def resolve(self, emitted: Emitted, positions: list[int]) -> None:
        if emitted.label is not None:
            emitted.target = self.position(emitted, *emitted.label, positions)
            emitted.label = None
        emitted.args += [self.position(emitted, scope, name, positions) for scope, name in emitted.labels]
        emitted.labels = []

    def position(self, emitted: Emitted, scope: Scope | None, name: str, positions: list[int]) -> int:
        if name == RETURN:
            return positions[-1]
        while scope is not None:
            if name in scope.labels:
                return positions[scope.labels[name]]
            scope = scope.parent
        raise PtxError(f"kernel {self.function.name}, PTX line {emitted.line}: label {name} is not defined")


def _encode(kernel: _Kernel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(instructions, argument pool, use_start, uses)."""
    code = np.zeros(len(kernel.code), INSTR)
    pool: list[int] = []
    use_start, uses = [0], []
    for pc, e in enumerate(kernel.code):
        row = code[pc]
        inline = e.args[:6] + [0] * (6 - len(e.args))
        args_at = 0
        if len(e.args) > 6:
            args_at = len(pool)
            pool += e.args
        row["op"], row["nargs"], row["guard"], row["a"], row["args"], row["line"] = (
            e.op,
            len(e.args),
            e.guard,
            inline,
            args_at,
            e.line,
        )
        row["mod"], row["target"], row["imm"], row["pc"], row["aux"] = e.mod, e.target, e.imm & (2**64 - 1), pc, e.aux
        uses += e.uses
        use_start.append(len(uses))
    return code, np.array(pool or [0], np.int32), np.array(use_start, np.uint32), np.array(uses or [0], np.int32)


def _shared_layout(module: Module, function: Function, memory: Memory, scopes: list[Scope]) -> None:
    """Static variables from the first user byte on; dynamic (`extern`, `[]`) ones all start behind them."""
    variables = [v for v in module.variables.values() if v.space == "shared"]
    variables += [v for scope in scopes for v in scope.variables.values() if v.space == "shared"]
    at = SMEM_RESERVED
    for v in variables:
        if v.size and not v.extern:
            at = _align(at, v.align)
            memory.shared[v.name] = at
            at += v.size
    dynamic = [v for v in variables if not v.size or v.extern]
    at = _align(at, max([v.align for v in dynamic], default=16))
    memory.shared |= {v.name: at for v in dynamic}
    memory.smem_static = at - SMEM_RESERVED


def _scopes(module: Module) -> list[Scope]:
    found: dict[int, Scope] = {}
    for function in module.functions.values():
        found[function.scope.uid] = function.scope
        for ins in function.instructions:
            scope = ins.scope
            while scope is not None:
                found[scope.uid] = scope
                scope = scope.parent
    return list(found.values())


def _layout(
    module: Module, function: Function
) -> tuple[Memory, list[Parameter], dict[str, tuple[Variable, np.ndarray]]]:
    memory, parameters, offset = Memory(), [], 0
    scopes = _scopes(module)
    for p in function.params:
        offset = _align(offset, max(p.align, 1))
        parameters.append(Parameter(p.name, offset, p.size))
        memory.params[p.name] = p
        memory.param_offset[p.name] = offset
        offset += p.size
    _shared_layout(module, function, memory, scopes)
    for scope in scopes:
        for v in scope.variables.values():
            if v.space == "local":
                memory.local_bytes = _align(memory.local_bytes, v.align)
                memory.local[(scope.uid, v.name)] = memory.local_bytes
                memory.local_bytes += v.size
    memory.local_bytes = _align(memory.local_bytes, 16)
    storage = {}
    for v in module.variables.values():
        if v.space in ("global", "const"):
            raw = np.zeros(max(v.size, 1) + 256, np.uint8)
            start = -raw.ctypes.data % 256
            view = raw[start : start + max(v.size, 1)]
            if v.data:
                view[: len(v.data)] = np.frombuffer(v.data, np.uint8)
            memory.globals[v.name] = view.ctypes.data
            storage[v.name] = (v, view)
    return memory, parameters, storage


def _lower(module: Module, entry: str) -> Program:
    function = module.functions[entry]
    memory, parameters, storage = _layout(module, function)
    kernel = _Kernel(module, function, memory)
    kernel.lower_body(function)
    code, pool, use_start, uses = _encode(kernel)
    constants = np.frombuffer(b"".join(kernel.constant_data) or bytes(128), np.uint8)
    # Constant operand -1-x is slot x: the first slot of a 64-bit constant, as for registers.
    aligned = np.zeros(len(constants) + 64, np.uint8)
    start = -aligned.ctypes.data % 64
    aligned[start : start + len(constants)] = constants
    target = re.match(r"sm_(\d+)", module.target)
    native = CProgram(
        code=code.ctypes.data,
        args=pool.ctypes.data,
        consts=aligned.ctypes.data + start,
        n_code=len(code),
        n_slots=kernel.n_slots + 4,
        n_preds=len(kernel.predicates) + 1,
        use_start=use_start.ctypes.data,
        uses=uses.ctypes.data,
        param_bytes=parameters[-1].offset + parameters[-1].size if parameters else 0,
        smem_static=memory.smem_static,
        local_bytes=memory.local_bytes,
        max_regs=(function.directives.get("maxnreg") or [0])[0],
        reqntid=(function.directives.get("reqntid") or [0])[0],
        arch=int(target.group(1)) if target else 90,
    )
    return Program(
        entry,
        module,
        parameters,
        code,
        (pool, use_start, uses, aligned),
        native,
        storage,
        function.instructions,
        kernel.opcodes,
        function.directives,
    )


_PROGRAMS: dict[tuple[str, str], Program] = {}


@lru_cache(maxsize=64)
def _module(digest: str, text: str) -> Module:
    return parse(text)


def load(text: str, entry: str | None = None) -> Program:
    """The lowered kernel `entry` of a PTX text (its only entry if None).

    Raises PtxError for PTX that is not understood, with the line and the kernel.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    module = _module(digest, text)
    if entry is None:
        if len(module.entries) != 1:
            raise PtxError(f"name one of the kernels {', '.join(module.entries)}")
        entry = module.entries[0]
    if entry not in module.functions or not module.functions[entry].is_entry:
        raise PtxError(f"no kernel {entry}; the PTX has {', '.join(module.entries)}")
    key = (digest, entry)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _lower(module, entry)
    return _PROGRAMS[key]
