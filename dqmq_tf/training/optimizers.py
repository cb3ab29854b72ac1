"""Which optimizer moves what: the user's moves the network, and what sees the quality has its own.

The rate that suits a network, be it 0.001 for one or 0.1 with momentum for another, says nothing of
how fast its bits should follow the quality.
"""

import keras

# Of the policy's rate. Policy and normalization read what the encoder makes, and follow it.
_ENCODER_PACE = 0.2
_FIRST_RATE = 0.01


def compile_own(model):
    """Gives a model `policy_optimizer` and `encoder_optimizer`, and builds all that it has."""
    model.policy_optimizer, model.encoder_optimizer = (
        keras.optimizers.Adam(beta_1=0.9, beta_2=0.99) for _ in range(2)
    )
    set_rate(model, model.config.policy_learning_rate or _FIRST_RATE)
    for optimizer, variables in shares(model):
        if optimizer is not None:
            optimizer.build(variables)


def set_rate(model, rate):
    """Sets the learning rate of policy and normalization, and by it the encoder's."""
    model.policy_optimizer.learning_rate = rate
    model.encoder_optimizer.learning_rate = _ENCODER_PACE * rate


def shares(model):
    """Returns `(optimizer, variables)` of all that is trained."""
    readers = [model.policy, *model._parts.affines]
    readers = [v for layer in readers for v in layer.trainable_variables]
    return [
        (getattr(model, "optimizer", None), model.trainable_variables),
        (model.policy_optimizer, readers),
        (model.encoder_optimizer, model.encoder.trainable_variables),
    ]


def apply(model, found, scale):
    """Moves all that has a gradient.

    Args:
        model: A `DQMQModel`.
        found: `{id of variable: gradient}`. With terms switched off, or settled bits, some
            variables, or all of an optimizer's, have none.
        scale: What the user's optimizer had the loss multiplied by, and takes off itself.
    """
    for optimizer, variables in shares(model):
        pairs = [(found[id(v)], v) for v in variables if id(v) in found]
        if optimizer is not model.optimizer:
            pairs = [(g / scale, v) for g, v in pairs]
        if pairs:
            optimizer.apply_gradients(pairs)
