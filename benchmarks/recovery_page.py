"""``docs/recovery.md`` from the stored rows: run ``python benchmarks/recovery_page.py`` after the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from scale import slope

ROOT = Path(__file__).parents[1]
RESULTS, TARGET = Path(__file__).parent / "results", ROOT / "docs" / "recovery.md"

HEAD = """# Recovery: counts, times and success

Made from the rows in `benchmarks/results/` by `python benchmarks/recovery_page.py`; do not edit. Times are
CPU seconds of the process with one thread unless the command says `--wall`, medians over the seeds, from the
same spectral start, the time to measure errors not counted. A level that half of the seeds miss is empty.
*Solved*: relative error 1e-6 reached within the time limit. The ratio is the time of pymanopt's default
conjugate gradients with a sampled gradient, on the same instances in the same run, over that of the solver,
both to 1e-6.
"""
COUNTS = """
## Settings of the published codes

Iterations to relative error 1e-3 / 1e-6 / 1e-10 / 1e-12 / 1e-14. *Published* are counts of a run of the published
programs, or of an independent implementation where those do not run outside their own environment.
*Deviation* is the largest of ours at their step from them, *time* that of our default over that of ours at
their step, to the five levels. A level that is not reached, or was not published, has none.

| setting | kappa | published | ours, their step | deviation | default | its iterations | time |
|---|---|---|---|---|---|---|---|
"""

DRAWS = """

Least / mean / most iterations at the published step over ten draws of the instance, the published count, which is of
one draw, in parentheses:

| setting | kappa | 1e-3 | 1e-6 | 1e-10 | 1e-12 | 1e-14 |
|---|---|---|---|---|---|---|
"""

INSTANCES = """
## Random instances, with no argument but the rank

Sizes, ranks, condition numbers to 1e3 and noise of 0 to 1 % are drawn for every instance. *Success*: an error of at
most 1e-5, or at most twice that of least squares started at the truth; for tensors at most three times the noise.

| call | successes | median error / bound | median s | longest s |
|---|---|---|---|---|
"""
SCALE = """
## Cost against the number of entries

Completion at rank 10 with two threads, the time of an iteration after the first: 1e8 entries are 1,000,000 x 100,000.

| entries | shape | solver | s per iteration | s for the spectral start | peak GiB |
|---|---|---|---|---|---|
"""
TITLES = {
    "1e8": "Condition number 1e8",
    "2000": "2000 x 2000",
    "2000-harder": "2000 x 2000, harder",
    "sensing": "Dense sensing",
}


def number(value: Any, digits: int = 3) -> str:
    """A number with so many digits; nothing for none."""
    return "" if value is None else f"{value:.{digits}g}"


def slashed(values: list[Any]) -> str:
    return " / ".join(number(v) or "-" for v in values)


def counts(content: dict[str, Any]) -> str:
    """The table of published settings."""
    lines = [
        f"| {r['setting']} | {r['kappa']:g} | {slashed(r['published'])} ({r['published_by']}) | "
        f"{slashed(r['ours_at_their_step'])} | {r['largest_deviation']:.0%} | {r['default']} | "
        f"{slashed(r['default_iterations'])} | {slashed(r['default_seconds_over_theirs'])} |"
        for r in content["rows"]
    ]
    text = COUNTS + "\n".join(lines) + draws(content)
    return text + f"\n\n`{content['command']}`, {described(content['machine'])}.\n"


def draws(content: dict[str, Any]) -> str:
    """How counts at the published step vary with the instance: published ones are of one draw each."""
    lines = []
    for r in (row for row in content["rows"] if row.get("ours_over_draws")):
        pairs = zip(r["ours_over_draws"], r["published"], strict=True)
        cells = ["{:g} / {:.3g} / {:g}".format(*ours) + f" ({number(k) or '-'})" if ours else "" for ours, k in pairs]
        lines.append(f"| {r['setting']} | {r['kappa']:g} | {' | '.join(cells)} |")
    return DRAWS + "\n".join(lines) if lines else ""


def instances(content: dict[str, Any]) -> str:
    """How many of the random instances of every call succeed."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["kind"] == kind]
        ratio = median(row["error"] / row["bound"] for row in rows)
        seconds = [row["seconds"] for row in rows]
        cells = [f"{sum(row['success'] for row in rows)}/{len(rows)}"]
        cells += [number(x, 2) for x in (ratio, median(seconds), max(seconds))]
        lines.append(f"| `lr.{kind}` | {' | '.join(cells)} |")
    return INSTANCES + "\n".join(lines) + f"\n\n`{content['command']}`, {described(content['machine'])}.\n"


def scale(content: dict[str, Any]) -> str:
    """Cost of an iteration, and its growth."""
    lines = [
        f"| {r['entries']:,} | {r['shape'][0]:,} x {r['shape'][1]:,} | {r['solver']} | "
        f"{number(r['iteration_seconds'])} | {number(r['start_seconds'])} | {number(r['peak_gib'])} |"
        for r in content["rows"]
    ]
    names = dict.fromkeys(r["solver"] for r in content["rows"])
    slopes = ", ".join(f"{name} {slope(content['rows'], name):.2f}" for name in names)
    text = SCALE + "\n".join(lines) + f"\n\nLog-log slopes: {slopes}."
    return text + f" `{content['command']}`, {content['machine']['processor']}, {content['machine']['cores']} cores.\n"


def described(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread(s)"


def comparison(content: dict[str, Any]) -> str:
    """One table per problem of a run."""
    parts = []
    for name in dict.fromkeys(row["problem"] for row in content["rows"]):
        parts.append(
            f"\n### {name}\n\n| solver | solved | error 1e-4 | s to 1e-3 | to 1e-6 | to 1e-10 | its to 1e-6 | "
            "median error | peak MB | ratio |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        for r in (row for row in content["rows"] if row["problem"] == name):
            parts.append(
                f"| {r['solver']} | {r['solved']}/{r['seeds']} | {r['recovered_1e-4']}/{r['seeds']} | "
                f"{number(r['s_0.001'])} | {number(r['s_1e-06'])} | {number(r['s_1e-10'])} | {number(r['it_1e-06'])} | "
                f"{number(r['median_error'], 2)} | {number(r['peak_mb'])} | {number(r['pymanopt_over_this'])} |"
            )
    return "\n".join(parts) + f"\n\n`{content['command']}`, {described(content['machine'])}.\n"


def page() -> str:
    """The whole page."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("recovery-*.json"))}
    text = HEAD
    if "recovery-published" in files:
        text += counts(files.pop("recovery-published"))
    for name, table in (("random-instances", instances), ("scale", scale)):
        path = RESULTS / f"{name}.json"
        text += table(json.loads(path.read_text())) if path.exists() else ""
    for name, content in files.items():
        if not name.endswith("-quick"):
            kind = name.removeprefix("recovery-")
            text += f"\n## {TITLES.get(kind, kind)}\n{comparison(content)}"
    return text


if __name__ == "__main__":
    TARGET.write_text(page())
