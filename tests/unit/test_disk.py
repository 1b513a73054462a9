import errno
import os
from pathlib import Path

import pytest

from fedgen import disk
from fedgen.errors import RunError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A folder that is to be replaced."""
    (tmp_path / "adapter" / "deep").mkdir(parents=True)
    (tmp_path / "adapter" / "deep" / "weights").write_text("old")
    return tmp_path / "adapter"


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_text("new")
    (folder / "card").write_text("new")


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    for content, expected in (("Küche", "Küche".encode()), (b"\0\1", b"\0\1"), ("", b"")):
        disk.write_atomic(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == expected
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch, step, error):
    disk.write_atomic(tmp_path / "file", "old")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises((RunError, KeyboardInterrupt)) as caught:
            disk.write_atomic(tmp_path / "file", "new")
    assert isinstance(caught.value, KeyboardInterrupt) or "The disk reports a fault" in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_short_writes_are_carried_on(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    disk.write_atomic(tmp_path / "file", "0123456789")
    assert (tmp_path / "file").read_text() == "0123456789"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(
        RunError, match=r"cannot write .*gone.*: No such file or directory \(\d+ bytes are free there\)"
    ):
        disk.write_atomic(tmp_path / "gone" / "file", "")


def test_a_folder_is_replaced_as_a_whole(adapter):
    with disk.replace_folder(adapter) as fresh:
        assert names(fresh) == []
        fill(fresh)
        assert (adapter / "deep" / "weights").read_text() == "old"
    assert names(adapter) == ["card", "deep"]
    assert (adapter / "deep" / "weights").read_text() == "new"
    assert names(adapter.parent) == ["adapter"]


def test_every_file_of_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with disk.replace_folder(tmp_path / "new" / "adapter") as fresh:
        fill(fresh)
    renamed = events.index("renamed")
    assert {*events[:renamed]} == {"card", "deep", "weights", fresh.name}
    assert events[renamed + 1 :] == ["new"]


def test_a_body_that_fails_changes_nothing(adapter):
    for error in (ValueError("mine"), ConnectionError(errno.ECONNREFUSED, "refused"), OSError("no number")):
        with pytest.raises(type(error)) as caught, disk.replace_folder(adapter):
            raise error
        assert caught.value is error
    with pytest.raises(RunError, match=r"cannot write .*adapter: No space left"), disk.replace_folder(adapter):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(adapter) == ["deep"]
    assert names(adapter.parent) == ["adapter"]


def test_a_folder_whose_second_rename_fails_is_put_back(adapter, monkeypatch):
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(RunError, match="The disk reports a fault"), disk.replace_folder(adapter) as fresh:
        fill(fresh)
    assert (adapter / "deep" / "weights").read_text() == "old"
    assert names(adapter.parent) == ["adapter"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path, adapter):
    link = tmp_path / "link"
    link.symlink_to(adapter)
    with disk.replace_folder(link) as fresh:
        fill(fresh)
    assert not link.is_symlink()
    assert (link / "card").read_text() == "new"
    assert (adapter / "deep" / "weights").read_text() == "old"
    assert names(tmp_path) == ["adapter", "link"]


def test_a_folder_system_that_cannot_sync_folders_is_put_up_with(tmp_path, monkeypatch):
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    disk.sync_folder(tmp_path)


def test_leftovers_of_the_living_are_swept_only_by_who_is_alone(tmp_path):
    fresh, aside = disk.beside(tmp_path / "x", "tmp"), disk.beside(tmp_path / "y", "old")
    fresh.mkdir()
    aside.mkdir()
    (tmp_path / "y").mkdir()
    assert disk.sweep(tmp_path, alone=False) == []
    assert disk.sweep(tmp_path, alone=True) == sorted([fresh.name, aside.name])
    assert names(tmp_path) == ["y"]
