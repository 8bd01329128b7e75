"""What this CPU computes exactly: the flags by which a replica picks its artifact.

Pure half of serve_app: no ray, no torch.
"""

import platform
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Final

# A name of ours -> the kernel's names, any of which will do. VNNI adds 8-bit products into 32 bits;
# without it ONNX Runtime adds pairs of them into 16 bits, which overflow.
_KERNEL_NAMES: Final = {"vnni": frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})}


def flags_in(cpuinfo: str) -> frozenset[str]:
    """Our flags that every processor in a /proc/cpuinfo has."""
    lines = [
        frozenset(line.partition(":")[2].split())
        for line in cpuinfo.splitlines()
        if line.lower().startswith(("flags", "features"))
    ]
    return frozenset(
        ours
        for ours, theirs in _KERNEL_NAMES.items()
        if lines and all(line & theirs for line in lines)
    )


@cache
def cpu_flags() -> frozenset[str]:
    """This machine's flags; none where the kernel does not say, which is the safe answer."""
    if platform.system() != "Linux":
        return frozenset()
    try:
        return flags_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return frozenset()


def has_all(needs: Collection[str]) -> bool:
    """Whether this CPU has every flag that an artifact needs."""
    return cpu_flags() >= set(needs)
