"""Records the signatures of vendors' packages that can't be installed everywhere: tests/data/signatures.json.

``python -m tools.signatures`` fetches each package's wheel with pip, of whatever system it is for, and reads its
sources without running them. Tests hold our calls and our stand-ins to the record, so that no test is skipped where a
package is not installed. ``--wheels FOLDER`` reads wheels that are there, ``PACKAGE ...`` records these alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "RECORD", "Vendor", "main", "read_members"]

RECORD = Path(__file__).parents[1] / "tests" / "data" / "signatures.json"


@dataclass(frozen=True, slots=True)
class Vendor:
    """What is recorded of a package.

    Attributes:
        platform: The wheel's, as pip takes it; empty for this machine's.
        members: By source file: functions, ``Class.method``, ``Class.FIELD``, or a class of ``attrs``, whose fields are
            the parameters.
    """

    platform: tuple[str, ...]
    members: dict[str, tuple[str, ...]]


PACKAGES = {
    "coremltools": Vendor(
        (),
        {
            "coremltools/__init__.py": ("ComputeUnit.ALL",),
            "coremltools/converters/_converters_entry.py": ("convert",),
            "coremltools/models/model.py": ("MLModel.__init__", "MLModel.get_spec", "MLModel.predict", "MLModel.save"),
            "coremltools/models/utils.py": ("load_spec", "rename_feature"),
            "coremltools/optimize/coreml/_config.py": ("OpPalettizerConfig", "OptimizationConfig"),
            "coremltools/optimize/coreml/_post_training_quantization.py": ("decompress_weights", "palettize_weights"),
        },
    ),
    "rknn-toolkit2": Vendor(
        (),
        {
            "rknn/api/rknn.py": tuple(
                f"RKNN.{name}"
                for name in (
                    *("__init__", "config", "load_onnx", "build", "export_rknn", "init_runtime", "inference"),
                    "release",
                )
            )
        },
    ),
    "rknn-toolkit-lite2": Vendor(
        ("manylinux_2_17_aarch64", "manylinux2014_aarch64"),
        {
            "rknnlite/api/rknn_lite.py": tuple(
                f"RKNNLite.{name}" for name in ("__init__", "load_rknn", "init_runtime", "inference", "NPU_CORE_AUTO")
            )
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", choices=[[], *PACKAGES], metavar="PACKAGE")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, which are not fetched then")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for package in options.packages or PACKAGES:
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _wheel(package, options.wheels or _fetched(package, Path(scratch)))
            with zipfile.ZipFile(wheel) as archive:
                members = read_members(package, partial(_text, archive))
            record[package] = {"version": wheel.name.split("-")[1], "members": members}
    RECORD.write_text(_written(record), encoding="utf-8")
    return 0


def read_members(package: str, source: Callable[[str], str]) -> dict[str, str | None]:
    """The parameters of all that is recorded of ``package``, by the member's name; ``None`` of a class's field.

    They read as in a ``lambda``, without annotations and ``self``, each default an ellipsis.

    Args:
        package: One of :data:`PACKAGES`.
        source: Gives the text of one of its files.

    Raises:
        LookupError: It has no such member.
    """
    found: dict[str, str | None] = {}
    for file, members in PACKAGES[package].members.items():
        tree = ast.parse(source(file))
        for member in members:
            found[member] = _member(tree, member, f"{package}: {file}")
    return found


def _fetched(package: str, folder: Path) -> Path:
    """The folder, with the package's newest wheel for this Python."""
    platforms = [word for name in PACKAGES[package].platform for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", *platforms, "-d", str(folder), package], check=True)
    return folder


def _text(archive: zipfile.ZipFile, file: str) -> str:
    return archive.read(file).decode()


def _wheel(package: str, folder: Path) -> Path:
    return next(folder.glob(f"{package.replace('-', '_')}-*.whl"))


def _member(tree: ast.Module, member: str, where: str) -> str | None:
    outer, _, inner = member.partition(".")
    node = _named(tree.body, outer, where)
    if isinstance(node, ast.ClassDef) and inner:
        node = _named(node.body, inner, f"{where}: {outer}")
    if isinstance(node, ast.FunctionDef):
        return _parameters(node.args)
    if isinstance(node, ast.ClassDef):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        return ", ".join(f"{ast.unparse(field.target).lstrip('_')}=..." for field in fields)  # as attrs names them
    return None


def _named(body: Iterable[ast.stmt], name: str, where: str) -> ast.stmt:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
    raise LookupError(f"{where} has no {name}")


def _parameters(arguments: ast.arguments) -> str:
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    for argument in filter(None, every):
        argument.annotation = None
    absent = ast.Constant(...)
    arguments.defaults = [absent for _ in arguments.defaults]
    arguments.kw_defaults = [default and absent for default in arguments.kw_defaults]
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    return ast.unparse(arguments)


def _written(record: dict[str, Any]) -> str:
    """JSON with a line for every member."""
    lines: list[str] = []
    for package, told in sorted(record.items()):
        members = [f'   "{name}": {json.dumps(told["members"][name])}' for name in sorted(told["members"])]
        body = ",\n".join(members)
        lines.append(f' "{package}": {{\n  "version": "{told["version"]}",\n  "members": {{\n{body}\n  }}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
