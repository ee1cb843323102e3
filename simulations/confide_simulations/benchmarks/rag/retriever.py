"""`confide bench retriever`: the federally trained sentence encoder beside the one it began with, on held-out text.

The recipe support-chatbot's stage `retriever` is run as it stands (four virtual nodes, sealed), once a seed, which also
draws the questions that no node gets. Both encoders then look for the answers to these among all 503, and for them
alone. A difference is paired by question; its interval is a bootstrap over questions, each with all its seeds.

With each encoder a collection of all answers is calibrated on the held-out questions (`confide rag calibrate`): by its
cross-validation, how well it is told whether the documents answer.
"""

import json as json_module
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confide.rag.embedder import Embedder
from numpy.typing import NDArray

RECIPE, STAGE = "support-chatbot", "retriever"
MEASURES = ("ndcg_at_10", "recall_at_5", "recall_at_1")
ABSTENTION = ("answer_auroc", "abstention_auroc")
_DEPTH = 10
_RESAMPLES = 2000
Pair = tuple[str, str]
"""Question and answer."""


@dataclass(frozen=True)
class Compared:
    """By measure: (Q, 2) of each held-out question, by the encoder before and after."""

    questions: Sequence[str]
    values: dict[str, NDArray[np.float64]]


def merged(adapter: Path, base: Path, folder: Path) -> Path:
    """The adapter added to its base: a whole encoder, as `confide rag` takes it."""
    import peft
    import transformers
    from confide.models.architecture import load_tokenizer
    from confide.models.pretrained import load_pretrained, pooler_names

    model = load_pretrained(transformers.AutoModel, base, "auto", may_lack=pooler_names)
    whole = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    whole.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def compare(before: Embedder, after: Embedder, held: Sequence[Pair], passages: Sequence[str]) -> Compared:
    """Look for each held-out question's answer among the passages, of which equal ones count as one."""
    corpus = list(dict.fromkeys(passages))
    place = {text: number for number, text in enumerate(corpus)}
    gold = np.array([place[answer] for _, answer in held])
    questions = [question for question, _ in held]
    each = [_ranks(embedder, questions, corpus, gold) for embedder in (before, after)]
    ranks = np.stack(each, axis=1)
    gain = np.where(ranks < _DEPTH, 1 / np.log2(ranks + 2), 0.0)
    found = [gain, (ranks < 5).astype(np.float64), (ranks < 1).astype(np.float64)]
    return Compared(questions, dict(zip(MEASURES, found, strict=True)))


