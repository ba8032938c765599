"""The picture of ``twoheads plan --workers --plot``: time, efficiency and bytes read over the number of workers."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twoheads.export.cli.plan.workers import Scaling
from twoheads.export.cli.shared import arguments
from twoheads.graphs.errors import InputError
from twoheads.runtime.memory.new_file import replacing

__all__ = ["check_plot", "plot_scalings"]

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuses what can't be drawn, before it is computed.

    Raises:
        InputError: matplotlib is not installed, it is no picture's name, or it can't be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(str(path), "is no picture's name", f"end it in {', '.join(FORMATS)}")
    arguments.check_output_path(path)
    importlib.import_module("matplotlib.figure")  # what is missing is told as everywhere


def plot_scalings(path: Path, title: str, scalings: Sequence[Scaling]) -> None:
    """Writes the picture."""
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(12, 4), layout="constrained")
    time, share, read = figure.subplots(1, 3)
    for scaling in scalings:
        workers = [plan.workers for plan in scaling.plans]
        line = time.plot(workers, [plan.seconds for plan in scaling.plans], marker="o", label=scaling.attention)
        colour = line[0].get_color()
        ideal = [scaling.one.seconds / count for count in workers]
        time.plot(workers, ideal, linestyle=":", color=colour, linewidth=1)
        share.plot(workers, [plan.efficiency for plan in scaling.plans], marker="o", color=colour)
        read.plot(workers, [plan.read_bytes / 1e9 for plan in scaling.plans], marker="o", color=colour)
    _label(time, "seconds (dotted: as if divided evenly)", log=True)
    _label(share, "efficiency", log=False)
    _label(read, "GB read by the worker that reads most", log=False)
    share.set_ylim(0, 1.05)
    read.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=len(scalings), frameon=False)
    try:
        with replacing(path) as file:
            figure.savefig(file, dpi=120, format=path.suffix[1:].lower())
    except OSError as error:
        raise arguments.unwritable(path, error) from None


def _label(axes: Any, text: str, *, log: bool) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda number, _at: f"{number:g}")
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("workers")
    axes.set_title(text, fontsize=10)
    axes.grid(visible=True, alpha=0.3)
