"""The exceptions of cutefp4.

Every message names three things: what was given, what is accepted, and what to do about it. `CuteFP4Error` is the
common base; each class also derives from the builtin exception that a caller would expect.
"""


class CuteFP4Error(Exception):
    """Base of every error that cutefp4 raises on purpose.

    Args:
        given: what the caller passed, in the caller's words ("K = 40").
        accepted: what would have been accepted ("a multiple of 16").
        fix: what to do ("pad the contraction axis with zeros").
    """

    def __init__(self, given: str, accepted: str = "", fix: str = "") -> None:
        self.given, self.accepted, self.fix = given, accepted, fix
        parts = [given]
        if accepted:
            parts.append(f"accepted: {accepted}")
        if fix:
            parts.append(f"to fix: {fix}")
        super().__init__("; ".join(parts))


class OperandError(CuteFP4Error, ValueError):
    """A tensor, operand or argument has a wrong shape, dtype, device, layout or value."""


class RecipeError(CuteFP4Error, ValueError):
    """A quantisation recipe has an unknown value, or a combination that has no meaning."""


class NonFiniteError(CuteFP4Error, ValueError):
    """`check_finite=True` found NaN or Inf."""


class CheckpointError(CuteFP4Error, ValueError):
    """A file does not hold what it should."""


class UnsupportedError(CuteFP4Error, RuntimeError):
    """The request is valid, but this backend, architecture or build cannot serve it."""


class BackendUnavailableError(UnsupportedError):
    """The chosen backend cannot run on this machine."""


class CompileError(CuteFP4Error, RuntimeError):
    """A kernel did not compile, or compiled with a property that is not allowed (spills)."""


class JitDisabledError(CompileError):
    """A kernel is not in the cache and CUTEFP4_JIT forbids compiling it now."""


class WorkspaceError(CuteFP4Error, RuntimeError):
    """A workspace would have to grow where it must not (inside a CUDA graph capture)."""


class CacheError(CuteFP4Error, RuntimeError):
    """The compile cache directory cannot be used safely (foreign owner, wrong kind of file)."""


class EmulatorError(CuteFP4Error, RuntimeError):
    """The emulator found a fault in a kernel, or met an instruction that it does not implement."""
