"""Maps `kernels/` to `cutefp4.kernels`: the name `kernels` at top level belongs to another package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["cutefp4", "cutefp4.*"]),
        "cutefp4.kernels",
        *(f"cutefp4.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"cutefp4.kernels": "kernels"},
)
