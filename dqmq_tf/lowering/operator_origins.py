"""Finds the layers that operators come from by their names, for errors that name the layer.

TensorFlow puts the names of layers into those of its operators. The converter keeps the names of
operators that it does not know, so that those without a kernel can be traced back.
"""

import re
from collections.abc import Iterable, Mapping

import tensorflow as tf

_UNKNOWN_OPERATOR = re.compile(r"'tf\.(\w+)' op")
_NAME = re.compile(r"[\w./]+")


def origin(name: str, layer_paths: Mapping[str, str]) -> str | None:
    """Returns the path of the layer that an operator comes from, or None if it is unknown.

    Args:
        name: The name of the operator, such as `"functional_1/float_0_hash_1/AsString"`.
        layer_paths: `{name of a layer of the lowered model: path of the layer in the trained model}`.
    """
    for part in re.split("[/;]", name):
        # TensorFlow appends a number where a name is taken.
        for layer in (part, re.sub(r"_\d+$", "", part)):
            if layer in layer_paths:
                return layer_paths[layer]
    return None


def origins_in_error(text: str, graph: tf.Graph, layer_paths: Mapping[str, str]) -> list[str]:
    """Returns the paths of the layers that an error of TensorFlow's converter is about.

    Args:
        text: The text of the error. It has names of operators, or kinds that the converter lacks.
        graph: The graph that was converted.
        layer_paths: See `origin`.
    """
    kinds = set(_UNKNOWN_OPERATOR.findall(text))
    names = [operation.name for operation in graph.get_operations() if operation.type in kinds]
    return _distinct(origin(name, layer_paths) for name in [*names, *_NAME.findall(text)])


def _distinct(paths: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(path for path in paths if path is not None))
