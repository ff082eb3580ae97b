"""In a few sentences, what a study has found, and how far it is."""

from __future__ import annotations

import math
import re

from .choice import DOUBTED, believed, label, lowest_upper, name_of, published, second, trusted
from .content import distance
from .doubt import sandwich_gap
from .rows import Results, Row, same_data
from .statistics import Difference, Score, difference, score, unpaired


def sentences(results: Results) -> list[str]:
    """What the study has found of one data set, for those who read no further."""
    if not results.rows:
        return [_nothing(results)]
    found = [*_answer(results), *_without_number(results), *_doubted(results)]
    found += _tightest(results)
    for row in results.rows:
        found += _from_published(results, row)
    return [re.sub(r"(?<=[ (])-(?=\d|inf)", "−", text) for text in found]


def _nothing(results: Results) -> str:
    if results.failed:
        return "There is no estimate yet: see what has failed."
    return "Nothing is finished yet."


def _answer(results: Results) -> list[str]:
    """Which estimate to believe; where there is none, that there is none."""
    rows = results.rows
    best = believed(rows)
    if best is not None:
        where = "" if best.direction != "consistent" else ", on no known side of the truth"
        text = (
            f"Highest log p(x) that can be believed{where}: {name_of(best, rows)}, "
            f"{_value(score(best))} nats per datum{_of_how_many(results, best)}."
        )
        return [text, *_higher(results), *_against_the_next(results, best)]
    upper = lowest_upper(rows)
    if upper is not None:
        text = (
            f"There are only upper bounds to rely on: log p(x) lies below them in expectation. The "
            f"lowest is {name_of(upper, rows)}, {_value(score(upper))} nats per datum"
            f"{_of_how_many(results, upper)}."
        )
        if len(results.points) > 1:
            text += " Upper bounds alone do not tell which model is best."
        return [text]
    if all(row.simulated for row in rows):
        return ["No held-out data are scored: all estimates are of data drawn from the model."]
    return [
        "None of these estimates is to be relied on: under each, k̂ or R̂ is too high or unknown "
        f"for {DOUBTED:.0%} of the data or more, or the mean is not finite."
    ]


def _of_how_many(results: Results, chosen: Row) -> str:
    """Of which data a number is, where another row's is of others."""
    run = chosen.runs[0]
    if all(row.simulated or same_data(row.runs[0], run) for row in results.rows):
        return ""
    return f", of {len(run.datum):,} {run.split} data; means over other data are not compared"


def _higher(results: Results) -> list[str]:
    """Which numbers are higher than the best to be believed, and are not to be."""
    rows = _above(results)
    if not rows:
        return []
    named = [f"{name_of(row, results.rows)} ({_doubtful(score(row))})" for row in rows[:6]]
    more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
    return [
        f"Higher, but not to be relied on, with k̂ or R̂ too high or unknown for {DOUBTED:.0%} of "
        f"the data or more: {', '.join(named)}{more}. With more samples, or a better guide, they "
        "may well turn out the best."
    ]


def _doubtful(found: Score) -> str:
    return f"{found.value:.3f}{', k̂ unknown' if found.undiagnosed == 1 else ''}"


def _above(results: Results) -> list[Row]:
    best = believed(results.rows)
    return [
        row
        for row in results.rows
        if best is not None
        and not (trusted(row) or row.simulated or row.direction == "upper")
        and same_data(row.runs[0], best.runs[0])
        and score(best).value < score(row).value < math.inf
    ]


def _against_the_next(results: Results, best: Row) -> list[str]:
    """By how much the best is better than the second best that can be believed, under the same
    estimator."""
    rival = second(results.rows, best)
    if rival is None:
        return []
    name = label(rival.point, results.points)
    if (why := unpaired(best, rival)) is not None:
        return [f"It is not compared with the next, {name}: {why}."]
    found = difference(best, rival)
    gap = f"{abs(found.value):.3f} ± {_known(found.data)} (data) ± {_known(found.seed)} (seeds)"
    if found.value < 0:  # there, and not in the mean over all that each has
        return [f"On the data and seeds that both have, {name} is ahead by {gap}."]
    return [f"It leads {name} by {gap}, {_how_sure(found)}."]


def _how_sure(found: Difference) -> str:
    if found.sure:
        return "more than its errors explain"
    if math.isnan(found.p_seed) and found.p_data < 0.05:
        return "which holds for these data; with other seeds it is unknown"
    return "which other data or other seeds might turn round"


def _without_number(results: Results) -> list[str]:
    found = []
    for row in results.rows:
        values = [run.log_evidence for run in row.runs]
        odd = sum(int((~(abs(one) < math.inf)).sum()) for one in values)
        if odd:
            found.append(
                f"{name_of(row, results.rows)}: {odd} of {sum(map(len, values))} estimates are "
                "infinite or no number, and so is their mean."
            )
    return found


def _doubted(results: Results) -> list[str]:
    doubted = [row for row in results.rows if score(row).unreliable >= DOUBTED]
    if len(doubted) == len(results.rows):  # which is the answer then
        return []
    told = _above(results)
    doubted = [row for row in doubted if row not in told]
    if not doubted:
        return []
    names = ", ".join(name_of(row, results.rows) for row in doubted[:6])
    more = f" and {len(doubted) - 6} more" if len(doubted) > 6 else ""
    return [
        f"k̂ or R̂ is too high or unknown for {DOUBTED:.0%} of the data or more under {names}{more}: "
        "read these numbers with care."
    ]


def _tightest(results: Results) -> list[str]:
    """Of the sandwiches the one with the smallest gap, and what that tells."""
    gaps = [(abs(sandwich_gap(row)[0]), row) for row in results.rows if row.sandwich is not None]
    gaps = [one for one in gaps if math.isfinite(one[0])]
    if not gaps:
        return []
    _, row = min(gaps, key=lambda one: one[0])
    gap, error = sandwich_gap(row)
    of = (
        "data drawn from the model"
        if row.simulated
        else "the held-out data, as far as the posterior that the study names is exact"
    )
    return [
        f"The tightest sandwich ({name_of(row, results.rows)}) leaves a gap of {gap:.3f} ± "
        f"{_known(error)} nats, on {of}."
    ]


def _from_published(results: Results, row: Row) -> list[str]:
    known = published(results, row)
    if known is None:
        return []
    value, away, error = distance(row, known)
    spread = f" ± {known['spread']}" if "spread" in known else ""
    counted = ["Monte Carlo"] if not math.isnan(score(row).monte_carlo) else []
    counted += ["seeds"] if not math.isnan(score(row).seed) else []
    counted += ["the published spread"] if spread else []
    counted += ["data"] if not (row.runs[0].whole or math.isnan(score(row).data)) else []
    told = f" ± {error:.2f} ({', '.join(counted)})" if counted else ""
    source = f" ({known['source']})" if "source" in known else ""
    return [
        f"{name_of(row, results.rows)} is {away:+.2f}{told} nats from the published "
        f"{value:.2f}{spread}{source}."
    ]


def _value(found: Score) -> str:
    return (
        f"{found.value:.3f} ± {_known(found.monte_carlo)} (Monte Carlo) ± {_known(found.data)} "
        f"(test set) ± {_known(found.seed)} (seed)"
    )


def _known(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def state(results: Results) -> str:
    """How far the study is."""
    done = len(results.records) - len(results.failed)
    parts = [f"{done} of {results.total} cells are finished"]
    if results.failed:
        parts.append(f"{len(results.failed)} have failed")
    if left := results.total - len(results.records):
        parts.append(f"{left} are not finished{', or damaged' if results.damaged else ''}")
    return ", ".join(parts) + "."
