"""`Plan`: everything that can change generated code, as one frozen dataclass.

A plan goes through all layers, and its fields *are* the compile key. There is no second list to keep in step: the key
text, the hash, equality and the JSON form are derived from the fields. Whatever a kernel builder reads must be a field;
environment variables and module state must not reach generated code.

A subclass adds its fields and names its builder:

    @dataclass(frozen=True)
    class AmaxPlan(Plan):
        builder: ClassVar[str] = "cutefp4.kernels.quantize.amax:build"
        dtype: str
        threads: int = 256

and `build(plan)` returns `(jit_function, fake_arguments)` for `cute.compile`.

Fields hold str, int, bool, float, None, tuples of these and nested frozen dataclasses of these: values with one
spelling each, so that two plans are equal exactly if their key texts are.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from cutefp4.errors import CompileError

ARCHS = ("sm_90a", "sm_100a", "sm_103a")
"""Architectures that a plan can be compiled for; no GPU of that kind is needed to compile."""

IMPORTED_AT = time.time()
"""When this process came to know plans; modules that define or build them are read after it. See `fingerprint`."""

_SCALARS = (bool, int, float, str)


def _check_value(owner: str, value: Any) -> None:
    if value is None or type(value) in _SCALARS:
        return
    if type(value) is tuple:
        for item in value:
            _check_value(owner, item)
        return
    if is_dataclass(value) and not isinstance(value, type) and type(value).__dataclass_params__.frozen:
        for f in fields(value):
            _check_value(f"{owner}.{f.name}", getattr(value, f.name))
        return
    raise CompileError(
        f"{owner} = {value!r} of type {type(value).__name__} in a plan",
        "str, int, bool, float, None, tuples of these, frozen dataclasses of these",
        "name dtypes and enums by a string; put sizes in tuples",
    )


def _key_text(value: Any) -> str:
    """One spelling per value; types are told apart (1, 1.0 and True are equal in Python)."""
    if type(value) is tuple:
        return "(" + "".join(_key_text(item) + "," for item in value) + ")"
    if is_dataclass(value):
        inner = ", ".join(f"{f.name}={_key_text(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__module__}.{type(value).__qualname__}({inner})"
    return repr(value)


@dataclass(frozen=True)
class Plan:
    """Base of all plans.

    Attributes:
        arch: "sm_90a", "sm_100a" or "sm_103a": the architecture that code is generated for. It is independent of the
            GPU of this machine.
        builder: "module:function", imported only when the kernel must be compiled.

    Raises:
        CompileError: an unknown arch, or a field value that has no stable spelling.
    """

    builder: ClassVar[str] = ""
    arch: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set before the dataclass decorator looks, so that it does not generate its own: hashing and comparing 20
        # fields on every launch costs more than the dictionary lookup that needs it.
        cls.__hash__ = Plan.__hash__
        cls.__eq__ = Plan.__eq__

    def __post_init__(self) -> None:
        if self.arch not in ARCHS:
            raise CompileError(f"arch={self.arch!r}", ", ".join(ARCHS), "pass one of these as arch")
        for f in fields(self):
            _check_value(f"{type(self).__name__}.{f.name}", getattr(self, f.name))
        text = f"{self.builder}\n{_key_text(self)}"
        key = hashlib.sha256(text.encode()).hexdigest()
        # Not the hash of the text: Python's string hash differs between processes, and plans are pickled.
        for name, value in (("_key_text", text), ("_key", key), ("_hash", int(key[:15], 16))):
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Plan) and self._key == other._key)

    @property
    def key_text(self) -> str:
        """Builder, class and all fields: what the cache compares before it trusts a file."""
        return self._key_text

    @property
    def key(self) -> str:
        """SHA-256 of `key_text` in hexadecimal: the name of the kernel on disk."""
        return self._key

    @property
    def symbol(self) -> str:
        """Name of the exported function; unique per plan, so that an object of another plan cannot be called."""
        return f"cutefp4_{self._key[:32]}"

    def compile_options(self) -> tuple[str, ...]:
        """Further options for `cute.compile`, derived from fields alone ("--ptxas-options ...")."""
        return ()

    def describe(self) -> str:
        """Class name and the fields that differ from their defaults."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def load_builder(self):
        """The builder function, imported now.

        Raises:
            CompileError: the class names no builder, or it does not exist.
        """
        module, _, name = self.builder.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise CompileError(
                f"builder {self.builder!r} of {type(self).__name__}: {error}",
                "'module:function' that can be imported",
                "set the class attribute builder",
            ) from error


def to_json(value: Any) -> Any:
    """A plan (or a field value of one) as JSON data; `from_json` gives an equal plan back."""
    if type(value) is tuple:
        return [to_json(item) for item in value]
    if is_dataclass(value):
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": path, **{f.name: to_json(getattr(value, f.name)) for f in fields(value)}}
    return value


def from_json(data: Any) -> Any:
    """The plan that `to_json` wrote; lists become tuples.

    Raises:
        CompileError: the data names no class of cutefp4, or fields that it does not have.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    values = dict(data)
    path = values.pop("class", "")
    module, _, name = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise TypeError(f"{path} is not a dataclass")
        return cls(**{field: from_json(value) for field, value in values.items()})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise CompileError(
            f"plan of class {path!r}: {error}",
            '{"class": "module:Class", field: value, ...} as `cutefp4 warmup` and meta.json write it',
            "write the plan again with this version of cutefp4",
        ) from error
