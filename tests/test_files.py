"""Reading and writing under names of ours, whatever lies there already."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridgraph.errors import UserError
from hybridgraph.system.files import MAX_LINE_BYTES, read_lines, read_text, write_atomically


def link(path: Path) -> None:
    path.symlink_to(path.with_name("outside"))


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "a link": link,
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("read", [read_text, lambda path: list(read_lines(path))], ids=["text", "lines"])
@pytest.mark.timeout(20)
def test_read_of_no_regular_file_is_one_line(tmp_path: Path, read: Callable[[Path], object], obstacle: str) -> None:
    (tmp_path / "outside").write_text("of someone else\n")
    path = tmp_path / "ours"
    OBSTACLES[obstacle](path)
    with pytest.raises(UserError, match=rf"{path} cannot be read: (it is|Is a directory)"):
        read(path)


@pytest.mark.parametrize("read", [read_text, lambda path: list(read_lines(path))], ids=["text", "lines"])
@pytest.mark.timeout(20)
def test_read_of_a_device_is_one_line(read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match="/dev/zero cannot be read: it is no regular file"):
        read(Path("/dev/zero"))


def test_read_of_what_is_not_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_read_text_drops_a_byte_order_mark_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeffone\ufeff")
    assert read_text(path) == "one\ufeff"
    path.write_bytes("one".encode("utf-16"))
    with pytest.raises(UserError, match=r"byte 0 is no UTF-8"):
        read_text(path)


@pytest.mark.parametrize("name", ["lines", "lines.gz"])
def test_read_lines_drops_a_line_that_was_cut_short(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, b"one\ntwo\nthr"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_lines(path)) == [b"one\n", b"two\n"]


def test_what_is_read_is_bounded_also_when_decompressed(tmp_path: Path) -> None:
    plain, packed, endless = tmp_path / "plain", tmp_path / "packed.gz", tmp_path / "endless.gz"
    plain.write_text("12345\n" * 10)
    packed.write_bytes(gzip.compress(b"\n" * 1000))
    endless.write_bytes(gzip.compress(b"0" * (MAX_LINE_BYTES + 1)))
    assert (len(read_text(plain, limit=60)), len(list(read_lines(packed, limit=1000)))) == (60, 1000)
    for read in (read_text, lambda path, limit: list(read_lines(path, limit=limit))):
        with pytest.raises(UserError, match="there are more than 59 bytes"):
            read(plain, limit=59)
    with pytest.raises(UserError, match="there are more than 999 bytes"):
        list(read_lines(packed, limit=999))
    with pytest.raises(UserError, match="there are more than"):
        list(read_lines(endless))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: b"no gzip\n", lambda c: c[:20] + b"\0\0" + c[22:], lambda c: c + b"rest"]
)
def test_read_lines_of_a_damaged_archive_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "lines.gz"
    path.write_bytes(damage(gzip.compress(b"one\ntwo\nthree four five six\n" * 9)))
    with pytest.raises(UserError, match=f"{path} cannot be read: "):
        list(read_lines(path))


@pytest.mark.parametrize("content", ["text", b"\x89"])
@pytest.mark.parametrize("name", ["ours", "ours.partial"])
def test_write_follows_no_link(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / "outside").write_text("of someone else")
    link(tmp_path / name)
    write_atomically(tmp_path / "ours", content)
    assert (tmp_path / "outside").read_text() == "of someone else"
    assert not (tmp_path / "ours").is_symlink()
    assert (tmp_path / "ours").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "outside"]


@pytest.mark.parametrize("name", ["ours", "ours.partial"])
@pytest.mark.timeout(20)
def test_write_never_waits_for_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    write_atomically(tmp_path / "ours", "text")
    assert (tmp_path / "ours").read_text() == "text"


@pytest.mark.parametrize("name", ["ours", "ours.partial"])
def test_write_over_a_directory_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'ours'}: Is a directory"):
        write_atomically(tmp_path / "ours", "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]
