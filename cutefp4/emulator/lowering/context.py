"""What a lowering function works with: operands to register slots and constants, modifiers, emitted instructions.

A lowering is registered for the beginning of an opcode (``@lowers("cp.async.bulk")``); the longest match wins. It must
consume every modifier (`Modifiers.done`), so that an unknown one is an error that names the PTX line.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import PtxError
from ..modifiers import TYPE_BYTES
from ..native_build import operations
from ..ptx_parser import Address, Function, Imm, Instruction, Module, Not, Pair, Reg, Scope, Variable, Vector

LOWERINGS: dict[tuple[str, ...], Callable[[Context, Instruction], None]] = {}
SMEM_RESERVED = 1024

SPECIAL = (
    "tid.x tid.y tid.z ntid.x ntid.y ntid.z ctaid.x ctaid.y ctaid.z nctaid.x nctaid.y nctaid.z laneid "
    "warpid nwarpid smid nsmid gridid clusterid.x clusterid.y clusterid.z nclusterid.x nclusterid.y "
    "nclusterid.z cluster_ctaid.x cluster_ctaid.y cluster_ctaid.z cluster_nctaid.x cluster_nctaid.y "
    "cluster_nctaid.z cluster_ctarank cluster_nctarank lanemask_eq lanemask_le lanemask_lt lanemask_ge "
    "lanemask_gt clock clock_hi globaltimer globaltimer_hi total_smem_size dynamic_smem_size "
    "is_explicit_cluster shared_base"
).split()
SPECIAL_NUMBER = {name: i for i, name in enumerate(SPECIAL)}
SPECIAL_NUMBER |= {"clock64": SPECIAL_NUMBER["clock"], "globaltimer_lo": SPECIAL_NUMBER["globaltimer"]}


def lowers(*prefixes: str):
    """Registers a lowering for opcodes that begin with any of the dotted prefixes."""

    def register(function):
        for prefix in prefixes:
            LOWERINGS[tuple(prefix.split("."))] = function
        return function

    return register


@dataclass
class Emitted:
    """One interpreter instruction before encoding."""

    op: int
    args: list[int]
    guard: int
    line: int
    mod: int = 0
    imm: int = 0
    aux: int = 0
    target: int = -1
    label: tuple[Scope, str] | None = None
    labels: list[tuple[Scope, str]] = field(default_factory=list)  # brx.idx: appended to args
    uses: list[int] = field(default_factory=list)


@dataclass
class Memory:
    """Layout of the variables of a module: byte offsets in shared, local and parameter space, addresses of globals."""

    shared: dict[str, int] = field(default_factory=dict)
    globals: dict[str, int] = field(default_factory=dict)
    smem_static: int = 0
    local: dict[tuple[int, str], int] = field(default_factory=dict)
    local_bytes: int = 0
    params: dict[str, Variable] = field(default_factory=dict)
    param_offset: dict[str, int] = field(default_factory=dict)


OPERATION_NUMBER = {name: i for i, name in enumerate(operations())}


class Context:
    """State of lowering one kernel."""

    def __init__(self, module: Module, function: Function, memory: Memory):
        self.module, self.function, self.memory = module, function, memory
        self.code: list[Emitted] = []
        self.slots: dict[tuple[int, str], int] = {}
        self.predicates: dict[tuple[int, str], int] = {}
        self.n_slots = 0
        self.constants: dict[tuple[int, int], int] = {}
        self.constant_slots = 0
        self.constant_data: list[bytes] = []
        self.ins: Instruction | None = None
        self.uses: list[int] = []

    # -- errors

    def fail(self, what: str) -> PtxError:
        ins = self.ins
        line = self.module.lines[ins.line - 1].strip() if ins else ""
        return PtxError(f"kernel {self.function.name}, PTX line {ins.line if ins else 0}: {what}\n    {line}")

    # -- names

    def declaration(self, name: str, scope: Scope | None) -> tuple[Scope, str, int] | None:
        """(scope, type, vector width) of a register, innermost scope first."""
        found = re.match(r"(.*?)(\d+)$", name)
        while scope is not None:
            if name in scope.registers:
                kind, width = scope.registers[name]
                return scope, kind, width
            if found:
                for cut in range(len(found.group(1)), len(name)):
                    declared = scope.ranges.get(name[:cut])
                    if declared and int(name[cut:]) < declared[1]:
                        return scope, declared[0], 1
            scope = scope.parent
        return None

    def variable(self, name: str, scope: Scope | None) -> tuple[Scope | None, Variable] | None:
        while scope is not None:
            if name in scope.variables:
                return scope, scope.variables[name]
            scope = scope.parent
        if name in self.memory.params:
            return None, self.memory.params[name]
        if name in self.module.variables:
            return None, self.module.variables[name]
        return None

    def bits(self, operand: object) -> int:
        """Declared width of a register (8-bit counts as 16, predicates as 1), 0 for anything else."""
        if not isinstance(operand, Reg):
            return 0
        declared = self.declaration(operand.name, self.ins.scope)
        if declared is None:
            return 0
        return 1 if declared[1] == "pred" else max(16, 8 * TYPE_BYTES[declared[1]])

    def slot(self, reg: Reg) -> tuple[int, int]:
        """(register slot, bits) of a declared register."""
        key_scope = self.ins.scope
        declared = self.declaration(reg.name, key_scope)
        if declared is None:
            raise self.fail(f"{reg.name} is not declared")
        scope, kind, width = declared
        if kind == "pred":
            raise self.fail(f"{reg.name} is a predicate")
        bits = max(16, 8 * TYPE_BYTES[kind])
        name = reg.name if reg.component is None else f"{reg.name}.{reg.component}"
        if width > 1 and reg.component is None:
            raise self.fail(f"{reg.name} is a vector: name a component")
        key = (scope.uid, name)
        if key not in self.slots:
            self.slots[key] = self.new_slot(bits)
        return self.slots[key], bits

    def new_slot(self, bits: int) -> int:
        slot = self.n_slots
        self.n_slots += max(1, bits // 32)
        return slot

    # -- constants

    def constant(self, value: int, bits: int) -> int:
        bits = 64 if bits > 32 else 32
        value &= (1 << bits) - 1
        key = (value, bits)
        if key not in self.constants:
            self.constants[key] = -1 - self.constant_slots
            self.constant_slots += bits // 32
            self.constant_data.append(value.to_bytes(bits // 8, "little") * 32)
        return self.constants[key]

    def const32(self, value: int) -> int:
        return self.constant(value, 32)

    def const64(self, value: int) -> int:
        return self.constant(value, 64)

    def immediate(self, imm: Imm, bits: int, kind: str = "") -> int:
        """Constant operand; float literals become the bit pattern of `kind` (f32, f64, f16, bf16)."""
        value = imm.value
        if imm.bits == 32 or imm.bits == 64:
            real = struct.unpack("<f" if imm.bits == 32 else "<d", value.to_bytes(imm.bits // 8, "little"))[0]
            if imm.bits != bits or kind in ("f16", "bf16"):
                value = float_bits(real, kind or {16: "f16", 32: "f32"}.get(bits, "f64"))
        elif isinstance(value, float):
            value = float_bits(value, kind or ("f64" if bits == 64 else "f32"))
        elif kind in ("f32", "f64", "f16", "bf16"):
            value = float_bits(float(value), kind)
        if bits == 16:
            value &= 0xFFFF
        return self.constant(value, bits)

    # -- operands

    def src(self, operand: object, bits: int, kind: str = "") -> int:
        """Register slot or constant of a source that the instruction reads as `bits` wide."""
        if isinstance(operand, Imm):
            return self.immediate(operand, bits, kind)
        if isinstance(operand, Reg):
            if operand.name == "WARP_SZ":
                return self.constant(32, bits)
            if operand.name == "_":
                return self.constant(0, bits)
            special = self.special(operand, bits)
            if special is not None:
                return special
            if self.declaration(operand.name, self.ins.scope) is None:
                return self.symbol_address(operand.name, 0, bits)
            slot, have = self.slot(operand)
            if max(have, 32) != max(bits, 32):
                raise self.fail(f"{operand.name} has {have} bits where {bits} are read")
            self.use(slot, bits)
            return slot
        if isinstance(operand, Address):
            return self.symbol_address(operand.base.name, operand.offset, bits)
        raise self.fail(f"operand {operand} cannot be read")

    def use(self, slot: int, bits: int, write: bool = False) -> None:
        for i in range(max(1, bits // 32)):
            self.uses.append((slot + i) << 1 | write)

    def dst(self, operand: object, bits: int) -> int:
        """Register slot of a destination; `_` gets a scratch register."""
        if isinstance(operand, Reg) and operand.name == "_":
            return self.scratch(bits)
        if not isinstance(operand, Reg):
            raise self.fail(f"operand {operand} cannot be written")
        slot, have = self.slot(operand)
        if max(have, 32) != max(bits, 32):
            raise self.fail(f"{operand.name} has {have} bits where {bits} are written")
        self.use(slot, bits, True)
        return slot

    def scratch(self, bits: int) -> int:
        return self.new_slot(max(bits, 32))

    def pred(self, operand: object) -> int:
        """Predicate number of a register."""
        if not isinstance(operand, Reg):
            raise self.fail(f"operand {operand} is not a predicate")
        if operand.name == "_":
            return self.scratch_pred()
        declared = self.declaration(operand.name, self.ins.scope)
        if declared is None or declared[1] != "pred":
            raise self.fail(f"{operand.name} is not a predicate")
        key = (declared[0].uid, operand.name)
        return self.predicates.setdefault(key, len(self.predicates))

    def pred_source(self, operand: object) -> tuple[int, bool]:
        """(predicate number, negated); constants become a predicate that is set here."""
        if isinstance(operand, Not):
            return self.pred(operand.operand), True
        if isinstance(operand, Imm):
            p = self.scratch_pred()
            self.emit("PRED_SET", [p], imm=int(bool(operand.value)))
            return p, False
        if isinstance(operand, Reg) and operand.name in ("%p_true", "PT"):
            raise self.fail(f"unknown predicate {operand.name}")
        return self.pred(operand), False

    def scratch_pred(self, name: str | None = None) -> int:
        key = (0, name or f"scratch{len(self.predicates)}")
        return self.predicates.setdefault(key, len(self.predicates))

    def vector(self, operand: object) -> list[object]:
        """Elements of ``{a, b}``; a single operand gives one element. Vector registers give their components."""
        if isinstance(operand, Vector):
            return list(operand.items)
        if isinstance(operand, Reg) and operand.component is None:
            declared = self.declaration(operand.name, self.ins.scope)
            if declared and declared[2] > 1:
                return [Reg(operand.name, i) for i in range(declared[2])]
        return [operand]

    def pair(self, operand: object) -> tuple[object, object | None]:
        return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)

    def special(self, reg: Reg, bits: int) -> int | None:
        """Emits the read of a special register."""
        if not reg.name.startswith("%") or self.declaration(reg.name, self.ins.scope) is not None:
            return None
        name = reg.name[1:] + (("." + "xyzw"[reg.component]) if reg.component is not None else "")
        if name in SPECIAL_NUMBER:
            return self.read_special(name, bits)
        if re.fullmatch(r"(envreg\d+|pm\d+(_64)?|reserved_smem_offset_\w+|aggr_smem_size|current_graph_exec)", name):
            value = SMEM_RESERVED if "reserved" in name and "begin" not in name else 0
            return self.constant(value, bits)
        if name in ("ntid.w", "nctaid.w"):
            return self.constant(1, bits)
        if name in ("tid.w", "ctaid.w"):
            return self.constant(0, bits)
        raise self.fail(f"{reg.name} is neither declared nor a special register that is implemented")

    def read_special(self, name: str, bits: int, add: int = 0) -> int:
        slot = self.scratch(bits)
        wide = bits == 64
        self.emit("S2R64" if wide else "S2R", [slot], aux=SPECIAL_NUMBER[name], imm=add)
        return slot

    def symbol_address(self, name: str, offset: int, bits: int) -> int:
        """Address of a variable in its own space; a shared one carries the CTA's rank, so it is read at run time."""
        found = self.variable(name, self.ins.scope)
        if found is None:
            if name in self.module.functions:
                raise self.fail(f"address of function {name}: indirect calls are not implemented")
            raise self.fail(f"{name} is not declared")
        scope, variable = found
        if variable.space == "shared":
            return self.read_special("shared_base", bits, self.memory.shared[name] + offset)
        if variable.space == "local":
            return self.constant(self.memory.local[(scope.uid, name)] + offset, bits)
        if variable.space == "param":
            if name not in self.memory.param_offset:
                raise self.fail(f"address of call parameter {name} is not implemented")
            return self.constant(self.memory.param_offset[name] + offset, bits)
        return self.constant(self.memory.globals[name] + offset, bits)

    def address(self, operand: object) -> tuple[int, bool, int]:
        """(base register or constant, it is 64 bits wide, byte offset) of ``[...]``."""
        if not isinstance(operand, Address):
            raise self.fail(f"operand {operand} is not an address")
        base = operand.base
        if isinstance(base, Imm):
            return self.constant(int(base.value), 64), True, operand.offset
        if self.declaration(base.name, self.ins.scope) is None:
            found = self.variable(base.name, self.ins.scope)
            bits = 32 if found and found[1].space == "shared" else 64
            return self.symbol_address(base.name, 0, bits), bits == 64, operand.offset
        slot, bits = self.slot(base)
        self.use(slot, bits)
        return slot, bits == 64, operand.offset

    # -- output

    def emit(
        self,
        name: str,
        args: Sequence[int] = (),
        mod: int = 0,
        imm: int = 0,
        aux: int = 0,
        label: str | None = None,
        guarded: bool = True,
    ) -> Emitted:
        """Appends an interpreter instruction with the PTX instruction's guard."""
        if name not in OPERATION_NUMBER:
            raise self.fail(f"the interpreter has no operation {name}")
        guard = 0
        if guarded and self.ins.guard is not None:
            reg, negated = self.ins.guard
            number = self.pred(reg) + 1
            guard = -number if negated else number
        emitted = Emitted(OPERATION_NUMBER[name], list(args), guard, self.ins.line, mod, imm, aux, uses=self.uses)
        self.uses = []
        if label is not None:
            emitted.label = (self.ins.scope, label)
        self.code.append(emitted)
        return emitted


def float_bits(value: float, kind: str) -> int:
    """Bit pattern of a literal in f16, bf16, f32 or f64, rounded to nearest even."""
    if kind == "f64":
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    if kind == "f16":
        return struct.unpack("<H", struct.pack("<e", value))[0]
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if kind == "bf16":
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return bits


def find_lowering(opcode: str) -> tuple[Callable[[Context, Instruction], None] | None, int]:
    """The lowering with the longest matching prefix, and the number of opcode parts it covers."""
    parts = tuple(opcode.split("."))
    for length in range(len(parts), 0, -1):
        if parts[:length] in LOWERINGS:
            return LOWERINGS[parts[:length]], length
    return None, 0
