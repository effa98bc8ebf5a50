"""The schedule model: its rules one by one, the predicted targets, and the errors that are stated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cutefp4.cli.bench import schedule_document as program
from cutefp4.config import Sm90Config
from cutefp4.heuristics import sm100
from cutefp4.schedule_model import Machine, Work, schedule
from cutefp4.schedule_model_sm100 import B200, GemmShape, estimate, with_sms

RESULTS = Path(__file__).parents[1] / "perf" / "results"
MACHINE = Machine("test", sms=10, clock=1.0, products=1000, smem=100, l2=10.0, hbm=1000.0, latency=500, launch=1.0)
WORK = Work(
    stage={"mma": 100.0, "l2": 40.0},
    stages=20,
    depth=8,
    epilogue={"issue": 300.0, "bytes": 200.0},
    epilogue_fixed=100.0,
    overlapped=True,
    tiles=30,
    at_once=10,
    sms=10,
    hbm_bytes=1e4,
    products=1e9,
)


def test_the_slowest_resource_paces_the_mainloop():
    found = schedule(WORK, MACHINE)
    assert (found.limiter, found.mainloop, found.epilogue, found.waves) == ("mma", 2000, 400, 3)
    assert found.us == pytest.approx((3 * 2000 + 400 + 500) / 1000 + 1)
    assert found.terms["mma"] == pytest.approx(6.0) and found.terms["epilogue issue"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("change", "limiter", "us"),
    [
        ({"depth": 3}, "latency", 3 * 20 * 0.25 + 0.4 + 0.5 + 1),
        ({"stages": 2}, "epilogue", 3 * 0.4 + 0.4 + 0.5 + 1),
        ({"overlapped": False}, "mma", 3 * 2.4 + 0.5 + 1),
        ({"tiles": 31}, "mma", 4 * 2.0 + 0.4 + 0.5 + 1),
        ({"tiles": 25, "equal_shares": True, "overlapped": False}, "mma", 2.5 * 2 + 3.5 * 0.4 + 0.5 + 1),
        ({"hbm_bytes": 2e6, "sms": 1}, "hbm", 200 + 0.5 + 1),
    ],
)
def test_each_rule(change, limiter, us):
    found = schedule(replace(WORK, **change), MACHINE)
    assert found.limiter == limiter and found.us == pytest.approx(us)


def test_predicted_targets():
    rows = {(row["m"], row["n"], row["k"]): row for row in program.predictions()}
    assert rows[8192, 8192, 8192]["share_of_peak"] >= 0.8
    assert min(rows[m, 7168, 16384]["share_of_hbm"] for m in (1, 16)) >= 0.75
    assert rows[16384, 7168, 2048]["epilogue_over_mma"] <= 0.6
    for row in rows.values():
        named = row["terms_us"].get(row["limiter"], row["terms_us"]["epilogue fixed"])
        assert 0 < named <= row["predicted_us"], row


def test_more_of_the_machine_is_never_slower():
    shape = GemmShape(8192, 8192, 8192)
    config = sm100.choose(shape, B200.sms)
    times = [estimate(config, shape, with_sms(sms)).us for sms in (74, 148, 296)]
    assert times == sorted(times, reverse=True)


def test_measured_products_are_modelled_within_the_stated_error():
    rows, _ = program.validations(RESULTS)
    assert rows
    table = {name: (middle, most) for name, _, middle, most in program.errors_by_class(rows)}
    assert table["all"][0] < 0.25


def test_configurations_are_read_from_both_forms():
    config = Sm90Config(k_blocks=2, load_stages=3, mma_stages=3, store_passes=2, steps_per_group=4)
    assert program.config_of("ab 256x128x128 s1 l3m3p2g4r8c2 float16") == config
    assert program.config_of(program.describe(config)) == config
    assert program.config_of("defaults") == Sm90Config() and program.config_of("n_tiles=2 warps=8") is None
    stream = program.config_of("tile_n=16 swap_ab=True stream_k=True")
    assert stream == Sm90Config(tile_n=16, swap_ab=True, stream_k=True)


def test_the_document_is_what_the_generator_gives():
    text = (RESULTS.parent / program.DOCUMENT).read_text()
    assert text == program.document(RESULTS), "run `cutefp4 bench report`"
    numbers = json.loads((RESULTS / program.PREDICTED / program.NUMBERS).read_text())
    assert numbers["predictions"] == program.predictions()
