"""Sphinx's settings: `make docs` builds the guides, and the reference from the docstrings, into build/docs."""

import fastcodec

project = "fastcodec"
release = fastcodec.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"fastcodec {release}"
# A name in backticks links to its reference where it has one, and is code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
