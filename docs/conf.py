"""How Sphinx builds the documentation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import semibot

if TYPE_CHECKING:
    from docutils.nodes import Element, reference
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "semibot"
author = "the semibot contributors"
copyright = author
version = release = semibot.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build", "newsfragments"]
html_theme = "furo"
html_title = "semibot"
default_role = "any"
highlight_language = "python3"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Every name of semibot that a page or docstring mentions must be documented somewhere. Names of
# other packages have no inventory at hand while the documentation is built; type variables
# never have a page.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!semibot\.)\w+\..*"),
    (r"py:class", r"(semibot\.(\w+\.)*)?\*?(P|Ts?)"),
]


def setup(app: Sphinx) -> None:
    """Mend two things that Sphinx cannot know."""
    app.connect("missing-reference", find_documented_name)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)  # napoleon has 500


def keep_colon(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from reading ``What it is: a text`` below an attribute as a type.

    It looks at the first line only, which becomes an empty comment.
    """
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def find_documented_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> reference | Element | None:
    """Resolve a name of semibot to the one place that documents it.

    Annotations spell a name by the module that defines it (``semibot.session.run.Run``), users
    by the front door (``semibot.Run``), and a page documents it by its room. An inner name that
    exists but that no page is about, as in the signature of a class that only semibot itself
    makes, stays without a link.
    """
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    suffix = "." + node["reftarget"].rpartition(".")[2]
    kinds = domain.objtypes_for_role(node["reftype"]) or list(domain.object_types)
    found = {
        name
        for name, entry in domain.objects.items()
        if name.startswith("semibot.")
        and name.endswith(suffix)
        and entry.objtype in kinds
        and not entry.aliased
    }
    if len(found) == 1 and not is_another(node["reftarget"], *found):
        target = found.pop()
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)
    return content if is_inner_name(node["reftarget"]) else None


def is_another(target: str, documented: str) -> bool:
    """Return whether two names that end alike are those of different objects."""
    objects = [load(name) for name in (target, documented)]
    return None not in objects and objects[0] is not objects[1]


def load(name: str) -> object:
    """Return what a dotted name is in its module, or None."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None


def is_inner_name(target: str) -> bool:
    """Return whether a module of semibot has this name for its own use."""
    module, _, name = target.rpartition(".")
    if module.count(".") < 2 or not module.startswith("semibot."):
        return False  # what a room or semibot itself exports belongs on a page
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False
