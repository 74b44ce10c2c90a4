"""What `torch.compile` and CUDA graphs really did in a run, so that a record says what ran and not
what was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class CompilerReport:
    """Counts of one attempt of a run, up to the last `update`. All are 0 where nothing was
    compiled."""

    compiled_graphs: int = 0
    recompilations: int = 0  # graphs after the first: another shape, as after a halved micro-batch
    graph_replays: int = 0  # CUDA graphs: two for each micro-batch, one of them the backward pass
    graph_skips: int = 0  # functions for which Inductor declined CUDA graphs; its log says why

    def update(self) -> None:
        from torch._dynamo.utils import counters

        self.compiled_graphs = counters["stats"]["unique_graphs"]
        self.recompilations = max(0, self.compiled_graphs - 1)
        self.graph_skips = counters["inductor"]["cudagraph_skips"]


def forget() -> None:
    """Drop every compiled function and free its CUDA graphs.

    All runs of a process share one code object, and Dynamo stops compiling a code object after
    eight variants: a sweep in one process would fall back to eager execution half way.
    """
    import torch._dynamo

    torch._dynamo.reset()


@contextlib.contextmanager
def watched() -> Iterator[CompilerReport]:
    """Start with nothing compiled, count what happens inside, and leave nothing compiled behind."""
    from torch._dynamo.utils import counters

    forget()
    counters.clear()
    report, replay = CompilerReport(), torch.cuda.CUDAGraph.replay

    def counted(self: torch.cuda.CUDAGraph) -> None:
        report.graph_replays += 1
        replay(self)

    torch.cuda.CUDAGraph.replay = counted
    try:
        yield report
    finally:
        torch.cuda.CUDAGraph.replay = replay
        report.update()
        forget()  # the memory of the graphs is for whatever comes next in this process
