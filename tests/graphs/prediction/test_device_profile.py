"""Device profiles as files: what is written is read, and what can't be a profile is refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.graphs.sample_programs import decoder, encoder
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile, profile_text, read_profile

PROFILE = profile_of(decoder())


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(json.loads(profile_text(PROFILE)) | changes), encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(profile_text(PROFILE), encoding="utf-8")
    assert read_profile(path) == PROFILE


def _refused(path: Path) -> str:
    with pytest.raises(InputError, match="fix: ") as error:
        read_profile(path)
    assert error.value.where == str(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "of format 2, this twoheads reads 1"),
        ({"machine": 3}, "DeviceProfile.machine: expected str, got int"),
        ({"surprise": 1}, "unknown entry 'surprise'"),
        ({"stage_seconds": -1.0}, "stage_seconds is -1"),
        ({"copy_bytes_per_second": 0}, "copy_bytes_per_second is 0"),
        ({"price_per_hour": float("nan")}, "price_per_hour is nan"),
        ({"network": {"bytes_per_second": 0.0, "round_seconds": 1.0}}, "network.bytes_per_second is 0"),
        ({"threads": [2, 1]}, "not numbers that ascend"),
        ({"threads": []}, "not numbers that ascend"),
        ({"threads": [1, 2, 4]}, "the engine first has no time for every number of threads"),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in _refused(_write(tmp_path, **changes))


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    assert "can't be read" in _refused(path)
    for text in ("no JSON", "[1, 2]", "{}"):
        path.write_text(text, encoding="utf-8")
        assert "is no" in _refused(path)


def test_callers_that_were_not_measured_count_as_more() -> None:
    def seconds(callers: int) -> float:
        return PROFILE.call_seconds("attention", "full", callers)

    assert [seconds(callers) for callers in (1, 2, 3)] == [1.0, 1.5, 1.5]
    with pytest.raises(InputError, match=r"no time of the engine attention\.sideways"):
        PROFILE.call_seconds("attention", "sideways", 1)


def test_of_other_engines_is_refused() -> None:
    PROFILE.check_program(decoder(), "here.json")
    for other in (encoder(), decoder(block_size=32, key_tile=32)):
        with pytest.raises(
            InputError, match=r"here\.json: was measured on the engines of tiny-decoder with blocks of 16"
        ):
            PROFILE.check_program(other, "here.json")
    with pytest.raises(InputError, match="up to 2 threads, not with 3"):
        PROFILE.check_threads(3, "here.json")


def test_variants() -> None:
    assert PROFILE.variants("attention") == {"full", "masked", "full_merge", "masked_merge"}
    assert isinstance(PROFILE, DeviceProfile)
