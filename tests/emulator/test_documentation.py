"""The emulator's README lists what there is: every finding with its severity, every counter, every injected fault."""

import importlib.resources
import re

from microkernels.faults import BLACKWELL, HOPPER

from cutefp4.emulator import counter_names, finding_kinds

README = (importlib.resources.files("cutefp4.emulator") / "README.md").read_text()


def rows(names: set[str]) -> dict[str, str]:
    """Second column of the table rows whose first column is one of ``names``."""
    found = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", README, re.M)
    return {name: value for name, value in found if name in names}


def test_every_finding_is_listed_with_its_severity():
    kinds = {k.name: ("warning", "error", "fatal")[k.severity] for k in finding_kinds()}
    assert rows(set(kinds)) == kinds


def test_every_counter_is_listed():
    meanings = dict(counter_names())
    assert rows(set(meanings)) == meanings


def test_every_injected_fault_is_listed():
    listed = set(re.findall(r"^\| (hopper|blackwell) \| ([^|]*) \| [^|]+ \| [^|]+ \|$", README, re.M))
    assert listed == {("hopper", f.what) for f in HOPPER} | {("blackwell", f.what) for f in BLACKWELL}
