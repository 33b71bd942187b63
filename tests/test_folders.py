"""Folders that appear whole or not at all, with several who want to write them."""

import pytest

from glmkit import UsageError
from glmkit.runtime.folders import replacing


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_those_who_come_late_leave_the_first_one_alone(tmp_path, source):
    out = tmp_path / "out"
    with replacing(out, source, force=False) as first:
        (first / "weights").write_text("first")
        for _ in range(3):
            with (
                pytest.raises(UsageError, match="another process is writing"),
                replacing(out, source, force=True) as late,
            ):
                (late / "weights").write_text("late")
        assert (first / "weights").read_text() == "first"
    assert [each.name for each in out.iterdir()] == ["weights"]
    with replacing(out, source, force=True) as later:
        (later / "other").touch()
    assert [each.name for each in out.iterdir()] == ["other"]


def test_what_fails_leaves_the_folder_as_it_was(tmp_path, source):
    out = tmp_path / "out"
    for force in (False, True):
        with pytest.raises(KeyError), replacing(out, source, force=force) as partial:
            (partial / "half").touch()
            raise KeyError
        assert out.exists() == force
        assert not list(tmp_path.glob("*partial*"))
        out.mkdir(exist_ok=True)
        (out / "old").touch()
    assert [each.name for each in out.iterdir()] == ["old"]
