"""`confide bench sealing`: what a sealed sum costs, beside Flower's SecAgg+, CKKS, no protection, and the floor.

All figures are medians of CPU time in one run, so their ratios hold on a busy machine too (docs/benchmarks.md).
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

_SEED = 1
_NS = 1e9
_KEYS = ("client_ns_per_param", "coordinator_ns_per_param", "wire_bits_per_param", "client_peak_mib")

Result = dict[str, Any]


def sealing(
    params: Annotated[float, typer.Option(min=1, help="Parameters of the update, such as 1e7.")] = 1e7,
    nodes: Annotated[int, typer.Option(min=3, max=100, help="Organizations in the sum.")] = 8,
    bits: Annotated[int, typer.Option(help="Bits of one coordinate: 4, 8, 12 or 16.")] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="Samples of each figure; the median counts.")] = 5,
    many_nodes: Annotated[int, typer.Option(min=0, help="Also this many organizations; 0 leaves it out.")] = 32,
    many_params: Annotated[float, typer.Option(min=1, help="Parameters of that second case.")] = 1e6,
    memory_params: Annotated[float, typer.Option(min=1, help="Parameters at which our memory is measured.")] = 1e8,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
) -> None:
    """Cost of a sealed sum per parameter: node, coordinator, wire and memory, with 0 and 2 dropouts."""
    from confide_simulations.benchmarks.meta import meta, write_result
    from confide_simulations.benchmarks.sealing.ours import encoding_peak_mib, thread_scaling

    config = {
        "params": int(params), "nodes": nodes, "bits": bits, "repetitions": repetitions, "dropouts": [0, 2],
        "many_nodes": many_nodes, "many_params": int(many_params), "memory_params": int(memory_params),
        "update": "Gaussian, norm 0.999 of the clip", "clock": "CPU time, user and system; median",
    }  # fmt: skip
    result: Result = {"params": int(params), "nodes": nodes, "bits": bits}
    result |= compare(int(params), nodes, bits, repetitions, everything=True)
    with tempfile.TemporaryDirectory() as folder:
        result["threads"] = thread_scaling(int(params), nodes, bits, (1, 2), Path(folder))
    result["memory"] = {
        "params": int(memory_params),
        "ours_client_peak_mib": encoding_peak_mib(int(memory_params), nodes, bits),
    }
    if many_nodes:
        case: Result = {"params": int(many_params), "nodes": many_nodes, "bits": bits}
        result["many_nodes"] = case | compare(int(many_params), many_nodes, bits, repetitions, everything=False)
    result["meta"] = meta(seed=_SEED, config=config)
    _print(result)
    if json is not None:
        write_result(json, result)
        typer.echo(f"written: {json}")


def compare(params: int, nodes: int, bits: int, repetitions: int, *, everything: bool) -> Result:
    """Ours and SecAgg+ side by side; with `everything` also CKKS, the plain path and the floor."""
    from confide_simulations.benchmarks.sealing.flower import measure_secagg_plus
    from confide_simulations.benchmarks.sealing.ours import unit_update
    from confide_simulations.benchmarks.sealing.peers import measure_ckks, measure_plain

    update, drops = unit_update(params, _SEED), (0, 2)
    made: Result = {"ours": measure_ours(update, nodes, bits, drops, repetitions)}
    made["flower_secagg_plus"] = _lead(measure_secagg_plus(update, nodes, drops, repetitions))
    if everything:
        made["ckks"] = measure_ckks(update, nodes, repetitions)
        made["plain"] = measure_plain(update, nodes, repetitions)
        made["floor"] = measure_floor(params, nodes, bits, repetitions)
    made["ratios"] = _ratios(made)
    return made


def measure_ours(
    update: NDArray[np.float32], nodes: int, bits: int, drops: tuple[int, ...], repetitions: int
) -> Result:
    """Vectors by the codec and ring; keys, shares and signatures by the real protocol, added per parameter.

    The protocol's run sums short vectors too: what these cost by themselves is taken off, so that nothing counts twice.
    """
    from confide_simulations.benchmarks.sealing.ours import OurSlot, encoding_peak_mib
    from confide_simulations.benchmarks.sealing.protocol import SIZE, ProtocolCost

    with tempfile.TemporaryDirectory() as folder:
        protocol = ProtocolCost(nodes, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        short = OurSlot(update[:SIZE], nodes, bits, Path(folder))
        node_s = protocol.node_s - short.client_seconds(4 * nodes)
        coordinator_s = protocol.coordinator_s - short.coordinator_seconds([0], 4 * repetitions)[0]
    with tempfile.TemporaryDirectory() as folder:
        slot = OurSlot(update, nodes, bits, Path(folder))
        client = slot.client_seconds(repetitions) / update.size * _NS
        seconds = slot.coordinator_seconds(drops, 4 * repetitions)
        coordinators = {dropped: value / update.size * _NS for dropped, value in seconds.items()}
        error = slot.error(0)
    per_param = {
        "client": node_s / update.size * _NS,
        "coordinator": coordinator_s / update.size * _NS,
    }
    dropouts = {
        str(d): {
            "client_ns_per_param": client + per_param["client"],
            "coordinator_ns_per_param": cost + per_param["coordinator"],
        }
        for d, cost in coordinators.items()
    }
    return _lead(
        {
            "dropouts": dropouts,
            "wire_bits_per_param": 8 * slot.layout.wire_bytes / update.size,
            "client_peak_mib": encoding_peak_mib(update.size, nodes, bits),
            "of_which_vectors": {"client_ns_per_param": client, "coordinator_ns_per_param": coordinators[drops[0]]},
            "of_which_protocol": {
                "client_ms_per_slot": node_s * 1e3,
                "coordinator_ms_per_slot": coordinator_s * 1e3,
                "client_ms_per_epoch": protocol.epoch_node_s * 1e3,
                "coordinator_ms_per_epoch": protocol.epoch_coordinator_s * 1e3,
                "client_ns_per_param": per_param["client"],
                "coordinator_ns_per_param": per_param["coordinator"],
            },
            "relative_error_of_mean": error,
        }
    )


def measure_floor(params: int, nodes: int, bits: int, repetitions: int) -> Result:
    """AES-256-CTR keystreams and one add each: n masks at a node, n self masks at the coordinator."""
    from confide_simulations.benchmarks.sealing.ours import layout_of, masking_seconds

    layout = layout_of(params, nodes, bits)
    ours, floor = masking_seconds(params, nodes, layout.lane_bits, repetitions)
    return {
        "client_ns_per_param": floor / params * _NS,
        "coordinator_ns_per_param": floor / params * _NS,
        "wire_bits_per_param": layout.lane_bits,
        "client_peak_mib": None,
        "reason": "the floor holds no vector: memory has no meaning",
        "ours_masking_alone_ns_per_param": ours / params * _NS,
        "ours_masking_over_floor": ours / floor,
    }


def _lead(figures: Result) -> Result:
    """The figures without dropouts first, under the common keys."""
    without = figures["dropouts"]["0"]
    return {key: (without | figures)[key] for key in _KEYS} | figures


def _ratios(made: Result) -> Result:
    """SecAgg+ over ours: how many times less ours costs."""
    ours, flower = made["ours"], made["flower_secagg_plus"]
    ratios = {"wire": flower["wire_bits_per_param"] / ours["wire_bits_per_param"]}
    for d, figures in flower["dropouts"].items():
        for side in ("client", "coordinator"):
            key = f"{side}_ns_per_param"
            ratios[f"{side}_{d}_dropped"] = figures[key] / ours["dropouts"][d][key]
    return {"flower_secagg_plus_over_ours": ratios}


def _print(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, case in (("", result), ("", result.get("many_nodes"))):
        if case is None:
            continue
        table = Table(title=f"{title}{case['nodes']} nodes, {case['params']:,} parameters, {case['bits']} bits")
        for heading in ("", "node ns/param", "coordinator", "2 dropped", "wire bits", "node MiB"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name in ("ours", "flower_secagg_plus", "ckks", "plain", "floor"):
            if name in case:
                table.add_row(name.replace("_", " "), *_cells(case[name]))
        console.print(table)
        ratios = case["ratios"]["flower_secagg_plus_over_ours"]
        console.print("SecAgg+ over ours: " + ", ".join(f"{key} {value:.1f}x" for key, value in ratios.items()))
    floor = result["floor"]
    console.print(f"masking alone: {floor['ours_masking_over_floor']:.2f} times its floor")
    console.print(f"memory beyond the update: {result['memory']}")
    console.print(f"threads: {result['threads']}")


def _cells(figures: Result) -> list[str]:
    two = figures.get("dropouts", {}).get("2", {}).get("coordinator_ns_per_param")
    client, coordinator, wire, peak = (figures[key] for key in _KEYS)
    return ["-" if value is None else f"{value:.1f}" for value in (client, coordinator, two, wire, peak)]
