from __future__ import annotations

import os
from pathlib import Path

import pytest

from spmoe.errors import InputError
from spmoe.files import atomic_write


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with atomic_write(path) as stream:
        stream.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xa9\n"
    with atomic_write(path, binary=True) as raw:
        raw.write(b"\0")
    assert path.read_bytes() == b"\0"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_devices_are_written_to(tmp_path: Path) -> None:
    with atomic_write(os.devnull) as stream:
        stream.write("gone")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder/x", "cannot be written: No such file or directory"),
        ("", "cannot be written: is a directory; expected a file name"),
        ("file/x", "cannot be written: Not a directory"),
    ],
)
def test_an_impossible_place_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught, atomic_write(tmp_path / name):
        raise AssertionError("the block must not run")
    assert str(caught.value) == f"{tmp_path / name}: {message}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_closed_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="x: cannot be written: Permission denied"), atomic_write(tmp_path / "x"):
        pass
    tmp_path.chmod(0o700)
