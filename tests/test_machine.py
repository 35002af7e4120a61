from __future__ import annotations

from dovit_deploy.machine import features_from_text, memory_from_text, this_machine

CPUINFO = "processor : 0\nflags\t\t: fpu avx2 sse avx512f amx_int8\n\nprocessor : 1\nflags : fpu\n"


def test_features_are_those_that_matter():
    assert features_from_text(CPUINFO) == ("avx2", "avx512f", "amx_int8")
    assert features_from_text("Features\t: fp asimd i8mm\n") == ("asimd", "i8mm")
    assert features_from_text("") == ()


def test_memory_in_gigabytes():
    text = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
    memory = memory_from_text(text)
    assert (memory["MemTotal"], memory["MemAvailable"]) == (16.38, 8.19)
    assert memory_from_text("") == {}


def test_this_machine_is_described():
    machine = this_machine()
    assert 1 <= machine.cores <= machine.cores_total
    assert machine.cpu and machine.system and machine.python.count(".") == 2
