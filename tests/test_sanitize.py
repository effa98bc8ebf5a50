"""The cases for compute-sanitizer cover every Hopper kernel."""

import re
from pathlib import Path

from tests import sanitize

KERNELS = Path(__file__).parent.parent / "kernels"


def builders() -> set[str]:
    """Modules of kernels/ that build a Hopper kernel."""
    found = {
        ".".join(path.relative_to(KERNELS).with_suffix("").parts)
        for path in KERNELS.rglob("*.py")
        if re.search(r"^def build\(", path.read_text(), re.M)
    }
    return {f"cutefp4.kernels.{name}" for name in found if not name.startswith("sm100.")}


def test_every_kernel_has_a_case():
    found = sanitize.plans(sanitize.CASES)
    assert [name for name, plans in found.items() if not plans] == []
    plans = set().union(*found.values())
    assert len(plans) > len(sanitize.CASES)
    assert {plan.arch for plan in plans} == {"sm_90a"}
    assert {plan.builder.partition(":")[0] for plan in plans} == builders()