def _ranks(
    embedder: Embedder, questions: Sequence[str], corpus: Sequence[str], gold: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(Q,): how many passages stand before the right one."""
    scores = embedder.embed(questions) @ embedder.embed(corpus).T
    right = scores[np.arange(len(gold)), gold]
    found: NDArray[np.int64] = (scores > right[:, None]).sum(axis=1)
    return found


def abstention(embedder: Embedder, held: Sequence[Pair], passages: Sequence[str], folder: Path) -> dict[str, float]:
    """The cross-validated AUROCs of a collection of the passages that is calibrated on the held-out questions.

    answer_auroc: right answers against wrong ones and questions whose passage was taken away; abstention_auroc: all
    questions whose passage is there, found or not, against those. Raises DataError as `calibrate`.
    """
    from confide.rag.access import Caller
    from confide.rag.library import Library, settings_for
    from confide_server.rag.calibrating import calibrate
    from confide_server.rag.questions import Gold, Question, resolved

    folder.mkdir(parents=True)
    source, operator, name = folder / "answers.jsonl", Caller.operator("bench"), "answers"
    place = {text: str(number) for number, text in enumerate(dict.fromkeys(passages))}
    rows = [json_module.dumps({"id": key, "text": text}) for text, key in place.items()]
    source.write_text("\n".join(rows) + "\n", "utf-8")
    asked = [
        Question(id=str(number), question=question, gold=(Gold(source=source.name, record=place[answer]),))
        for number, (question, answer) in enumerate(held)
    ]
    library = Library(folder / "library")
    try:
        settings = settings_for(embedder, personal_data="keep")
        library.add(operator, name, [source], embedder, settings, lambda _: None)
        collection, searcher = library.opened(operator, name)
        found = calibrate(collection, searcher, embedder, resolved(collection, asked), operator, most_risk=None)
    finally:
        library.close()
    told = found.calibration.auroc, found.calibration.auroc_removed
    return {name: float("nan") if value is None else value for name, value in zip(ABSTENTION, told, strict=True)}


def figures(runs: Sequence[Compared], seed: int) -> dict[str, Any]:
    """By measure: means before and after, their difference with its 95 % interval, and in how many runs it rose."""
    return {name: _figure(name, runs, np.random.default_rng(seed)) for name in MEASURES}


def _figure(name: str, runs: Sequence[Compared], rng: np.random.Generator) -> dict[str, Any]:
    own: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for question, (before, after) in zip(run.questions, run.values[name], strict=True):
            own[question].append(after - before)
    sums, counts = np.array([[sum(values), len(values)] for values in own.values()]).T
    drawn = rng.integers(0, len(sums), (_RESAMPLES, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    means = np.array([run.values[name].mean(axis=0) for run in runs])
    return {
        "before": round(float(means[:, 0].mean()), 4),
        "after": round(float(means[:, 1].mean()), 4),
        "difference": round(float(sums.sum() / counts.sum()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "better_in": int((means[:, 1] > means[:, 0]).sum()),
        "by_seed": [[round(float(value), 4) for value in pair] for pair in means],
    }


@dataclass
class Found:
    """What the seeds so far gave. told: by seed, AUROCs with the encoder before and after; trained_s: seconds."""

    among_all: list[Compared] = field(default_factory=list)
    among_held: list[Compared] = field(default_factory=list)
    told: list[tuple[dict[str, float], dict[str, float]]] = field(default_factory=list)
    trained_s: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The document of `confide bench retriever --json`, but for what it was run with."""
        return {
            "held_out": len(self.among_all[0].questions),
            "among_all": figures(self.among_all, 0),
            "among_held_out": figures(self.among_held, 0),
            "abstention": {name: _told(name, self.told) for name in ABSTENTION},
            "training_s": self.trained_s,
        }


def _told(name: str, told: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    values = np.array([[one[name] for one in pair] for pair in told])
    before, after = values.mean(axis=0)
    return {"before": round(float(before), 4), "after": round(float(after), 4), "by_seed": values.round(4).tolist()}


def measure(
    folder: Path,
    seeds: Sequence[int],
    rounds: int | None,
    say: Callable[[str], None],
    keep: Callable[[Found], None],
) -> Found:
    """Train and compare, once a seed. rounds: in place of the recipe's. keep: gets what there is after each."""
    from rich.console import Console

    from confide_simulations.assets import minilm
    from confide_simulations.recipes import running
    from confide_simulations.recipes.catalogue import find
    from confide_simulations.simulate import partition
    from confide_simulations.simulate.engine import Engine, Resources

    recipe, base, found = find(RECIPE), minilm(say), Found()
    share = recipe.stage(STAGE).held_out
    with Engine(Resources(workers=None), nodes=4) as engine:
        for seed in seeds:
            own = folder / f"seed-{seed}"
            options = running.Options(recipe=recipe, output=own, stage=STAGE, seed=seed, rounds=rounds)
            [result] = running.run(options, Console(quiet=True), engine)
            lines = (own / STAGE / "records.jsonl").read_text("utf-8").splitlines()
            pairs = [(row["question"], row["answer"]) for row in map(json_module.loads, lines)]
            _, places = partition.hold_out(len(pairs), share, seed)
            held, passages = [pairs[place] for place in places], [answer for _, answer in pairs]
            before, after = Embedder(base), Embedder(merged(own / STAGE / "model", base, own / "merged"))
            found.among_all.append(compare(before, after, held, passages))
            found.among_held.append(compare(before, after, held, [answer for _, answer in held]))
            one, other = (abstention(e, held, passages, own / e.sha256[:16]) for e in (before, after))
            found.told.append((one, other))
            found.trained_s.append(round(result.report.seconds, 1))
            pairs_told = [*_means(found.among_all[-1]), *((name, (one[name], other[name])) for name in ABSTENTION)]
            said = ", ".join(f"{name} {values[0]:.3f} -> {values[1]:.3f}" for name, values in pairs_told)
            say(f"seed {seed}: {len(held)} held-out questions among all {len(pairs)} answers: {said}")
            keep(found)
    return found


def _means(run: Compared) -> list[tuple[str, Sequence[float]]]:
    return [(name, values.mean(axis=0).tolist()) for name, values in run.values.items()]


def retriever(
    json: Annotated[Path, typer.Option(help="Where the figures go.", dir_okay=False)] = Path("bench-retriever.json"),
    seeds: Annotated[int, typer.Option(help="Runs, each with its own held-out questions.", min=1)] = 3,
    rounds: Annotated[int | None, typer.Option(help="In place of the recipe's.", min=1)] = None,
) -> None:
    """The recipe's federally trained retriever beside MiniLM, on questions that no node had."""
    from rich.console import Console

    from confide_simulations.benchmarks.meta import meta, write_result

    console = Console()
    about = meta(seed=7, config={"recipe": RECIPE, "seeds": seeds, "rounds": rounds})
    with tempfile.TemporaryDirectory(prefix="confide-bench-retriever-") as name:
        found = measure(
            Path(name),
            range(7, 7 + seeds),
            rounds,
            lambda text: console.print(text, highlight=False),
            lambda so_far: write_result(json, {"meta": about, "seeds_done": len(so_far.told)} | so_far.to_json()),
        ).to_json()
    for pool in ("among_all", "among_held_out", "abstention"):
        console.print(pool, found[pool], highlight=False)
