"""Contenders for the tests of the benchmark's protocol; their names say how they behave."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from tools.bench import child
from tools.bench.contenders import CONTENDERS, Timing


class Steady:
    """Takes a second for every thousand tokens, without taking any time."""

    def __init__(self, setting) -> None:
        self.setting = setting
        print("noise on stdout while loading")

    def result(self, length) -> Any:
        return np.full((length, 2), 3.0)

    def run(self, length):
        print("noise on stdout")
        return Timing(length / 1000, {"flops": length, "flops_per_second": 1e9, "omp": os.environ["OMP_NUM_THREADS"]})


class Off(Steady):
    def result(self, length):
        return np.full((length, 2), 3.3)


class FailsAbove100(Steady):
    def result(self, length):
        return None

    def run(self, length):
        if length > 100:
            raise MemoryError("no room for\nso many tokens")
        return Timing(0.5, {})


class Dies(Steady):
    def run(self, length) -> Timing:
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os._exit(3)


class Sleeps(Steady):
    def run(self, length):
        time.sleep(60)
        return super().run(length)


def missing(setting):
    raise ModuleNotFoundError("No module named 'nonesuch'")


if __name__ == "__main__":
    CONTENDERS.update(
        {"steady": Steady, "off": Off, "fails": FailsAbove100, "dies": Dies, "sleeps": Sleeps, "missing": missing}
    )
    CONTENDERS["peak"] = CONTENDERS["ours"] = Steady
    sys.exit(child.main())
