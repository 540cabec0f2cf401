"""Configuration of Sphinx for the site (`make site`); build.py makes the tree that it reads."""

import re

from sphinx.application import Sphinx

project = "nsbridge"
copyright = "the nsbridge developers"  # noqa: A001  (Sphinx's name for it)
extensions = ["myst_parser"]
root_doc = "README"
html_theme = "furo"
html_title = "nsbridge"
html_last_updated_fmt = None
html_show_sphinx = False
html_additional_pages = {"index": "index.html"}  # leads to README.html
templates_path = ["_templates"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # a diagram in mermaid, which GitHub draws, is shown as text
smartquotes = False
INDEX = "docs/index.md"


def sections(index: str) -> list[tuple[str, list[str]]]:
    """Return the headings of docs/index.md, each with its pages, as seen from README."""
    found = [("Everything", [INDEX])]
    for part in index.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        pages = [f"docs/{link}".replace("docs/../", "") for link in re.findall(r"\]\(([\w./-]+\.md)[)#]", text)]
        found.append((heading, list(dict.fromkeys(pages))))
    return found


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the site's contents to its first page; docs/index.md is where people write them."""
    if page == root_doc:
        index = (app.srcdir / INDEX).read_text(encoding="utf-8")
        trees = [f"{{toctree}}\n:hidden:\n:caption: {heading}\n\n" + "\n".join(p) for heading, p in sections(index)]
        source[0] += "".join(f"\n```{tree}\n```\n" for tree in trees)


def setup(app: Sphinx) -> None:
    """Register the hook."""
    app.connect("source-read", add_contents)
