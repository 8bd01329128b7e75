"""CPU flags, as kernels write them."""

import pytest

from serve_app.model.cpu import cpu_flags, flags_in, has_all

# Cut from real machines: the lines that could be mistaken for one another, and some flags.
CASCADE_LAKE = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz
fpu\t\t: yes
flags\t\t: fpu vme sse4_2 avx f16c avx2 avx512f avx512dq avx512bw avx512vl pku ospke avx512_vnni
vmx flags\t: vnmi preemption_timer ept vpid
bugs\t\t: spectre_v1 spectre_v2 mmio_stale_data retbleed gds bhi its
bogomips\t: 5000.00

"""
ZEN_5 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9755 128-Core Processor
flags\t\t: fpu vme sse4a avx avx2 bmi2 sha_ni xsaves avx_vnni user_shstk clzero movdiri
bugs\t\t: sysret_ss_attrs spectre_v1 spectre_v2 spec_store_bypass
TLB size\t: 192 4K pages

"""
HASWELL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU E5-2676 v3 @ 2.40GHz
flags\t\t: fpu vme sse4_2 movbe popcnt aes xsave avx f16c rdrand fsgsbase bmi1 avx2 bmi2 erms
vmx flags\t: vnmi preemption_timer
bugs\t\t: cpu_meltdown spectre_v1 spectre_v2 l1tf mds

"""
GRAVITON_2 = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8

"""
CORTEX_A72 = GRAVITON_2.replace(" asimddp", "")
HAS = frozenset({"vnni"})
LACKS: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        pytest.param(CASCADE_LAKE, HAS, id="Intel with avx512_vnni"),
        pytest.param(ZEN_5, HAS, id="AMD with avx_vnni"),
        pytest.param(HASWELL, LACKS, id="an old Xeon"),
        pytest.param(GRAVITON_2, HAS, id="arm64 with a dot product"),
        pytest.param(CORTEX_A72, LACKS, id="arm64 without"),
        pytest.param(CASCADE_LAKE * 2, HAS, id="two processors"),
        pytest.param(CASCADE_LAKE + HASWELL, LACKS, id="the second lacks it"),
        pytest.param(HASWELL + CASCADE_LAKE, LACKS, id="the first lacks it"),
        pytest.param("", LACKS, id="nothing"),
        pytest.param("processor\t: 0\n\nflags\t\t:\n", LACKS, id="no flags"),
    ],
)
def test_a_flag_counts_if_every_processor_has_it(cpuinfo: str, flags: frozenset[str]) -> None:
    assert flags_in(cpuinfo) == flags


@pytest.mark.parametrize(
    "line",
    [
        "model name\t: a CPU without avx512_vnni",
        "vmx flags\t: avx512_vnni",
        "bugs\t\t: avx512_vnni",
        "flags\t\t: avx512_vnni_not avx512vnni",
    ],
)
def test_only_a_whole_flag_on_a_line_of_flags_counts(line: str) -> None:
    assert flags_in(f"{line}\n{HASWELL}") == LACKS
    assert flags_in(line) == LACKS


def test_who_needs_nothing_has_it_all_and_nobody_has_a_flag_that_is_none() -> None:
    assert has_all(())
    assert has_all(cpu_flags())
    assert not has_all([*cpu_flags(), "no such flag"])


@pytest.mark.parametrize("system", ["Darwin", "Linux"])
def test_where_the_kernel_does_not_say_there_is_no_flag(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def nothing(*_: object) -> str:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("pathlib.Path.read_text", nothing)
    assert cpu_flags.__wrapped__() == LACKS
