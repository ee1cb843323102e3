"""What a node's policy lets it tell of its machine, in words."""

from confide.proto.fleet_pb2 import Hardware

from confide_server.console.words import TEXTS

NONE = "none"
"""What a node says of vector units or an accelerator that it has not."""


def glance(machine: Hardware) -> list[str]:
    """What matters first.

    >>> glance(Hardware(cores=2, memory_gib=16, vector_units=["avx2"], accelerator="none"))
    ['2 cores', '16 GiB']
    """
    said = [TEXTS("members.cores", count=machine.cores)] if machine.cores else []
    said += [TEXTS("members.memory", size=machine.memory_gib)] if machine.memory_gib else []
    return said + ([machine.accelerator] if machine.accelerator not in ("", NONE) else [])


def detail(machine: Hardware) -> list[str]:
    """All that was told.

    >>> detail(Hardware(cores=2, vector_units=["avx2", "avx512f"], accelerator="none"))
    ['2 cores', 'avx2 avx512f', 'no accelerator']
    """
    said = glance(machine)
    units = list(machine.vector_units)
    if units:
        said.append(TEXTS("members.no_units") if units == [NONE] else " ".join(units))
    return said + ([TEXTS("members.no_accelerator")] if machine.accelerator == NONE else [])
