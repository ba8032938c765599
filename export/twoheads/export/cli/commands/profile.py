"""``twoheads profile``: measures a bundle's engines on this machine, for ``plan --device``."""

from pathlib import Path
from typing import Annotated

import typer

from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_facts, print_json, print_table, seconds_text, size_text
from twoheads.export.cli.shared.load_options import Threads
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile, Network, profile_text
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.measurement.profiler import DEFAULT_NETWORK, profile_bundle
from twoheads.runtime.measurement.step_meter import with_step_times
from twoheads.runtime.memory.new_file import replacing
from twoheads.runtime.opening import load

__all__ = ["command"]

RoundMilliseconds = Annotated[
    float,
    typer.Option(
        "--round-ms", metavar="MS", help="For plans of several workers: milliseconds to start a stage on all."
    ),
]


def command(
    bundle: options.Bundle,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PROFILE.json", help="The device profile to write.")
    ],
    threads: Threads = None,
    backend: options.BackendOption = options.DEFAULT_BACKEND,
    precision: options.PrecisionOption = options.Precision.F32,
    tune: options.TuneOption = options.Tune.OFF,
    gigabits: Annotated[
        float, typer.Option("--network-gbit", metavar="G", help="For plans of several workers: Gbit/s into each.")
    ] = DEFAULT_NETWORK.bytes_per_second * 8 / 1e9,
    milliseconds: RoundMilliseconds = DEFAULT_NETWORK.round_seconds * 1e3,
    generation: Annotated[
        bool, typer.Option("--generation", help="Also measure steps of generation, for `plan --generate N --device`.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", metavar="P", help="What one worker costs per hour, in any currency."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure how long BUNDLE's engines take on this machine, so that `plan --device` can predict times.

    Takes some seconds, on a machine that does nothing else. Network and price are not measured: give them as options,
    or edit the file.

    Example: twoheads profile smollm2.bundle -o here.json && twoheads plan smollm2.bundle -n 100000 --device here.json
    """
    output = arguments.check_output_path(output)
    for name, number in (("--network-gbit", gigabits), ("--round-ms", milliseconds), ("--price-per-hour", price)):
        if number is not None and number <= 0:
            raise InputError(name, f"is {number:g}", "give a number above 0")
    network = Network(gigabits * 1e9 / 8, milliseconds / 1e3)
    with PhaseProgress() as progress:
        key_tile = None
        if tune != options.Tune.OFF:
            progress("choose key tiles")
            loaded = load(bundle, backend=backend, precision=precision.value, threads=threads, tune=tune.value)
            key_tile = loaded.program.key_tile
        profile = profile_bundle(
            bundle,
            backend=backend,
            precision=precision.value,
            threads=threads,
            key_tile=key_tile,
            network=network,
            price_per_hour=price,
            progress=lambda name: progress(name),
        )
        if generation:
            profile = with_step_times(profile, bundle, lambda name: progress(name))
    _write(profile, output)
    if as_json:
        print_json(to_json(profile))
        return
    _print_profile(profile, output)


def _write(profile: DeviceProfile, output: Path) -> None:
    try:
        with replacing(output) as file:
            file.write(profile_text(profile).encode())
    except OSError as error:
        raise arguments.unwritable(output, error) from None


def _print_profile(profile: DeviceProfile, output: Path) -> None:
    network = profile.network
    print_facts(
        (
            ("profile", str(output)),
            ("machine", f"{profile.machine}; {profile.backend}, {profile.precision}"),
            ("program", f"{profile.model}, blocks of {profile.block_size}, key tiles of {profile.key_tile}"),
            ("copies", f"{size_text(int(profile.copy_bytes_per_second))} a second in one thread"),
            (
                "network",
                f"{size_text(int(network.bytes_per_second))} a second, {seconds_text(network.round_seconds)} a stage "
                "(not measured)",
            ),
        )
    )
    print_table(
        "\nmilliseconds a call",
        ("engine", *(f">{_callers_text(number)}" for number in profile.threads), ">open"),
        [
            (
                f"{times.engine}.{times.variant}".rstrip("."),
                *(f"{times.call_seconds[str(number)] * 1e3:.3g}" for number in profile.threads),
                f"{times.open_seconds * 1e3:.3g}",
            )
            for times in profile.engines
        ],
    )


def _callers_text(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"
