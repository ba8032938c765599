"""A folder of results forgets what a kill left half written."""

from __future__ import annotations

from twoheads.runtime.documents.results import JOB_FOLDER, ResultFolder


def test_what_a_kill_left_is_removed_by_the_next_command(tmp_path):
    folder = tmp_path / "results"
    with ResultFolder(folder, {"of": "a"}, {}):
        pass
    left = [folder / "part-00000.partial", folder / "run.partial"]
    left += [folder / JOB_FOLDER / f"{name}.partial" for name in ("job", "journal", "progress")]
    for path in left:
        path.write_text("half")
    with ResultFolder(folder, {"of": "a"}, {}):
        assert not [path for path in left if path.exists()]
