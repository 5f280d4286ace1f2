"""The settings of the HTML pages, which `make html` builds: the markdown pages as they are, and the API reference."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.ext import autosummary

import llm_bridge
import lowrank_sp

PACKAGES = {"lr": "lowrank_sp", "lb": "llm_bridge"}

project = "lowrank-sp"
author = project_copyright = "The lowrank-sp contributors"
version = release = lowrank_sp.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinxcontrib.bibtex",
]

# The sources are those of the whole repository, so that the links between its pages work as they do elsewhere.
root_doc = "docs/index"
include_patterns = ["docs/**", "studies/README.md", "studies/*/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["docs/_build", "docs/_templates", "**/results"]

html_theme = "pydata_sphinx_theme"
html_title = project
html_extra_path = ["_extra"]
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_sidebars = {"docs/gallery": []}
templates_path = [str(Path(__file__).parent / "_templates")]

default_role = "py:obj"
smartquotes = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
autosummary_generate = True
# File systems that do not tell upper from lower case would take these for one.
autosummary_filename_map = {f"llm_bridge.{name}": f"llm_bridge.{name}-function" for name in ("importance", "recipe")}
# A dotted name of a module that is only an attribute of its package.
sys.modules["lowrank_sp.synthetic"] = lowrank_sp.synthetic
# Three dots within a formula end no sentence.
autosummary.WELL_KNOWN_ABBREVIATIONS += (" .",)

myst_heading_anchors = 3
bibtex_bibfiles = ["bibliography.bib"]
bibtex_reference_style = "author_year"


class Keys(BaseLabelStyle):
    """Entries are labelled by their keys, which is what the sources and the tables cite."""

    def format_labels(self, entries: Any) -> list[str]:
        return [entry.key for entry in entries]


class ByKey(Style):
    """The plain style with those labels, in alphabetical order."""

    default_sorting_style = "author_year_title"
    default_label_style = Keys


register_plugin("pybtex.style.formatting", "keys", ByKey)
bibtex_default_style = "keys"


def in_sections(app: Any, kind: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """Give the closing example of a docstring its heading, and the options of a run what their command line says."""
    example = next((i for i, line in enumerate(lines) if line.startswith(">>>")), None)
    if example is not None and "Examples" not in lines:
        lines[example:example] = ["Examples", "--------"]
    if object is llm_bridge.FinetuneOptions:
        lines += ["", "Parameters", "----------"]
        for option in fields(object):
            lines += [option.name, f"    {option.metadata['help']}"]


def linked(app: Any, doctree: Any, page: str) -> None:
    """Names such as ``lr.complete`` lead from the pages to the reference, and keys of works to the bibliography."""
    known = app.env.domains.python_domain.objects
    works = app.env.get_domain("cite").citations
    cited = {work.key: (work.bibliography_key.docname, work.citation_id) for work in works}
    for literal in list(doctree.findall(nodes.literal)):
        found = re.match(r"(lr|lb)\.([\w.]*\w)", literal.astext())
        name = found and f"{PACKAGES[found[1]]}.{found[2]}"
        place = (known[name].docname, known[name].node_id) if name in known else cited.get(literal.astext())
        if place and not isinstance(literal.parent, nodes.reference):
            uri = f"{app.builder.get_relative_uri(page, place[0])}#{place[1]}"
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=uri))


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", in_sections, priority=400)  # before numpydoc
    app.connect("doctree-resolved", linked)
