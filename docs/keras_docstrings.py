"""Extension of Griffe: shows the examples of docstrings in Keras's style as code.

Keras writes `Example:` above lines that begin with `>>>`, without indentation.
"""

import re
from typing import Any

import griffe

_CODE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class KerasDocstrings(griffe.Extension):
    """Puts the examples of every docstring into fences."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object that was loaded."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\n**Example**\n")
            obj.docstring.value = _CODE.sub(r"```pycon\n\g<0>\n```", text)
