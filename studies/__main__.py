"""The command line of the studies: list, run, report, card, publish."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from studies import terminal
from studies.catalogue import find, load, names
from studies.claims import count_verdicts
from studies.config import ConfigError, read_config
from studies.pools import BACKENDS
from studies.publish import publish
from studies.report import Section, report, with_rows
from studies.runner import execute_study, failure_summary

__all__ = ["main"]

_EPILOG = """\
exit codes: 0 done (also when a claim is not reproduced), 1 a cell, figure or table failed,
2 wrong usage or configuration, 130 interrupted (the same command resumes)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.command_line = shlex.join(["python", "-m", "studies", *given])
    action: Callable[[argparse.Namespace], int] = options.action
    try:
        return action(options)
    except ConfigError as error:
        print(f"studies: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\n{error if error.args else 'interrupted'}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description="Run convergence studies, and report which claims of the literature reproduce.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "list", _list, "show the studies, their claims and the sizes of their grids", out=False)
    run = _add(commands, "run", _run, "run studies, resuming from stored rows, then write the report")
    run.add_argument("names", nargs="*", metavar="NAME", help="studies to run")
    run.add_argument("--all", action="store_true", help="run every study")
    run.add_argument("--quick", action="store_true", help="run the reduced grids")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="parallel workers, -1 for all cores (default: 1)")
    run.add_argument("--backend", choices=BACKENDS, default="loky", help="joblib backend (default: loky)")
    _add(
        commands,
        "report",
        _report,
        "draw figures and judge claims from stored rows, without running anything",
    )
    card = _add(commands, "card", _card, "make the report card of a parameterization or an update rule")
    card.add_argument("names", nargs="+", metavar="NAME", help="registered name, module:Name or file.py:Name")
    _add(
        commands,
        "publish",
        _publish,
        "report, then copy rows, claims and figures to each study's results folder",
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], int],
    summary: str,
    out: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
    command.set_defaults(action=action)
    command.add_argument("--root", type=Path, metavar="DIR", help="folder that holds the studies (default: built in)")
    if out:
        command.add_argument(
            "--out",
            type=Path,
            default=Path("results"),
            metavar="DIR",
            help="folder of rows and report (default: results)",
        )
    return command


def _list(options: argparse.Namespace) -> int:
    rows, errors = [], []
    for name in names(options.root):
        try:
            config = read_config(find(name, options.root) / "config.toml")
        except ConfigError as error:
            errors.append(error)
            continue
        sizes = f"{len(config.cells())} / {len(config.cells(quick=True))}"
        rows.append((name, config.title, str(len(config.claims)), sizes))
    widths = (26, 47, 6, 14)
    for row in [("study", "title", "claims", "cells / quick"), *rows]:
        print(terminal.columns(row, widths))
    for error in errors:
        print(f"studies: error: {error}", file=sys.stderr)
    return 2 if errors else 0


def _run(options: argparse.Namespace) -> int:
    if options.all == bool(options.names):
        raise ConfigError("run: give the names of studies, or --all; 'python -m studies list' shows them")
    wanted = dict.fromkeys(names(options.root) if options.all else options.names)
    loaded = [load(name, options.root) for name in wanted]
    failures = []
    for study in loaded:
        outcome = execute_study(study, options.out, quick=options.quick, jobs=options.jobs, backend=options.backend)
        failures += outcome.failures
    code = _show(_sections(options, wanted), options.out)
    if failures:
        print(f"\n{failure_summary(failures)}", file=sys.stderr)
    return 1 if failures else code


def _report(options: argparse.Namespace) -> int:
    return _show(_sections(options), options.out)


def _card(options: argparse.Namespace) -> int:
    from studies.cards.build import card, text

    for name in options.names:
        document, path = card(name, options.out, lambda what: print(f"  {what} ...", file=sys.stderr))
        print(text(document))
        print(f"\nsaved: {path}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    sections = _sections(options)
    code = _show(sections, options.out)
    for section in sections:
        partial = "" if len(section.rows) == section.total else f" (only {len(section.rows)} of {section.total} cells)"
        target = publish(section, options.out)
        print(f"published {section.study.name}{' (quick grid)' if section.quick else ''}{partial}: {target}")
    return code


def _sections(options: argparse.Namespace, wanted: Iterable[str] = ()) -> list[Section]:
    """Report the wanted studies and all others that have rows; a broken one among the others is left out."""
    others = [name for name in with_rows(options.out, options.root) if name not in set(wanted)]
    chosen = sorted([*wanted, *(name for name in others if _usable(name, options.root))])
    return report(options.out, chosen, options.root, options.command_line)


def _usable(name: str, root: Path | None) -> bool:
    try:
        load(name, root)
    except ConfigError as error:
        print(f"studies: left out of the report: {error}", file=sys.stderr)
        return False
    return True


def _show(sections: Sequence[Section], out: Path) -> int:
    problems = [f"{section.study.name}: {text}" for section in sections for text in section.problems]
    for problem in problems:
        print(f"studies: {problem}", file=sys.stderr)
    print(terminal.claims_table(sections))
    print()
    print(count_verdicts([verdict for section in sections for verdict in section.verdicts]))
    print(f"report: {out / 'report.html'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
