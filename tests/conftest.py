"""Settings that all tests share."""

from hypothesis import settings

# One example may compile or multiply matrices, so no deadline; the same examples in every run.
settings.register_profile("cutefp4", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("cutefp4")
