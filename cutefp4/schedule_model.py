"""How long a persistent GEMM kernel takes: resources per stage and tile, pipeline depth, waves. Pure Python.

`schedule_model_sm100` says what one launch needs (`Work`); `schedule` here puts it together, by rules that do not
know the architecture, so that measurements on a Hopper GPU test the rules that predict a Blackwell one:

    stage      the slowest resource of a stage of K paces the mainloop: matrix pipe, issue slots, shared memory, L2
    latency    a ring of S stages has S - 1 loads under way; if these last less than a load takes, the loads pace it
    tile       mainloop and epilogue; beside each other where the kernel overlaps them, else one after the other
    waves      tiles / CTAs, rounded up; with equal shares of K (stream-K) not rounded
    ends       the first fill of the pipeline, the last epilogue, the launch
    HBM        never less than the bytes that must cross it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU.

    Attributes:
        name: for people. sms: multiprocessors. clock: GHz under load.
        products: multiply-adds per clock and SM of the operands' format.
        smem, l2: bytes per clock and SM. hbm: GB/s that a good kernel reaches.
        latency: clocks from a TMA's issue to its bytes. launch: us that any launch takes.
    """

    name: str
    sms: int
    clock: float
    products: int
    smem: int
    l2: float
    hbm: float
    latency: int
    launch: float

    def us(self, clocks: float) -> float:
        """Microseconds of a number of clocks."""
        return clocks / (self.clock * 1e3)


@dataclass(frozen=True)
class Work:
    """What one launch asks of a machine.

    Attributes:
        stage: clocks of one stage of K by resource, each as if it were alone.
        stages: stages of one work tile. depth: stages of the ring that TMA fills.
        epilogue: clocks of one tile's epilogue by resource; the slowest counts.
        epilogue_fixed: clocks of an epilogue that nothing hides: fences, latencies, an exchange of partial sums.
        overlapped: the epilogue of a tile runs beside the mainloop of the next.
        tiles: work tiles of a CTA (or of a cluster). at_once: CTAs (clusters) that run side by side.
        sms: multiprocessors with work.
        equal_shares: K of all tiles is cut into equal shares (stream-K), so waves are not rounded.
        setup: clocks of a launch besides.
        hbm_bytes: that must cross HBM once. products: multiply-adds of the whole problem.
    """

    stage: dict[str, float]
    stages: int
    depth: int
    epilogue: dict[str, float]
    epilogue_fixed: float
    overlapped: bool
    tiles: int
    at_once: int
    sms: int
    hbm_bytes: float
    products: float
    equal_shares: bool = False
    setup: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Predicted time and where it goes.

    Attributes:
        us: of the whole launch. limiter: the resource that paces it: a key of `stage`, "latency", "epilogue" or "hbm".
        stage: clocks per stage by resource, "latency" among them. mainloop, epilogue: clocks per tile.
        waves: rounds of tiles per CTA (cluster); fractional with equal shares.
        hbm_us: bytes / bandwidth. mma_share: of the peak of the whole GPU. hbm_share: of `Machine.hbm`.
        terms: us that the launch would take if each term were the only one, and what is added in any case (launch,
            ends): what people look at.
    """

    us: float
    limiter: str
    stage: dict[str, float]
    mainloop: float
    epilogue: float
    waves: float
    hbm_us: float
    mma_share: float
    hbm_share: float
    terms: dict[str, float] = field(default_factory=dict)


def schedule(work: Work, machine: Machine) -> Estimate:
    """The model: time of one launch."""
    waves = work.tiles / work.at_once if work.equal_shares else math.ceil(work.tiles / work.at_once)
    stage = dict(work.stage) | {"latency": machine.latency / max(work.depth - 1, 1)}
    if work.tiles * work.stages < work.at_once:
        waves = 1.0  # shares of less than one stage do not exist
    limiter, slowest = max(stage.items(), key=lambda item: item[1])
    mainloop = work.stages * slowest
    epilogue = max(work.epilogue.values(), default=0.0) + work.epilogue_fixed
    # A share of K begins and ends inside tiles: one more part than whole tiles.
    epilogues = waves + 1 if work.equal_shares else waves
    if work.overlapped:
        beside = waves * max(mainloop, epilogue) if waves > 1 else waves * mainloop
        clocks = beside + epilogue
        if waves > 1 and epilogue > mainloop:
            limiter = "epilogue"
    else:
        clocks = waves * mainloop + epilogues * epilogue
        if epilogues * epilogue > waves * mainloop:
            limiter = "epilogue"
    ends = machine.latency + work.setup
    compute = machine.us(clocks + ends)
    # SMs without work bring no bytes: a lone SM takes at most its L2 port.
    rate = min(machine.hbm, work.sms * machine.l2 * machine.clock)
    hbm_us = work.hbm_bytes / rate / 1e3
    memory = hbm_us + machine.us(machine.latency)
    if memory > compute:
        limiter = "hbm"
    us = max(compute, memory) + machine.launch
    peak = machine.sms * machine.products * machine.clock * 1e3
    terms = {name: machine.us(waves * work.stages * value) for name, value in stage.items()}
    terms |= {
        f"epilogue {name}": machine.us(epilogues * value)
        for name, value in (work.epilogue | {"fixed": work.epilogue_fixed}).items()
    }
    terms |= {"hbm": hbm_us, "ends": machine.us(ends), "launch": machine.launch}
    return Estimate(
        us=us,
        limiter=limiter,
        stage=stage,
        mainloop=mainloop,
        epilogue=epilogue,
        waves=waves,
        hbm_us=hbm_us,
        mma_share=work.products / peak / us,
        hbm_share=work.hbm_bytes / machine.hbm / 1e3 / us,
        terms=terms,
    )
