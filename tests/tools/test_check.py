"""Which tests a change calls for."""

from __future__ import annotations

import pytest

from tools.check import room_tests


@pytest.fixture
def root(tmp_path):
    for name in (
        "tests/graphs/masks/test_tiles.py",
        "tests/graphs/masks/test_bands.py",
        "tests/graphs/test_errors.py",
        "tests/runtime/stages/attention/test_merge.py",
        "tests/tools/test_check.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["graphs/twoheads/graphs/masks/tiles.py"], ["tests/graphs/masks"]),
        (["graphs/twoheads/graphs/masks/tiles.py", "tests/graphs/masks/test_bands.py"], ["tests/graphs/masks"]),
        (["graphs/twoheads/graphs/errors.py"], ["tests/graphs/test_errors.py"]),
        (["tests/graphs/masks/test_bands.py"], ["tests/graphs/masks/test_bands.py"]),
        (["runtime/twoheads/runtime/stages/attention/merge.py"], ["tests/runtime/stages/attention"]),
        (["tools/demo.py", "README.md"], ["tests/tools"]),
        (["tests/graphs/masks/test_gone.py", "export/twoheads/export/emit/new.py"], []),
    ],
)
def test_a_room_is_tested_by_the_folder_of_its_name(root, files, expected):
    assert room_tests(files, root) == expected
