"""An extension of Griffe: docstrings as mkdocstrings understands them."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?\.*([\w.]+)`")


class Docstrings(Extension):
    """Replace the roles of Sphinx by plain names, and ``Example:`` by the section ``Examples:``."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda match: f"`{match[1].rsplit('.', 1)[-1]}`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.M)
