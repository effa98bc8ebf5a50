"""Rings of shared-memory stages guarded by mbarriers.

A ring has two barriers per stage: `full` (producers arrive when the stage holds data) and `empty` (consumers arrive
when they have read it). A position in the ring is a stage index and a phase bit that flips on every lap.
"""

from dataclasses import dataclass

import cutlass.cute as cute
import cutlass.pipeline as pipeline
from cutlass import Boolean

from .device_struct import DeviceStruct


@dataclass(frozen=True)
class RingSpec:
    """A ring as data: who fills it, who drains it, and how many arrivals complete each barrier.

    full_arrivals: arrivals per stage that make it full (TMA adds its bytes on top).
    empty_arrivals: arrivals per stage that make it empty again.
    """

    name: str
    stages: int
    full_arrivals: int
    empty_arrivals: int


class Ring(DeviceStruct):
    """The barriers of one ring in shared memory."""

    def __init__(self, spec: RingSpec, full: cute.Pointer, empty: cute.Pointer):
        self.spec, self.full, self.empty = spec, full, empty

    def init(self) -> None:
        """Initialise the barriers (one thread)."""
        for stage in range(self.spec.stages):
            cute.arch.mbarrier_init(self.full + stage, self.spec.full_arrivals)
            cute.arch.mbarrier_init(self.empty + stage, self.spec.empty_arrivals)

    def producer_state(self):
        """Position of the filling side: the first lap finds every stage empty."""
        return pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, self.spec.stages)

    def consumer_state(self):
        """Position of the draining side."""
        return pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, self.spec.stages)

    def wait_full(self, state) -> None:
        cute.arch.mbarrier_wait(self.full + state.index, state.phase)

    def is_full(self, state) -> Boolean:
        """Whether a wait for this stage would return at once; asks without waiting."""
        return cute.arch.mbarrier_test_wait(self.full + state.index, state.phase)

    @cute.jit
    def wait_full_unless(self, was_full: Boolean, state):
        """Wait for a stage that was or was not full when it was asked.

        The answer takes 50 to 90 clocks; work in between hides them.
        """
        if not was_full:
            cute.arch.mbarrier_wait(self.full + state.index, state.phase)

    def wait_empty(self, state) -> None:
        cute.arch.mbarrier_wait(self.empty + state.index, state.phase)

    def arrive_full(self, index) -> None:
        cute.arch.mbarrier_arrive(self.full + index)

    def arrive_empty(self, index) -> None:
        cute.arch.mbarrier_arrive(self.empty + index)

    def arrive_empty_at(self, index, cta) -> None:
        """Arrive at the ring of one CTA of the cluster."""
        cute.arch.mbarrier_arrive(self.empty + index, cta)

    def expect_bytes(self, state, count: int) -> None:
        """The producer's arrival, with the bytes that TMA will bring."""
        cute.arch.mbarrier_arrive_and_expect_tx(self.full + state.index, count)
