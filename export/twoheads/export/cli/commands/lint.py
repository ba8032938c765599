"""``twoheads lint``: a bundle's engines against what is known of an accelerator."""

from collections import Counter

import typer

from twoheads.export.accelerators.target import load_target
from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_json, print_table, print_text
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["command"]


def command(
    bundle: options.Bundle,
    target: options.Target,
    generation: options.WithGeneration = False,
    as_json: options.Json = False,
) -> None:
    """Tell what an accelerator's compiler will refuse or leave to the host, with node, rule and remedy.

    No compiler is needed: the rules were measured with the compiler's version that is named. Exit code 1: an engine
    will be refused.

    Example: twoheads lint smollm2.bundle --target rknn
    """
    known = load_target(target)
    loaded = read_bundle(bundle, check="size")

    from twoheads.export.accelerators.lint import lint_bundle

    findings = lint_bundle(loaded, known, generation=generation)
    if as_json:
        print_json(to_json(findings))
    else:
        rows = [(found.engine, f"{found.operator} {found.node}", found.rule, found.effect) for found in findings]
        if rows:
            print_table("", ("engine", "node", "rule", "effect"), rows)
        for remedy, count in Counter((found.effect, found.remedy) for found in findings).items():
            print_text(f"{remedy[0]} ({count} nodes): {remedy[1]}")
        if not findings:
            print_text(f"nothing known against {known.title}, by {known.checked_with}")
    if any(found.effect == "refused" for found in findings):
        raise typer.Exit(1)
