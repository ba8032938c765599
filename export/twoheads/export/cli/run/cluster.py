"""``twoheads run --cluster``: the same run on the workers of a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from twoheads.export.cli.shared.console import size_text

if TYPE_CHECKING:
    from twoheads.runtime import Report
    from twoheads.runtime.cluster import Cluster

__all__ = ["cluster_lines", "open_cluster"]


@contextmanager
def open_cluster(address: str | None, *, threads: int | None, check: str) -> Generator[Cluster | None]:
    """The cluster at ``address``; ``None`` where no cluster is asked for.

    Args:
        address: As :class:`twoheads.runtime.cluster.Cluster` takes it.
        threads: Blocks that each worker computes at the same time.
        check: How thoroughly workers check the bundle's files.

    Raises:
        InputError: Ray is not installed.
        TwoheadsError: The cluster can't be reached.
    """
    if address is None:
        yield None
        return
    from twoheads.runtime.cluster import Cluster

    # Ray tells of lost workers on stdout, which is for results.
    with redirect_stdout(sys.stderr), Cluster(address, threads=threads, check=check) as cluster:
        yield cluster


def cluster_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """What the cluster did, as facts to print."""
    done = report.cluster
    if done is None:
        return ()
    lost = f"; {done.lost_workers} lost, {done.recomputed_calls} calls repeated" if done.lost_workers else ""
    return (
        ("cluster", f"{done.workers} workers of {report.threads} threads{lost}"),
        ("moved", f"{size_text(done.read_bytes)} read from others, {size_text(done.copied_bytes)} copied for safety"),
        ("worker memory", size_text(done.worker_peak_bytes)),
    )
