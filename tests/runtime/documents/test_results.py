"""A folder of results forgets what a kill left half written."""

from __future__ import annotations

import json

import pytest

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


def test_a_kill_before_the_summary_of_a_finished_folder(tmp_path, monkeypatch):
    folder = tmp_path / "results"

    def die(self):
        (folder / "run.partial").write_text("half")
        raise KeyboardInterrupt

    with ResultFolder(folder, {"of": "a"}, {}) as results:
        monkeypatch.setattr(ResultFolder, "_summarize", die)
        with pytest.raises(KeyboardInterrupt):
            results.finish()
    monkeypatch.undo()
    with ResultFolder(folder, {"of": "a"}, {}) as results:
        assert results.finished
    assert json.loads((folder / "run.json").read_text())["finished"]
    assert not (folder / "run.partial").exists()
