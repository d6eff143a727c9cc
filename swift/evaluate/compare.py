"""Two runs side by side, question by question: is the difference more than chance?

Right-or-wrong metrics: McNemar's exact test on the questions that one run alone got right (McNemar, 1947: under the
null hypothesis each of them is a fair coin). Other metrics: a sign-flip permutation test of the mean difference with a
fixed seed. Questions are matched by benchmark, subject and content; those that only one run asked are left out and
counted.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swift.errors import DataError, UsageError
from swift.evaluate.report import aligned, named
from swift.evaluate.results import percent
from swift.runs import read_log

FLIPS = 10_000
SIGNIFICANT = 0.05
HEAD = ("benchmark", "metric", "n", "A %", "B %", "B - A", "only A", "only B", "p", "")


@dataclass(frozen=True)
class Pair:
    """One benchmark of both runs. `only_a`, `only_b`: questions that one alone got right; None for other metrics."""

    benchmark: str
    metric: str
    n: int
    a: float
    b: float
    only_a: int | None
    only_b: int | None
    p: float
    unmatched: int
    differs: str


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        rows: list[Sequence[str]] = [HEAD]
        for pair in self.pairs:
            rows.append(
                (
                    pair.benchmark,
                    pair.metric,
                    str(pair.n),
                    percent(pair.a),
                    percent(pair.b),
                    f"{100 * (pair.b - pair.a):+.2f}",
                    "" if pair.only_a is None else str(pair.only_a),
                    "" if pair.only_b is None else str(pair.only_b),
                    f"{pair.p:.2g}",
                    verdict(pair),
                )
            )
        alone = [(p, f"{p.unmatched} questions stand in one run alone") for p in self.pairs if p.unmatched]
        notes = [named(p.benchmark, what) for p, what in (*alone, *((p, p.differs) for p in self.pairs if p.differs))]
        return "\n".join([f"A  {self.a}", f"B  {self.b}", *aligned(rows), *notes])


def verdict(pair: Pair) -> str:
    if pair.p >= SIGNIFICANT:
        return "no difference beyond chance"
    return "B is better" if pair.b > pair.a else "A is better"


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare the benchmarks that both runs have; UsageError when there are none."""
    ours, theirs = _results(a), _results(b)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UsageError(
            f"{a} has {', '.join(ours)}, {b} has {', '.join(theirs)}: nothing in common", where="--compare"
        )
    return Comparison(str(a), str(b), tuple(_pair(a, b, name, ours[name], theirs[name]) for name in shared))


def _results(run: Path) -> dict[str, dict[str, Any]]:
    files = sorted((run / "results").glob("*.json")) if run.is_dir() else []
    if not files:
        raise UsageError(
            "is no run of swift eval with results", where=f"--compare {run}", fix="eval_output/MODEL/vN-DATE"
        )
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def _pair(a: Path, b: Path, name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Pair:
    if ours["metric"] != theirs["metric"]:
        raise UsageError(f"{name}: {ours['metric']} and {theirs['metric']} can't be compared", where="--compare")
    one, other = _values(a, name), _values(b, name)
    keys = [key for key in one if key in other]
    if not keys:
        raise DataError(f"the runs asked different questions of {name}", where=f"--compare {a} {b}")
    left, right = [one[key] for key in keys], [other[key] for key in keys]
    binary = all(value in (0.0, 1.0) for value in (*left, *right))
    only_a = sum(x > y for x, y in zip(left, right, strict=True)) if binary else None
    only_b = sum(y > x for x, y in zip(left, right, strict=True)) if binary else None
    p = mcnemar(only_a, only_b) if only_a is not None and only_b is not None else sign_flips(left, right)
    differs = [f"{x} {ours[x]} and {theirs[x]}" for x in ("mode", "prompts", "shots") if ours[x] != theirs[x]]
    return Pair(
        name,
        ours["metric"],
        len(keys),
        sum(left) / len(keys),
        sum(right) / len(keys),
        only_a,
        only_b,
        p,
        len(one) + len(other) - 2 * len(keys),
        f"asked in different ways: {', '.join(differs)}" if differs else "",
    )


def _values(run: Path, name: str) -> dict[tuple[str, str, int], float]:
    """Value of each question; equal questions are told apart by their order."""
    values: dict[tuple[str, str, int], float] = {}
    for sample in read_log(run / "samples" / f"{name}.jsonl"):
        if "value" not in sample:  # a tool that reports no decisions
            continue
        number = 0
        while (sample["subject"], sample["hash"], number) in values:
            number += 1
        values[sample["subject"], sample["hash"], number] = sample["value"]
    if not values:
        raise DataError(f"has no value for each question of {name}", where=f"--compare {run}")
    return values


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p: the chance of a split at least as uneven among only_a + only_b fair coins."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flips(left: Sequence[float], right: Sequence[float], flips: int = FLIPS) -> float:
    """Two-sided p of the mean difference when the sign of every pair is a fair coin."""
    differences = [y - x for x, y in zip(left, right, strict=True) if x != y]
    if not differences:
        return 1.0
    observed = abs(sum(differences)) - 1e-12
    rng = random.Random(0)
    hits = sum(abs(sum(d if rng.random() < 0.5 else -d for d in differences)) >= observed for _ in range(flips))
    return (hits + 1) / (flips + 1)
