"""Zips made to do harm: each is refused by name, and nothing of it is written."""

import errno
import os
import stat
import struct
import zipfile

import pytest

from vitlab.submission import archive
from vitlab.submission.archive import UnsafeBundle, open_bundle, unpack, write_zip
from vitlab.submission.verify import CHECKS, verify_bundle


def write(path, *members, **more):
    """A zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **more) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


LEADING = [
    "../evil.txt",
    "a/../../evil.txt",
    "/etc/passwd",
    "C:/evil.txt",
    "..",
    "a//b",
    "./a",
    "a/./b",
    "a\\..\\b",
    "\\a",
]
# the last reads backwards
STRANGE = ["a.txt.", "a ", "a\nb", "a\x1b[2Jb", "a:b", "a" * 300, "a\u202eb"]


@pytest.mark.parametrize("name", [*LEADING, *STRANGE])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write(tmp_path / "bad.zip", ("fine.txt", "1"), (zipfile.ZipInfo(name), "2"))
    with pytest.raises(UnsafeBundle, match="is not a plain relative path"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "runs/digits/vit_scratch-seed0-1a2b/notebooks/03_finetune.ipynb",
        "Ä/ß.md",
        "a-b_c.d",
    ],
)
def test_plain_names_are_fine(tmp_path, name):
    unpack(write(tmp_path / "fine.zip", ("folder/", ""), (name, "x")), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "x"


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    with pytest.raises(UnsafeBundle, match="link is a link or a special file"):
        unpack(write(tmp_path / "bad.zip", (info, "/etc/passwd")), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names", [("a.txt", "a.txt"), ("a.txt", "A.TXT"), ("a", "a/b"), ("a/b", "a"), ("a", "a/")]
)
def test_a_name_twice_is_refused(tmp_path, names):
    path = write(tmp_path / "bad.zip", *((name, "x") for name in names))
    with pytest.raises(UnsafeBundle, match=r"two files of the same name|is damaged"):
        unpack(path, tmp_path / "out")


def test_bombs_are_refused_before_they_grow(tmp_path, monkeypatch):
    with pytest.raises(
        UnsafeBundle, match=r"zeros would grow from 1,\d\d\d to 2,000,000 bytes; too much"
    ):
        unpack(write(tmp_path / "bomb.zip", ("zeros", bytes(2 * 10**6))), tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_FILES", 10)
    many = write(tmp_path / "many.zip", *((f"{number}", "") for number in range(11)))
    with monkeypatch.context() as patch, pytest.raises(UnsafeBundle, match="holds over 10 files"):
        patch.setattr(zipfile, "ZipFile", None)  # which would read the whole directory into memory
        unpack(many, tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(UnsafeBundle, match=r"would unpack to 0\.0 GB"):
        unpack(write(tmp_path / "big.zip", ("a", "x" * 900), ("b", "x" * 900)), tmp_path / "out")
    with pytest.raises(UnsafeBundle, match=r"large\.zip has 0\.0 GB; at most"):
        unpack(write(tmp_path / "large.zip", ("a", os.urandom(1200))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_lies_writes_no_more_than_it_says(tmp_path):
    path = write(tmp_path / "lie.zip", ("zeros", bytes(3 * 10**6)))
    # both headers say 1,000 bytes
    content = path.read_bytes().replace(struct.pack("<L", 3 * 10**6), struct.pack("<L", 1000))
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match="zeros is damaged"):
        unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "zeros").stat().st_size <= 1000


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = write(tmp_path / "overlap.zip", ("a", os.urandom(500)), ("b", os.urandom(500)))
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\x01\x02")
    # the second member has the bytes of the first
    content[second + 42 : second + 46] = struct.pack("<L", 0)
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match="is damaged"):
        unpack(path, tmp_path / "out")


def test_encrypted_and_strangely_packed_members_are_refused(tmp_path):
    path = write(tmp_path / "bad.zip", ("a", "x"))
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match=r"a is damaged or incomplete .*encrypted"):
        unpack(path, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a", "x")
    with pytest.raises(UnsafeBundle, match="compressed by method 14"):
        unpack(tmp_path / "lzma.zip", tmp_path / "out")


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_zip_cut_off_fails_the_first_check(tmp_path, share):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(os.urandom(5000))
    content = write_zip(tmp_path / "in", tmp_path / "whole.zip").read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(share * len(content))])
    (failed,) = verify_bundle(path).failed
    assert failed.check == "archive" and "cut.zip is damaged or incomplete" in failed.detail


def test_an_unsafe_zip_is_a_verdict_not_an_exception(tmp_path):
    verdict = verify_bundle(write(tmp_path / "bad.zip", ("../evil.txt", "1")))
    assert [(result.check, result.status) for result in verdict.results] == [
        ("archive", "fail"),
        *((name, "skipped") for name in CHECKS),
    ]
    assert "'../evil.txt' is not a plain relative path" in verdict.failed[0].detail


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc"])
def test_a_folder_with_a_link_is_refused(tmp_path, target):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "link").symlink_to(target)
    with pytest.raises(UnsafeBundle, match="link is a link"), open_bundle(tmp_path / "bundle"):
        pass


def test_the_temporary_folder_is_removed(tmp_path):
    path = write(tmp_path / "fine.zip", ("a/b.txt", "x"))
    with open_bundle(path) as folder:
        assert (folder / "a" / "b.txt").read_text() == "x"
    assert not folder.exists()
    with (
        pytest.raises(FileNotFoundError, match="there is no bundle"),
        open_bundle(tmp_path / "none.zip"),
    ):
        pass


def test_the_same_files_give_the_same_zip(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    one = write_zip(tmp_path / "in", tmp_path / "one.zip").read_bytes()
    os.utime(tmp_path / "in" / "a.txt", (1, 1))
    assert one == write_zip(tmp_path / "in", tmp_path / "two.zip").read_bytes()


def test_a_full_disk_is_not_blamed_on_the_bundle(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", refuse)
    with pytest.raises(OSError, match="No space left"):
        unpack(write(tmp_path / "whole.zip", ("a.txt", "text")), tmp_path / "out")
