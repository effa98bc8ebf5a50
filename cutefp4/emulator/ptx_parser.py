"""PTX text -> a module of entries, variables and instructions, every instruction with its PTX and Python line.

The grammar is what compilers emit plus what people write in inline assembly: nested scopes that redeclare registers
and labels, vector registers (``.reg .v4 .s32 abcd`` and ``abcd.x``), ``.loc`` lines without a semicolon, hexadecimal
floats (``0f3F800000``).  Nothing is interpreted here; lowering does that.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass, field

from .errors import PtxError
from .modifiers import TYPE_BYTES, Modifiers


@dataclass(frozen=True)
class Reg:
    """A register or variable name as written, with an optional vector component."""

    name: str
    component: int | None = None


@dataclass(frozen=True)
class Imm:
    """A literal. Floats given as bit patterns keep them: ``bits`` is 32 or 64 for ``0f``/``0d`` literals, else 0."""

    value: int | float
    bits: int = 0


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, with the second operand of ``[base, {coordinates}]`` where there is one."""

    base: Reg | Imm
    offset: int = 0
    extra: Vector | None = None
    index: Reg | None = None  # [base, index]: param of a byte-offset multicast or cache-policy form


@dataclass(frozen=True)
class Vector:
    items: tuple


@dataclass(frozen=True)
class Pair:
    """``d|p``: two destinations of one instruction."""

    first: object
    second: object


@dataclass(frozen=True)
class Not:
    operand: Reg


@dataclass(frozen=True)
class Arguments:
    """The parenthesised list of a call."""

    items: tuple


@dataclass
class Variable:
    """``.shared .align 16 .b8 name[64]``; ``size`` in bytes, 0 for ``[]``; ``data`` for initialised globals."""

    name: str
    space: str
    align: int
    size: int
    element: str
    data: bytes | None = None
    extern: bool = False


@dataclass
class Scope:
    """One ``{ }``: registers and labels it declares. ``uid`` makes names of repeated scopes distinct."""

    uid: int
    parent: Scope | None
    registers: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> (type, vector width)
    ranges: dict[str, tuple[str, int]] = field(default_factory=dict)  # prefix -> (type, count)
    labels: dict[str, int] = field(default_factory=dict)  # name -> instruction index
    variables: dict[str, Variable] = field(default_factory=dict)
    target_lists: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets


@dataclass
class Instruction:
    """``@guard opcode operands;`` — ``guard`` is (register, negated)."""

    opcode: str
    operands: list
    guard: tuple[Reg, bool] | None
    line: int
    loc: tuple[int, int] | None  # (file number, line) of the last .loc
    scope: Scope
    prefix: int = 1  # parts of the opcode that chose the lowering
    kernel: str = ""

    def fail(self, what: str) -> PtxError:
        return PtxError(f"kernel {self.kernel}, PTX line {self.line}: {self.opcode}: {what}")

    def modifiers(self) -> Modifiers:
        """The modifiers after the prefix that chose the lowering."""
        return Modifiers(self.opcode.split(".")[self.prefix :], self.fail)


@dataclass
class Function:
    """An ``.entry`` or ``.func`` with its parameters and instructions."""

    name: str
    is_entry: bool
    params: list[Variable]
    returns: list[Variable]
    line: int
    scope: Scope
    instructions: list[Instruction] = field(default_factory=list)
    directives: dict[str, list[int]] = field(default_factory=dict)  # reqntid, maxnreg, explicitcluster ...


@dataclass
class Module:
    text: str
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[str]:
        return [f.name for f in self.functions.values() if f.is_entry]


