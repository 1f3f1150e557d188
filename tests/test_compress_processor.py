"""Instruction sets, from texts of other machines than this one."""

import subprocess
from types import SimpleNamespace

import pytest

from vitlab.compress import processor
from vitlab.compress.processor import (
    instruction_table,
    multiplies_int8,
    parse_flags,
    read_instructions,
)

XEON = (
    "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni"
    " amx_int8\n\nprocessor\t: 1\nflags\t\t: fpu\n"
)


def test_flags_of_the_first_processor():
    assert parse_flags(XEON) == {"fpu", "avx2", "avx512f", "avx512_vnni", "amx_int8"}
    assert parse_flags("processor : 0\nFeatures : fp asimd asimddp\n") == {"fp", "asimd", "asimddp"}
    assert parse_flags("nothing to be seen") is None


def test_the_table_of_instructions_is_that_of_the_architecture():
    table = instruction_table(parse_flags(XEON)).set_index("instruction")["present"]
    assert table[["avx512_vnni", "amx_int8", "amx_bf16", "avx_vnni"]].tolist() == [
        True,
        True,
        False,
        False,
    ]
    arm = instruction_table(frozenset({"asimd", "i8mm"})).set_index("instruction")["present"]
    assert arm[["asimd", "asimddp", "i8mm"]].tolist() == [True, False, True]
    assert "avx2" not in arm


def test_a_mac_is_asked_by_sysctl(monkeypatch, tmp_path):
    answer = (
        "hw.optional.arm.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd:"
        " 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    )
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "no cpuinfo")
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answer))
    assert read_instructions() == {"asimd", "asimddp"}


@pytest.fixture
def unknown_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "no cpuinfo")
    monkeypatch.setattr(processor.sys, "platform", "win32")
    monkeypatch.setitem(processor.sys.modules, "cpuinfo", None)


def test_elsewhere_it_is_unknown(unknown_processor, monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: "AMD64")
    assert read_instructions() is None
    assert set(instruction_table()["present"]) == {None}
    assert multiplies_int8() is False  # 7-bit weights are right on every machine
    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    assert multiplies_int8() is True


def test_a_machine_without_cpuinfo_file_asks_the_package(unknown_processor, monkeypatch):
    package = SimpleNamespace(get_cpu_info=lambda: {"flags": ["avx2", "avx512vnni"]})
    monkeypatch.setitem(processor.sys.modules, "cpuinfo", package)
    assert read_instructions() == {"avx2", "avx512_vnni"} and multiplies_int8()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx2", "avx_vnni"}, True),
        ({"amx_int8"}, True),
        ({"asimd"}, True),
        (set(), False),
    ],
)
def test_which_processors_multiply_8_bits_without_overflow(flags, expected):
    assert multiplies_int8(frozenset(flags)) is expected
