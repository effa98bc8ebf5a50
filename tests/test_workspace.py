"""Workspaces: one per stream, one per capture, grown outside captures only."""

from __future__ import annotations

import threading

import pytest
import torch

from cutefp4 import workspace
from cutefp4.errors import WorkspaceError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    workspace.release()
    yield
    workspace.release()


class Streams:
    """Stands in for the driver: which stream is current, and what it captures."""

    stream = 1
    capture = None


@pytest.fixture
def streams(monkeypatch):
    state = Streams()
    monkeypatch.setattr(workspace, "_stream", lambda device: state.stream)
    monkeypatch.setattr(workspace, "_capture", lambda device, stream: state.capture)
    return state


def test_reused_without_allocation(streams, monkeypatch):
    first = workspace.get(CPU, 100_000, 10)
    assert first.scratch.numel() >= 100_000 and first.semaphores.numel() >= 10
    assert first.scratch.data_ptr() == first.partials.data_ptr() and first.scratch.data_ptr() % 16 == 0
    assert not first.semaphores.any()

    def forbidden(*args):
        raise AssertionError("a call that fits must allocate nothing and take no lock")

    monkeypatch.setattr(workspace, "_allocate", forbidden)
    monkeypatch.setattr(workspace, "_lock", None)
    for size in (0, 1, 100_000):
        assert workspace.get(CPU, size, 10) is first


def test_grows_and_keeps_the_larger(streams):
    small = workspace.get(CPU, 1000)
    large = workspace.get(CPU, 10_000_000, 100_000)
    assert large is not small and large.holds(10_000_000, 100_000)
    assert workspace.get(CPU, 1000) is large
    assert not large.semaphores.any()


def test_streams_share_nothing(streams):
    spaces = []
    for streams.stream in (1, 2, 3):
        spaces.append(workspace.get(CPU, 1000, 4))
    assert len({w.scratch.data_ptr() for w in spaces}) == 3 and len({w.semaphores.data_ptr() for w in spaces}) == 3
    streams.stream = 2
    assert workspace.get(CPU, 1000, 4) is spaces[1]


def test_each_capture_has_its_own(streams):
    eager = workspace.get(CPU, 1000, 4)
    seen = {id(eager)}
    for streams.capture in range(1, workspace.PREPARED_CAPTURES + 1):
        first = workspace.get(CPU, 1000, 4)
        assert workspace.get(CPU, 500) is first, "calls of one capture share"
        assert id(first) not in seen
        seen.add(id(first))
    streams.capture = 1
    assert id(workspace.get(CPU, 1000)) in seen, "the workspaces of a capture are kept"
    streams.capture = None
    assert workspace.get(CPU, 1000, 4) is eager


def test_capture_that_needs_growth_is_an_error(streams, monkeypatch):
    workspace.get(CPU, 1000, 4)
    before = workspace.allocated_bytes()
    streams.capture = 7
    monkeypatch.setattr(workspace, "_allocate", lambda pool: pytest.fail("allocated inside a capture"))
    with pytest.raises(WorkspaceError, match="capture.*10000000 bytes.*to fix: run the same calls once before"):
        workspace.get(CPU, 10_000_000)
    with pytest.raises(WorkspaceError, match="reserve inside"):
        workspace.reserve(CPU, 10)
    assert workspace.allocated_bytes() == before


def test_more_captures_than_prepared(streams):
    workspace.get(CPU, 1000)
    for streams.capture in range(workspace.PREPARED_CAPTURES):
        workspace.get(CPU, 1000)
    streams.capture = 100
    with pytest.raises(WorkspaceError, match="0 workspaces are prepared"):
        workspace.get(CPU, 1000)
    streams.capture = None
    workspace.get(CPU, 1000)
    streams.capture = 100
    workspace.get(CPU, 1000)


def test_reserve(streams):
    workspace.reserve(CPU, 5_000_000, 50_000, captures=6)
    for streams.capture in range(6):
        assert workspace.get(CPU, 5_000_000, 50_000).holds(5_000_000, 50_000)


def test_release(streams):
    workspace.get(CPU, 1000)
    assert workspace.allocated_bytes(CPU) == workspace.allocated_bytes() > 0
    workspace.release(CPU)
    assert workspace.allocated_bytes() == 0


def test_threads_on_the_cpu_share_nothing():
    found, together = [], threading.Barrier(4)

    def work():
        together.wait()
        found.append(workspace.get(CPU, 1000))
        together.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({w.scratch.data_ptr() for w in found}) == len(found) == 4


def test_usable_after_inference_mode():
    with torch.inference_mode():
        space = workspace.get(CPU, 64)
    assert not space.scratch.is_inference()
    space.partials[:4] = 1.0


@pytest.mark.gpu
def test_capture_on_the_device():
    """Warm up, capture two graphs and replay them beside eager work: three workspaces, all semaphores zero."""
    device = torch.device("cuda", torch.cuda.current_device())
    eager = workspace.get(device, 1 << 20, 16)
    inside, graphs = [], []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inside.append(workspace.get(device, 1 << 20, 16))
            inside[-1].partials[:4].add_(1.0)
        graphs.append(graph)
    assert len({w.scratch.data_ptr() for w in (eager, *inside)}) == 3
    with pytest.raises(WorkspaceError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        workspace.get(device, 1 << 30)
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert workspace.get(device, 1 << 20, 16) is not eager