_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', re.S)
_SPACE = re.compile(r"\s*")
_LINE_DIRECTIVE = re.compile(r"\.(loc|file)\b([^\n;]*)[;]?")
_LABEL = re.compile(r"([A-Za-z_$%.][\w$%.]*)\s*:(?!:)")
_STATEMENT = re.compile(r"[^;]*;")
_FUNCTION = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(entry|func)\b")
_NUMBER = re.compile(
    r"(?P<f32>0[fF][0-9a-fA-F]{8})|(?P<f64>0[dD][0-9a-fA-F]{16})"
    r"|(?P<int>[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+))U?$|(?P<dec>[-+]?\d*\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+\.\d*)"
)
_NAME = re.compile(r"[A-Za-z_$%][\w$%]*")
_PREDEFINED = {
    "%tid",
    "%ntid",
    "%ctaid",
    "%nctaid",
    "%laneid",
    "%warpid",
    "%smid",
    "%clock",
    "%clock64",
    "%clusterid",
    "%cluster_ctaid",
}
_COMPONENTS = {"x": 0, "y": 1, "z": 2, "w": 3, "r": 0, "g": 1, "b": 2, "a": 3}
_VARIABLE = re.compile(
    r"(?:\.(?P<extern>extern|visible|weak|common)\s+)*\.(?P<space>shared|local|global|const|param|managed)"
    r"(?P<attrs>(?:\s*(?:\.align\s+\d+|\.attribute\([^)]*\)|\.ptr(?:\s*\.\w+)?|\.v[248]|\.[a-z]\w*(?:::\w+)?))*)"
    r"\s*(?P<name>[A-Za-z_$%][\w$%]*)?\s*(?P<dims>(?:\[[^\]]*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)


def _blank(match: re.Match) -> str:
    text = match.group()
    return text if text[0] == '"' else re.sub(r"[^\n]", " ", text)


class _Parser:
    def __init__(self, text: str):
        self.source = text
        self.text = _COMMENT.sub(_blank, text)
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.module = Module(text, lines=text.split("\n"))
        self.pos = 0
        self.scopes = 0
        self.loc: tuple[int, int] | None = None
        self.operands: dict[str, object] = {}

    def line(self, pos: int | None = None) -> int:
        return bisect_right(self.newlines, (self.pos if pos is None else pos) - 1) + 1

    def fail(self, what: str) -> PtxError:
        line = self.line()
        return PtxError(f"PTX line {line}: {what}\n    {self.module.lines[line - 1].strip()}")

    def skip(self) -> bool:
        self.pos = _SPACE.match(self.text, self.pos).end()
        return self.pos < len(self.text)

    def new_scope(self, parent: Scope | None) -> Scope:
        self.scopes += 1
        return Scope(self.scopes, parent)

    # -- module level

    def parse(self) -> Module:
        while self.skip():
            if self.line_directive():
                continue
            function = _FUNCTION.match(self.text, self.pos)
            if function:
                self.function(function)
                continue
            if self.text.startswith(".section", self.pos):
                self.pos = self.text.index("}", self.pos) + 1
                continue
            if self.text.startswith((".version", ".target", ".address_size"), self.pos):
                end = self.text.find("\n", self.pos)
                end = len(self.text) if end < 0 else end
                words = self.text[self.pos : end].replace(",", " ").split()
                if words[0] == ".target":
                    self.module.target = words[1]
                self.pos = end
                continue
            statement = self.statement()
            if statement.startswith((".pragma", ".alias")):
                continue
            variable = self.variable(statement)
            self.module.variables[variable.name] = variable
        return self.module

    def line_directive(self) -> bool:
        match = _LINE_DIRECTIVE.match(self.text, self.pos)
        if not match:
            return False
        if match.group(1) == "loc":
            words = match.group(2).replace(",", " ").split()
            self.loc = (int(words[0]), int(words[1]))
        else:
            number, name = re.match(r'\s*(\d+)\s+"((?:[^"\\]|\\.)*)"', match.group(2)).groups()
            self.module.files[int(number)] = name
        self.pos = match.end()
        return True

    def statement(self) -> str:
        match = _STATEMENT.match(self.text, self.pos)
        if not match:
            raise self.fail("statement without a semicolon")
        self.pos = match.end()
        return match.group()[:-1].strip()

    def variable(self, statement: str) -> Variable:
        match = _VARIABLE.match(statement)
        if not match or not match.group("name"):
            raise self.fail(f"unknown declaration {statement!r}")
        attrs = match.group("attrs")
        element = next((t for t in re.findall(r"\.([a-z]\w*)", attrs) if t in TYPE_BYTES), None)
        if element is None:
            raise self.fail(f"declaration without a type: {statement!r}")
        align = re.search(r"\.align\s+(\d+)", attrs)
        vector = re.search(r"\.v([248])\b", attrs)
        size = TYPE_BYTES[element] * (int(vector.group(1)) if vector else 1)
        dims = re.findall(r"\[\s*(\w*)\s*\]", match.group("dims") or "")
        init = match.group("init")
        for dim in dims:
            size *= int(dim, 0) if dim else (init.count(",") + 1 if init else 0)
        data = self.initialiser(init, element, size) if init else None
        return Variable(
            match.group("name"),
            match.group("space"),
            int(align.group(1)) if align else TYPE_BYTES[element],
            size,
            element,
            data,
            match.group("extern") == "extern" or ".extern" in statement,
        )

    def initialiser(self, init: str, element: str, size: int) -> bytes:
        out = bytearray()
        for item in re.findall(r"[^{},\s]+", init):
            number = self.number(item)
            if number is None:
                raise self.fail(f"initialiser {item!r} is not a number; addresses in initialisers are not supported")
            width = TYPE_BYTES[element]
            if isinstance(number.value, float):
                out += struct.pack("<f" if width == 4 else "<d", number.value)
            else:
                out += (int(number.value) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return bytes(out.ljust(size, b"\0"))

    # -- functions

    def function(self, match: re.Match) -> None:
        line = self.line()
        self.pos = match.end()
        brace, semicolon = self.text.find("{", self.pos), self.text.find(";", self.pos)
        is_declaration = 0 <= semicolon < brace or brace < 0
        end = semicolon if is_declaration else brace
        header = self.text[self.pos : end]
        self.pos = end + 1
        parsed = re.match(
            r"\s*(?:\(([^)]*)\))?\s*([A-Za-z_$%][\w$%]*)\s*(?:\(((?:[^()]|\([^)]*\))*)\))?(.*)$", header, re.S
        )
        returns, name, params, rest = parsed.groups()
        scope = self.new_scope(None)
        function = Function(name, match.group(1) == "entry", self.params(params), self.params(returns), line, scope)
        for key, values in re.findall(r"\.(\w+)((?:\s*,?\s*\d+)*)", rest):
            function.directives[key] = [int(v) for v in re.findall(r"\d+", values)]
        if is_declaration:
            self.module.functions.setdefault(name, function)
            return
        self.module.functions[name] = function
        self.loc = None
        self.body(function)

    def params(self, text: str | None) -> list[Variable]:
        if not text or not text.strip():
            return []
        return [self.param(item.strip()) for item in text.split(",")]

    def param(self, text: str) -> Variable:
        if text.startswith(".reg"):
            kind, name = re.match(r"\.reg\s+\.(\w+)\s+(\S+)", text).groups()
            return Variable(name, "reg", TYPE_BYTES[kind], TYPE_BYTES[kind], kind)
        return self.variable(text)

    def body(self, function: Function) -> None:
        scope, depth = function.scope, 1
        while depth:
            if not self.skip():
                raise self.fail(f"function {function.name} is not closed")
            char = self.text[self.pos]
            if char == "{":
                scope, depth = self.new_scope(scope), depth + 1
                self.pos += 1
            elif char == "}":
                depth -= 1
                scope = scope.parent if depth else scope
                self.pos += 1
            elif char == ";":
                self.pos += 1
            elif char == "." and self.line_directive():
                pass
            elif char != "@" and (label := _LABEL.match(self.text, self.pos)):
                scope.labels[label.group(1)] = len(function.instructions)
                self.pos = label.end()
                self.skip()
                if self.text.startswith((".branchtargets", ".calltargets"), self.pos):
                    names = self.statement().split(None, 1)[1]
                    scope.target_lists[label.group(1)] = [n.strip() for n in names.split(",")]
                elif self.text.startswith(".callprototype", self.pos):
                    self.statement()
            elif char == ".":
                self.declaration(self.statement(), scope)
            else:
                line = self.line()
                self.instruction(self.statement(), function, scope, line)

    def declaration(self, statement: str, scope: Scope) -> None:
        if not statement.startswith(".reg"):
            if statement.startswith((".pragma", ".maxnreg", ".minnctapersm")):
                return
            variable = self.variable(statement)
            scope.variables[variable.name] = variable
            return
        match = re.match(r"\.reg\s*(?:\.v([248])\s*)?\.(\w+)\s+(.*)$", statement, re.S)
        if not match or match.group(2) not in TYPE_BYTES:
            raise self.fail(f"unknown register declaration {statement!r}")
        width, kind = int(match.group(1) or 1), match.group(2)
        for name in match.group(3).split(","):
            if name.strip() in _PREDEFINED:
                raise self.fail(f"{name.strip()} is a predefined register")
            ranged = re.match(r"([^<]+)<(\d+)>$", name.strip())
            if ranged:
                scope.ranges[ranged.group(1)] = (kind, int(ranged.group(2)))
            else:
                scope.registers[name.strip()] = (kind, width)

    def instruction(self, statement: str, function: Function, scope: Scope, line: int) -> None:
        guard = None
        if statement[0] == "@":
            match = re.match(r"@(!?)\s*([\w$%]+)\s*", statement)
            guard = (Reg(match.group(2)), bool(match.group(1)))
            statement = statement[match.end() :]
        opcode, _, rest = statement.replace("\t", " ").replace("\n", " ").partition(" ")
        rest = rest.strip()
        # `cvt .rn` and friends: hand-written code puts spaces before modifiers
        while rest.startswith("."):
            more, _, rest = rest.partition(" ")
            opcode, rest = opcode + more, rest.strip()
        operands = [self.operand(text) for text in split_operands(rest)] if rest else []
        function.instructions.append(Instruction(opcode, operands, guard, line, self.loc, scope))

    # -- operands

    def number(self, text: str) -> Imm | None:
        match = _NUMBER.fullmatch(text)
        if not match:
            return None
        kind = match.lastgroup
        if kind == "f32":
            return Imm(int(text[2:], 16), 32)
        if kind == "f64":
            return Imm(int(text[2:], 16), 64)
        if kind == "int":
            digits = text.rstrip("U")
            sign = -1 if digits[0] == "-" else 1
            digits = digits.lstrip("+-")
            octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
            return Imm(sign * int(digits, 8 if octal else 0))
        return Imm(float(text))

    def operand(self, text: str) -> object:
        known = self.operands.get(text)
        if known is None:
            known = self.operands[text] = self.parse_operand(text)
        return known

    def parse_operand(self, text: str) -> object:
        first = text[0]
        if first == "{":
            return Vector(tuple(self.operand(t) for t in split_operands(text[1:-1])))
        if first == "(":
            return Arguments(tuple(self.operand(t) for t in split_operands(text[1:-1])))
        if first == "[":
            return self.address(text[1:-1])
        if first == "!":
            return Not(self.operand(text[1:].strip()))
        if "|" in text:
            left, right = text.split("|")
            return Pair(self.operand(left.strip()), self.operand(right.strip()))
        number = self.number(text)
        if number is not None:
            return number
        match = _NAME.fullmatch(text)
        if match:
            return Reg(text)
        base, dot, component = text.rpartition(".")
        if dot and component in _COMPONENTS and _NAME.fullmatch(base):
            return Reg(base, _COMPONENTS[component])
        plus = re.fullmatch(r"([\w$%.]+)\s*\+\s*(-?\w+)", text)
        if plus:  # variable + constant as a value
            return Address(self.operand(plus.group(1)), int(plus.group(2), 0))
        raise self.fail(f"operand {text!r} is not understood")

    def address(self, text: str) -> Address:
        items = split_operands(text)
        extra = self.operand(items[1]) if len(items) > 1 else None
        if len(items) > 2:
            raise self.fail(f"address [{text}] has {len(items)} parts")
        match = re.fullmatch(r"([^\s+]+?)\s*(?:\+\s*(-?\s*\w+))?", items[0].strip())
        if not match:
            minus = re.fullmatch(r"([^\s+-]+)\s*-\s*(\w+)", items[0].strip())
            if not minus:
                raise self.fail(f"address [{text}] is not understood")
            base, offset = self.operand(minus.group(1)), -int(minus.group(2), 0)
        else:
            base = self.operand(match.group(1))
            offset = int(match.group(2).replace(" ", ""), 0) if match.group(2) else 0
        if isinstance(extra, Vector) or extra is None:
            return Address(base, offset, extra)
        return Address(base, offset, None, extra)


def split_operands(text: str) -> list[str]:
    """Splits at commas outside brackets and braces; empty text gives no operands."""
    if not ("{" in text or "[" in text or "(" in text):
        return [part for part in (p.strip() for p in text.split(",")) if part]
    out, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    out.append(text[start:].strip())
    return [part for part in out if part]


def parse(text: str) -> Module:
    """Parses PTX text. Raises PtxError with the line for anything that it does not understand."""
    return _Parser(text).parse()
