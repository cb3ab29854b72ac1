"""How much bits by image could bring to a trained network, and how much of it the policy takes.

An oracle that knows what was done to an image, but not what it shows, is as good as any policy
that sees the quality can be on given weights, as far as losses of several changes add up. One that
knows the label too is a bound that nothing reaches.
"""

import dataclasses
import itertools

import keras
import numpy as np
import tensorflow as tf

from study import oracle, runs

_BATCH = 500
_TESTS = ("a", "d")


def measure(bench, run, reach):
    """Trains a network and returns the record of each way to decide its activations' bits.

    Args:
        bench: `runs.Bench`.
        run: `runs.Run` of DQMQ or of learned static bits, at a budget in bit operations.
        reach: Most bits by which a choice may differ from the policy's mean.

    Returns:
        The run, the reach of each way, which is the best on held-out images, for far changes add up
        less well, and `{images: {way: accuracy and mean bits}}`. Ways: the `"policy"`; the `"same"`
        bits for all images; by `"quality"`, which the oracle knows; and, where bits were chosen on
        the very images, by their `"label"`. All keep the mean cost of the policy.
    """
    keras.utils.set_random_seed(run.seed)
    network, _, _ = runs.train(bench, run, bench.start(run.network))
    costs, count = network.costs, len(network.costs.decided)
    held = bench.mixtures.held_out()
    x, y = held.first(len(held))
    found = network.decisions(x).bits
    weight_bits, base = found[0, count:], np.rint(found[:, :count].mean(axis=0))
    predict = forced(network)
    # What a bit more of an activation costs is exact: weights have the same bits for all images.
    readers = costs.input_column[None] == np.arange(count)[:, None]
    prices = (readers * costs.macs * weight_bits).sum(axis=1)
    candidates = oracle.nearby(
        [costs.activations[i].bit_widths for i in costs.decided], base, reach
    )
    added = added_losses(predict, x, y, base, candidates)
    labels, grouped = oracle.by_group(added, oracle.groups(held.kind, held.severity))
    images = {"held out": held, **{name: bench.mixtures.test(name) for name in _TESTS}}
    decided = {
        name: network.decisions(part.first(len(part))[0]).bits[:, :count]
        for name, part in images.items()
    }

    def chosen(way, name, near):
        """Bits for images of one name, at most so many from the base."""
        part, budget = images[name], float((decided[name] @ prices).mean())
        index = np.searchsorted(labels, oracle.groups(part.kind, part.severity))
        shares = np.bincount(index, minlength=len(labels)) / len(index)
        losses = {
            "same": np.average(grouped[shares > 0], axis=0, weights=shares[shares > 0])[None],
            "quality": grouped,
            "label": added,
        }[way]
        shares = {"same": [1.0], "quality": shares}.get(way, np.full(len(y), 1 / len(y)))
        losses = np.where(np.abs(candidates - base[:, None]) <= near, losses, np.inf)
        bits = oracle.allocate(losses, candidates, prices, shares, budget)
        return bits[index] if way == "quality" else np.broadcast_to(bits, (len(index), count))

    def row(name, bits):
        pixels, classes = images[name].first(len(bits))
        right = predict(pixels, bits).argmax(axis=-1) == classes
        ops = costs.bit_ops(np.tile(weight_bits, (len(bits), 1)), bits)
        return {"accuracy": float(right.mean()), "bits": float(costs.finish(ops))}

    scores = {name: {"policy": row(name, bits)} for name, bits in decided.items()}
    reaches = {}
    for way in ("same", "quality", "label"):
        tried = {
            near: row("held out", chosen(way, "held out", near)) for near in range(1, reach + 1)
        }
        reaches[way] = max(tried, key=lambda near: tried[near]["accuracy"])
        scores["held out"][way] = tried[reaches[way]]
    for name, way in itertools.product(_TESTS, ("same", "quality")):
        scores[name][way] = row(name, chosen(way, name, reaches[way]))
    return {"run": dataclasses.asdict(run), "reaches": reaches, "scores": scores}


def forced(qmodel):
    """Returns a function of float images `[N, ...]` and activation bits `[N, P]` to class probabilities.

    Args:
        qmodel: Settled `DQMQModel`. Weights and what follows the quality otherwise stay as they are.
    """
    decide = qmodel.policy.call

    @tf.function
    def run(x, bits):
        def call(z, training=False):
            return {**decide(z, training=training), "activations": bits[..., None]}

        qmodel.policy.call = call
        try:
            return qmodel(x, training=False)
        finally:
            qmodel.policy.call = decide

    def predict(x, bits):
        bits = np.broadcast_to(np.asarray(bits, "float32"), (len(x), np.shape(bits)[-1]))
        parts = [
            run(tf.constant(x[i : i + _BATCH]), tf.constant(bits[i : i + _BATCH]))
            for i in range(0, len(x), _BATCH)
        ]
        return np.concatenate([part.numpy() for part in parts])

    return predict


def losses(predict, x, y, bits):
    """Returns the cross-entropy `[N]` of images at given bits; see `forced`."""
    return -np.log(np.maximum(predict(x, bits)[np.arange(len(y)), y], 1e-7))


def added_losses(predict, x, y, base, candidates):
    """Returns what each image loses when one activation alone has other bits.

    Args:
        predict: See `forced`.
        x, y: Float images and their classes.
        base: Bits `[P]` of all others.
        candidates: `[P, K]` bits to try; NaN for none.

    Returns:
        `[N, P, K]`, infinite for none.
    """
    candidates = np.asarray(candidates, "float64")
    found = np.full((len(y), *candidates.shape), np.inf)
    at_base = losses(predict, x, y, base)
    for p, k in np.argwhere(np.isfinite(candidates)):
        bits = np.array(base, "float32")
        bits[p] = candidates[p, k]
        same = bits[p] == base[p]
        found[:, p, k] = 0.0 if same else losses(predict, x, y, bits) - at_base
    return found
