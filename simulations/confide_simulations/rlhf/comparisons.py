"""Comparisons made of real people's ratings: of two snippets the one that its raters like clearly better.

Source: every rater's score of 10,605 movie snippets and 4,200 tweets (Hutto and Gilbert 2014), in the source package of
vaderSentiment. A pair is taken where the means differ by a point at least and by three standard errors: there the
raters agree. Snippets are dealt before pairs are made, so that no organization, and no test, holds a snippet of
another's. Within an organization a snippet stands in several pairs; the unit of privacy is one comparison.
"""

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from confide.errors import DataError
from numpy.typing import NDArray

from confide_simulations.assets import SENTIMENT, Say, unpacked

SOURCES = (("movies", "movieReviewSnippets"), ("tweets", "tweets"))
LEAST_GAP = 1.0
LEAST_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Snippet:
    """text, and every rater's score from -4 to 4."""

    source: str
    text: str
    ratings: tuple[float, ...]


Pair = Mapping[str, str]


@dataclass(frozen=True)
class Split:
    """Pairs {chosen, rejected} of each organization, of the test, and of the judge that nobody trains on."""

    organizations: Mapping[str, tuple[Pair, ...]]
    test: tuple[Pair, ...]
    judge: tuple[Pair, ...]


def snippets(say: Say) -> list[Snippet]:
    """All of them, in the package's order."""
    package = unpacked(SENTIMENT, say) / "vaderSentiment-3.3.2" / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
    found = []
    with tarfile.open(package) as archive:
        for source, name in SOURCES:
            texts = {number: text for number, _, text in _rows(archive, f"{name}_GroundTruth.txt", 3)}
            for number, _, _, ratings in _rows(archive, f"{name}_anonDataRatings.txt", 4):
                found.append(Snippet(source, texts[number], tuple(map(float, json.loads(ratings)))))
    return found


def _rows(archive: tarfile.TarFile, name: str, columns: int) -> list[list[str]]:
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    lines = file.read().decode("utf-8", "replace").splitlines() if file else []
    return [line.split("\t", columns - 1) for line in lines]


def split(
    found: Sequence[Snippet], names: Sequence[str], *, snippets_each: int, pairs_each: int, test_snippets: int,
    test_pairs: int, judge_snippets: int, seed: int,
) -> Split:  # fmt: skip
    """Deal snippets, then make pairs; no two of the test share a snippet. Raises DataError when there are too few."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    parts = [snippets_each] * len(names) + [test_snippets, judge_snippets]
    if sum(parts) > len(found):
        raise DataError(f"{sum(parts)} snippets are wanted and {len(found)} are there; ask for fewer")
    dealt = np.split(order[: sum(parts)], np.cumsum(parts)[:-1])
    counts = [pairs_each] * len(names) + [test_pairs, pairs_each]
    made = [
        _pairs(found, part, count, rng, apart=number == len(names))
        for number, (part, count) in enumerate(zip(dealt, counts, strict=True))
    ]
    return Split(dict(zip(names, made, strict=False)), made[-2], made[-1])


def _pairs(
    found: Sequence[Snippet], part: NDArray[np.int64], count: int, rng: np.random.Generator, *, apart: bool
) -> tuple[Pair, ...]:
    """apart: no two pairs share a snippet, so that they say something by themselves."""
    mean = np.array([np.mean(found[i].ratings) for i in part])
    error = np.array([np.var(found[i].ratings) / len(found[i].ratings) for i in part])
    seen: set[tuple[int, int]] = set()
    used: set[int] = set()
    made: list[Pair] = []
    for _ in range(200 * count):
        first, second = (int(i) for i in rng.integers(0, len(part), 2))
        gap = mean[first] - mean[second]
        needed = max(LEAST_GAP, LEAST_STANDARD_ERRORS * float(np.sqrt(error[first] + error[second])))
        if apart and {first, second} & used:
            continue
        if gap < needed or (first, second) in seen or found[part[first]].text == found[part[second]].text:
            continue
        seen.add((first, second))
        used |= {first, second}
        made.append({"chosen": found[part[first]].text, "rejected": found[part[second]].text})
        if len(made) == count:
            return tuple(made)
    raise DataError(f"only {len(made)} of {count} pairs were found on whose order raters agree; ask for fewer")


def agreement(found: Sequence[Snippet]) -> float:
    """Krippendorff's alpha (interval) of the raters over all snippets: a part of them, which are sorted, says less."""
    import krippendorff

    width = max(len(one.ratings) for one in found)
    table = np.full((width, len(found)), np.nan)
    for column, one in enumerate(found):
        table[: len(one.ratings), column] = one.ratings
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="interval"))
