"""The timer under its former name. It lives in `cutefp4.timing`, so that the installed command line has it, too."""

from cutefp4.timing import (
    DISTRIBUTIONS,
    Clock,
    EventClock,
    GraphClock,
    HostClock,
    Table,
    Timing,
    Variant,
    clocks,
    environment,
    fill,
    l2_bytes,
    measure,
    poison,
    rotation_sets,
)

__all__ = [
    "DISTRIBUTIONS",
    "Clock",
    "EventClock",
    "GraphClock",
    "HostClock",
    "Table",
    "Timing",
    "Variant",
    "clocks",
    "environment",
    "fill",
    "l2_bytes",
    "measure",
    "poison",
    "rotation_sets",
]
