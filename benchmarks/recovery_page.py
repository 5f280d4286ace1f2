"""``docs/recovery.md`` from the stored rows: run ``python benchmarks/recovery_page.py`` after the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, TARGET = Path(__file__).parent / "results", ROOT / "docs" / "recovery.md"

HEAD = """# Recovery: counts, times and success

Made from `benchmarks/results/recovery-*.json` by `python benchmarks/recovery_page.py`; do not edit. Times are
CPU seconds of the process with one thread unless the command says `--wall`, medians over the seeds, from the
same spectral start, the time to measure errors not counted. A level that half of the seeds miss is empty.
*Solved*: relative error 1e-6 reached within the time limit. The ratio is the time of pymanopt's default
conjugate gradients with a sampled gradient, on the same instances in the same run, over that of the solver,
both to 1e-6.
"""
COUNTS = """
## Settings of the published codes

Iterations to relative error 1e-3 / 1e-6 / 1e-10 / 1e-12. *Published* are counts of a run of the published
programs, or of an independent implementation where those do not run outside their own environment.
*Deviation* is the largest of ours at their step from them, *time* that of our default over that of ours at
their step, to the four levels.

| setting | kappa | published | ours, their step | deviation | default | its iterations | time |
|---|---|---|---|---|---|---|---|
"""


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
    return COUNTS + "\n".join(lines) + f"\n\n`{content['command']}`, {described(content['machine'])}.\n"


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
    runs = {k: v for k, v in files.items() if not k.endswith("-quick")}
    return text + "".join(f"\n## {k.removeprefix('recovery-')}\n{comparison(v)}" for k, v in runs.items())


if __name__ == "__main__":
    TARGET.write_text(page())
