"""A disk that refuses says why, and what helps: free space only where that is missing."""

from __future__ import annotations

import errno
import os

import pytest

from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime import Job
from twoheads.runtime.memory.disk_space import disk_errors


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.EACCES, "may write to"), (errno.EROFS, "read-only"), (errno.ENOSPC, "make room"), (errno.EIO, "make room")],
)
def test_what_helps_depends_on_the_reason(tmp_path, number, fix):
    with pytest.raises(TwoheadsError) as caught, disk_errors(tmp_path, "can't be written", "make room"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(caught.value)
    assert fix in caught.value.fix
    assert ("free on its disk" in str(caught.value)) == (fix == "make room")


def test_a_job_in_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(*_words, **_more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("twoheads.runtime.jobs.job.os.open", refuse)
    with pytest.raises(TwoheadsError) as caught, Job(tmp_path / "job"):
        pass
    assert "Permission denied" in str(caught.value)
    assert "space" not in caught.value.fix
