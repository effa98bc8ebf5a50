"""Settings that all tests share, and which tests this machine can run."""

import os

import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores

# One example may compile or multiply matrices, so no deadline; the same examples in every run.
settings.register_profile("cutefp4", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("cutefp4")


def _missing_marks() -> dict[str, str]:
    """Marks of tests that this machine cannot run, with the reason."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("gpu", "sm90", "sm100"), "no CUDA device")
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    here = f"the GPU here is {name}, capability {major}.{minor}"
    present = {"sm90": (major, minor) == (9, 0), "sm100": major == 10}
    return {mark: here for mark, there in present.items() if not there}


def pytest_report_header() -> list[str]:
    """Say up front which tests are not run here."""
    return [f"cutefp4: tests marked {mark!r} are not run: {reason}" for mark, reason in _missing_marks().items()]


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out the tests whose hardware is missing."""
    missing = _missing_marks()
    left_out = [item for item in items if any(mark.name in missing for mark in item.iter_markers())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
