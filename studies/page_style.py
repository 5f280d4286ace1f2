"""The style sheet of the report, kept in the page so that the page needs no other file."""

__all__ = ["CSS"]

CSS = """\
:root { --ink: #1d2127; --soft: #5d6672; --rule: #dfe3e8; --zebra: #f6f7f9; --link: #0b5cad;
  --yes: #116329; --yes-bg: #dcf3e2; --no: #9a1c22; --no-bg: #fbe0e0; --open: #6b5200; --open-bg: #fbf0cd; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
section, footer { margin-top: 3rem; padding-top: 1.6rem; border-top: 1px solid var(--rule); }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font: .86em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.byline, .note, figcaption, small { color: var(--soft); }
.note, figcaption { font-size: .88rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.4rem; }
.tile { min-width: 9.5rem; padding: .7rem 1.1rem .8rem; border-radius: 8px; font-size: .95rem; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.2; }
.yes { color: var(--yes); background: var(--yes-bg); }
.no { color: var(--no); background: var(--no-bg); }
.open { color: var(--open); background: var(--open-bg); }
.chip, .tag { display: inline-block; border-radius: 999px; font-size: .8rem; line-height: 1.5;
  white-space: nowrap; }
.chip { padding: .08rem .65rem; font-weight: 600; }
.tag { padding: 0 .5rem; font-weight: 500; color: var(--soft);
  border: 1px solid var(--rule); background: #fff; vertical-align: .1em; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; line-height: 1.4; }
.claims { width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem; }
thead th { border-bottom: 2px solid var(--rule); font-weight: 600; white-space: nowrap; }
tbody td { border-bottom: 1px solid var(--rule); }
tbody tr:nth-child(even) td { background: var(--zebra); }
.group th { padding-top: 1.1rem; border-bottom: 1px solid var(--rule); }
.number { font-variant-numeric: tabular-nums; }
table:not(.claims) .number { text-align: right; }
td small { display: block; font-size: .82rem; }
.claims td:first-child { min-width: 17rem; }
.claims td:nth-child(4) { min-width: 9.5rem; }
.claims td:last-child { max-width: 15rem; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .92rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.6rem; align-items: flex-start; margin-top: 1.2rem; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; padding: .4rem; background: #fff;
  border: 1px solid var(--rule); border-radius: 6px; }
figcaption { margin-top: .35rem; }
.problem { white-space: pre-wrap; padding: .8rem 1rem; border-radius: 6px;
  color: var(--no); background: var(--no-bg); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { main { padding: 0; max-width: none; } section { break-inside: avoid-page; } }
"""
