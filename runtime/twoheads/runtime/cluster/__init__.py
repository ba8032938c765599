"""Runs on many machines, by Ray: ``pip install "twoheads[cluster]"``; Ray is imported when a cluster is opened.

::

    from twoheads.runtime import load
    from twoheads.runtime.cluster import Cluster

    with Cluster("local:2") as cluster:
        result = cluster.run(load("smollm2.bundle"), tokens, output="last")
"""

from twoheads.runtime.cluster.cluster import Cluster

__all__ = ["Cluster"]
