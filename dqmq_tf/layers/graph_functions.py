"""Graph functions that stay whole, a node forwards and one or two backwards, whatever they hold.

A network quantizes hundreds of tensors. Traced in place, a tensor took up to 250 nodes: the step of
DenseNet121 had 104,000, and took 70 s from its trace to its first result.
"""

import math

import tensorflow as tf

# Values per sample from which XLA saves more time than it takes to compile, half a second a shape.
_WORTH_COMPILING = 4096
# Values in a block of `in_blocks`.
BLOCK = 1024


def one_node(function, signature, compiled=False):
    """Returns a function that is traced once and kept whole in the graphs that call it.

    Its gradient keeps nothing of the forward pass but the arguments and runs the function anew.
    Compiled, it does so once for the first argument and once for the others: XLA on a CPU takes twice
    as long for an element-wise result and a sum of it together as for the two apart.

    Args:
        function: Takes tensors and returns one of the shape and type of the first.
        signature: `tf.TensorSpec`s of the arguments. What the function needs to know of shapes must
            be in them; a constant is better closed over, for each constant argument makes
            TensorFlow specialise the function for that call.
        compiled: Whether XLA compiles it, for each shape that it meets.
    """

    def gradient_to(part):
        def gradient(upstream, *args):
            with tf.GradientTape() as tape:
                tape.watch(args[part])
                result = function(*args)
            return tape.gradient(result, args[part], upstream)

        return graph_function(gradient, [signature[0], *signature], compiled)

    forward = graph_function(function, signature, compiled)
    parts = (slice(1), slice(1, None)) if compiled else (slice(None),)
    backwards = [gradient_to(part) for part in parts]

    @tf.custom_gradient
    def apply(*args):
        def gradient(upstream):
            found = [gradient for part in backwards for gradient in part(upstream, *args)]
            return [_shaped(y, like) for y, like in zip(found, args)]

        return _shaped(forward(*args), args[0]), gradient

    return apply


def graph_function(function, signature, compiled):
    """Returns a function that graphs call as a node; arguments are those of `one_node`."""
    return tf.function(
        function,
        input_signature=signature,
        autograph=False,
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def worth_compiling(x):
    """Returns whether XLA is to compile a function of a tensor `[batch, ...]`."""
    return math.prod(n or 1 for n in x.shape[1:]) >= _WORTH_COMPILING


def in_blocks(x):
    """Returns a tensor `[batch, ...]` as blocks `[batch, n, 32, 32]`; None if it cannot be cut so.

    XLA's loops over such blocks are up to twice as fast as those over other shapes.
    """
    if None in x.shape[1:]:
        return None
    count, rest = divmod(math.prod(x.shape[1:]), BLOCK)
    return None if rest else tf.reshape(x, (-1, count, 32, 32))


def _shaped(y, like):
    if y is not None:
        y.set_shape(like.shape)
    return y
