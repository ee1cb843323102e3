"""`confide bench`: measurements with their peers in the same run. One entry here per benchmark."""

from collections.abc import Mapping
from importlib import import_module

import click
import typer
from confide.lazy_commands import LazyGroup, command_of

# Name on the command line -> module:function, and the first paragraph of that function's help.
BENCHMARKS = {
    "aggregation": (
        "confide_simulations.benchmarks.aggregation.command:aggregation",
        "Compare what LoRA learns under each aggregation, each at its own learning rate; about 40 CPU-minutes.",
    ),
    "agreement": (
        "confide_simulations.benchmarks.agreement:agreement",
        "Compare sealed with unsealed training: final NLL, and the first round's mean update.",
    ),
    "console": (
        "confide_simulations.benchmarks.console.command:console",
        "Time every page with 200 nodes, 1,000 runs and 1,000,000 events; reach: 100 ms at the 95th percentile.",
    ),
    "corpus": (
        "confide_simulations.benchmarks.training.corpus:corpus",
        "Peak memory of preparing a corpus and of one step, with the tokens in memory and in a file.",
    ),
    "differences": (
        "confide_simulations.benchmarks.differences.command:differences",
        "Two sums that differ by one organization: by which attacks, and what their difference tells.",
    ),
    "peers": (
        "confide_simulations.benchmarks.peers.command:peers",
        "Train the demo's task through plain Flower, Flower's SecAgg+, NVFLARE and Confide; time, memory, wire, loss.",
    ),
    "history": (
        "confide_simulations.benchmarks.fleet.history:history",
        "Time a page of runs on a coordinator with a long history; reach: 200 runs in under 50 ms.",
    ),
    "idle-nodes": (
        "confide_simulations.benchmarks.fleet.idle_nodes:idle_nodes",
        "What connected nodes cost a coordinator that has nothing to do, and an empty round of all of them.",
    ),
    "round": (
        "confide_simulations.benchmarks.fleet.round:round_",
        "Time an empty and a full round, and see what the coordinator needs.",
    ),
    "sealing": (
        "confide_simulations.benchmarks.sealing.command:sealing",
        "Cost of a sealed sum per parameter: node, coordinator, wire and memory, with 0 and 2 dropouts.",
    ),
    "serving": (
        "confide_simulations.benchmarks.serving:serving",
        "Compare batched answers with one at a time, the engine with bare generate, and time the endpoint itself.",
    ),
    "simulation": (
        "confide_simulations.benchmarks.training.simulation:simulation",
        "Wall time of a simulation over that of its bare local steps; unsealed, and sealed beside it.",
    ),
    "scale": (
        "confide_simulations.benchmarks.scale.command:scale",
        "CPU seconds and memory of every phase of sealed rounds, and how they grow with the number of organizations.",
    ),
    "rag": (
        "confide_simulations.benchmarks.rag.ingest:rag",
        "Time questions over 20,000 passages, and a pdf of 193 pages from bytes to found.",
    ),
    "rlhf": (
        "confide_simulations.benchmarks.rlhf.command:rlhf",
        "Reward accuracy against epsilon, federated DPO against central, bytes by method, GRPO beside bare TRL.",
    ),
    "retrieval": (
        "confide_simulations.benchmarks.rag.retrieval:retrieval",
        "Recall kept, and inquiries and bytes saved, by routing to 4 to 20 organizations; about 2 CPU-minutes.",
    ),
    "retriever": (
        "confide_simulations.benchmarks.rag.retriever:retriever",
        "The recipe's federally trained retriever beside MiniLM, on questions that no node had.",
    ),
    "tokenizer": (
        "confide_simulations.benchmarks.training.tokenizer:tokenizer",
        "Compare federated, private, pooled and single-node tokenizers by bytes per token.",
    ),
    "privacy": (
        "confide_simulations.benchmarks.privacy.command:privacy",
        "Held-out loss at epsilon inf, 8, 3, 1; private against plain speed and memory; noise by PLD and Renyi.",
    ),
    "training": (
        "confide_simulations.benchmarks.training.command:training",
        "Throughput of the local step, its part of the matmul peak, what DiLoCo and 4 "
        "bits cost, and LoRA's aggregates.",
    ),
}


class _Benchmarks(LazyGroup):
    def summaries(self) -> Mapping[str, str]:
        return {name: summary for name, (_, summary) in BENCHMARKS.items()}

    def load(self, name: str) -> click.Command:
        module, function = BENCHMARKS[name][0].split(":")
        return command_of(getattr(import_module(module), function), name)


app = typer.Typer(
    cls=_Benchmarks,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure this machine: each benchmark prints a table and writes JSON.",
)


@app.callback()
def bench() -> None:
    """Measure this machine: each benchmark prints a table and writes JSON."""
