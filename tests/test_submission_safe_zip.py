"""Zips made to do harm: each is refused by name, and nothing of it is written."""

import errno
import itertools
import os
import stat
import struct
import zipfile

import pytest

from vitlab.submission.archive import check_seal, write_zip
from vitlab.submission.safe_zip import Limits, UnsafeBundle, check_name, open_bundle, unpack
from vitlab.submission.verify import CHECKS, verify_bundle


def write(path, *members, **more):
    """A zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **more) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def rename(path, old, new):
    """Write another name of the same length over one, everywhere in the zip: what no tool would pack."""
    content = path.read_bytes()
    assert len(old) == len(new) and content.count(old) == 2
    path.write_bytes(content.replace(old, new))
    return path


LEADING = ["../evil.txt", "a/../../evil.txt", "/etc/passwd", "C:/evil.txt", "..", "a//b", "./a", "a/./b", "a\\..\\b", "\\a"]
STRANGE = ["nul.txt", "a/con", "a.txt.", "a ", "a\nb", "a\x1b[2Jb", "a:b", "a" * 300, "a\u202eb"]  # the last reads backwards


@pytest.mark.parametrize("name", [*LEADING, *STRANGE])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write(tmp_path / "bad.zip", ("fine.txt", "1"), (zipfile.ZipInfo(name), "2"))
    with pytest.raises(UnsafeBundle, match="the name"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil.txt").exists()


def test_a_name_cut_by_a_nul_is_refused(tmp_path):
    path = rename(write(tmp_path / "bad.zip", ("aXb.txt", "1")), b"aXb.txt", b"a\0b.txt")
    with pytest.raises(UnsafeBundle, match="name"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.txt", "runs/digits/vit_scratch-seed0-1a2b/notebooks/03_finetune.ipynb", "Ä/ß.md", "a-b_c.d"])
def test_plain_names_are_fine(name):
    check_name(name)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    with pytest.raises(UnsafeBundle, match=r"link is a (symbolic link|special file), not a plain file"):
        unpack(write(tmp_path / "bad.zip", (info, "/etc/passwd")), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.txt", "A.TXT"), ("a", "a/b"), ("a/b", "a")])
def test_a_name_twice_is_refused(tmp_path, names):
    path = write(tmp_path / "bad.zip", *((name, "x") for name in names))
    with pytest.raises(UnsafeBundle, match=r"twice|is a file and"):
        unpack(path, tmp_path / "out")


def test_bombs_are_refused_before_they_grow(tmp_path):
    with pytest.raises(UnsafeBundle, match=r"zeros would grow 1,0\d\d times"):
        unpack(write(tmp_path / "bomb.zip", ("zeros", bytes(2 * 10**6))), tmp_path / "out")
    many = write(tmp_path / "many.zip", *((f"{number}", "") for number in range(11)))
    with pytest.raises(UnsafeBundle, match="11 entries; at most 10"):
        unpack(many, tmp_path / "out", Limits(files=10))
    with pytest.raises(UnsafeBundle, match="would unpack to"):
        unpack(write(tmp_path / "big.zip", ("a", "x" * 900), ("b", "x" * 900)), tmp_path / "out", Limits(total=1000))
    assert not (tmp_path / "out").exists()


def test_a_size_that_lies_writes_no_more_than_it_says(tmp_path):
    path = write(tmp_path / "lie.zip", ("zeros", bytes(3 * 10**6)))
    content = path.read_bytes().replace(struct.pack("<L", 3 * 10**6), struct.pack("<L", 1000))  # both headers say 1,000 bytes
    path.write_bytes(content)
    damaged = unpack(path, tmp_path / "out")
    assert list(damaged) == ["zeros"] and not (tmp_path / "out" / "zeros").exists()


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = write(tmp_path / "overlap.zip", ("a", os.urandom(500)), ("b", os.urandom(500)))
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<L", 10)  # its data begin within those of the first
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match="lies over"):
        unpack(path, tmp_path / "out")


def test_encrypted_and_strangely_packed_members_are_refused(tmp_path):
    path = write(tmp_path / "bad.zip", ("a", "x"))
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UnsafeBundle, match="a is encrypted"):
        unpack(path, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", "x")
    with pytest.raises(UnsafeBundle, match="packed by method 14"):
        unpack(tmp_path / "lzma.zip", tmp_path / "out")


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_zip_cut_off_is_told_as_such(tmp_path, share):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(os.urandom(5000))
    content = write_zip(tmp_path / "in", tmp_path / "whole.zip").read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(share * len(content))])
    verdict = verify_bundle(path)
    assert verdict.failed[0].check == "archive"
    assert [result.check for result in verdict.results][:1] == ["archive"] and len(verdict.results) >= len(CHECKS)


def test_an_unsafe_zip_is_a_verdict_not_an_exception(tmp_path):
    path = write(tmp_path / "bad.zip", ("../evil.txt", "1"))
    verdict = verify_bundle(path)
    assert [(result.check, result.status) for result in verdict.results] == [
        (name, "fail" if name == "archive" else "skipped") for name in CHECKS
    ]
    assert "'../evil.txt' leads out of the folder" in verdict.failed[0].detail


def test_a_folder_with_a_link_is_refused(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeBundle, match="link is a link"), open_bundle(tmp_path / "bundle"):
        pass


def test_what_was_opened_is_removed(tmp_path):
    path = write(tmp_path / "fine.zip", ("a/b.txt", "x"))
    with open_bundle(path) as opened:
        assert (opened.folder / "a" / "b.txt").read_text() == "x" and not opened.damaged
        folder = opened.folder
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match="there is no bundle"), open_bundle(tmp_path / "none.zip"):
        pass


def test_the_seal_covers_every_byte(tmp_path):
    """Each byte of a small bundle, changed alone: the seal breaks, or the file is no zip any more."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("some text, some text, some text")
    (tmp_path / "in" / "sub" / "b.parquet").write_bytes(b"stored")
    path = write_zip(tmp_path / "in", tmp_path / "whole.zip")
    whole = path.read_bytes()
    assert check_seal(path)[0] == "pass"
    altered = tmp_path / "altered.zip"
    for place, bit in itertools.product(range(len(whole)), (0, 6, 7)):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        altered.write_bytes(content)
        try:
            unpack(altered, tmp_path / f"out{place}-{bit}")
            status, _ = check_seal(altered)
        except UnsafeBundle:
            status = "fail"
        assert status == "fail", (place, bit)
    altered.write_bytes(whole + b"\n")
    assert check_seal(altered)[0] == "fail"


def test_an_altered_header_is_named_and_the_same_files_give_the_same_zip(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    (tmp_path / "in" / "b.txt").write_text("text")
    path = write_zip(tmp_path / "in", tmp_path / "one.zip")
    assert path.read_bytes() == write_zip(tmp_path / "in", tmp_path / "two.zip").read_bytes()
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x03\x04", 4) + 10] ^= 1  # the time in the header of the second file
    path.write_bytes(content)
    assert check_seal(path) == ("fail", "bytes were altered after the zip was sealed: in the header of b.txt")


def test_a_zip_packed_again_has_no_seal_and_no_fault(tmp_path):
    status, told = check_seal(write(tmp_path / "again.zip", ("a", "x")))
    assert status == "skipped" and "packed again" in told


def test_a_full_disk_is_no_fault_of_the_bundle(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    path = write_zip(tmp_path / "in", tmp_path / "whole.zip")

    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", refuse)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, tmp_path / "out")
