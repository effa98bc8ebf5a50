"""Which values each field of a configuration takes in a sweep.

A field without an entry takes both values if it is a bool and otherwise its default, so that a new field of a
configuration appears here by itself. `--set field=value,value` replaces an axis.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from cutefp4.config import Sm90Config
from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.config_sm100 import Sm100Config
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import OperandError

MOST = "most"
"""As a number of stages: as many as fit."""

AXES: dict[type, dict[str, tuple]] = {
    Sm90Config: {
        "tile_m": (64, 128, 256),
        "tile_n": (16, 32, 64, 128, 256),
        "k_blocks": (1, 2, 4),
        "consumer_groups": (1, 2),
        "load_stages": (MOST,),
        "mma_stages": (2, 3, 4),
        "store_passes": (1, 2),
        "steps_per_group": (2, 4),
        "decode_groups": (0, 1),
        "cluster": (1, 2),
        "fragment_registers": (16, 32),
        "splits": (1,),
        "split_pair": (False,),
    },
    SmallMConfig: {
        "row_tiles": (1, 2),
        "depth": (2, 4, 8),
        "row_warps": (4, 8, 16),
        "k_warps": (1, 2, 4),
        "cluster": (1, 2, 4),
        "ctas_per_sm": (1, 2),
    },
    FewRowsConfig: {
        "atoms": (1, 2, 4),
        "k_groups": (1, 2, 4),
        "stages": (MOST,),
        "cluster": (1, 2, 4, 8),
    },
    Sm100Config: {
        "tile_m": (128, 256),
        "tile_n": (64, 128, 192, 256),
        "cluster_m": (1, 2, 4),
        "cluster_n": (1, 2, 4),
        "stages": (MOST,),
        "splits": (1, 2, 4, 8, 16),
    },
}
FULL_AXES: dict[type, dict[str, tuple]] = {
    Sm90Config: {
        "tile_m": (64, 128, 256, 512),
        "consumer_groups": (1, 2, 3, 4),
        "mma_stages": (2, 3, 4, 6),
        "store_passes": (1, 2, 4, 8),
        "steps_per_group": (1, 2, 4),
        "raster_group": (1, 4, 8, 16),
        "splits": (1, 2, 4, 8),
        "split_pair": (False, True),
        "tile_n": (16, 32, 64, 128, 192, 256),
        "decode_groups": (0, 1, 2),
        "decode_to": ("float16", "bfloat16"),
    },
    SmallMConfig: {
        "depth": (2, 3, 4, 6, 8),
        "row_warps": (2, 4, 7, 8, 14, 16),
        "k_warps": (1, 2, 4, 8),
        "cluster": (1, 2, 4, 8),
        "ctas_per_sm": (1, 2, 3),
    },
    FewRowsConfig: {"stages": (2, 3, 4, 5, 6, 7, 8)},
    Sm100Config: {"raster_group": (1, 4, 8, 16), "stages": (2, 3, 4, 5, 6, 7, 8)},
}
"""Further values with `--full`: what matters less, or is fixed by the shape."""
STAGE_FIELD = {Sm90Config: "load_stages", FewRowsConfig: "stages", Sm100Config: "stages"}


def axes_of(kind: type, given: dict[str, list[str]], full: bool, base: Any) -> dict[str, tuple]:
    """The values of every field of a class of configurations.

    Args:
        given: by `--set`: a field and its values as text.
        base: the value of fields that are no axis.

    Raises:
        OperandError: a value that the field cannot have.
    """
    known = AXES[kind] | (FULL_AXES[kind] if full else {})
    axes = {}
    for f in fields(kind):
        default = getattr(base, f.name)
        values = known.get(f.name, (False, True) if isinstance(default, bool) else (default,))
        axes[f.name] = tuple(dict.fromkeys(values))
    for name, texts in given.items():
        axes[name] = tuple(_value(name, text, getattr(base, name)) for text in texts)
    return axes


def _value(name: str, text: str, like: Any) -> Any:
    if text == MOST:
        return MOST
    if isinstance(like, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if isinstance(like, int) and not isinstance(like, bool) and text.isdecimal():
        return int(text)
    if isinstance(like, str):
        return text
    raise OperandError(f"--set {name}={text}", f"a value like {like!r}", f"for example --set {name}={like}")
