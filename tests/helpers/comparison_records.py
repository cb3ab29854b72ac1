"""Records of the comparison as `runs.Bench.execute` returns them, with accuracies that are given."""

from study import results

MACS = {"resnet8": 12_501_632.0, "mobilenet_v2": 3_511_040.0}
SEEN = (
    "gaussian_noise", "shot_noise", "defocus_blur", "pixelate", "jpeg", "low_light", "contrast",
)  # fmt: skip
_UNSEEN = tuple(kind for kind in results.KINDS if kind not in SEEN)
_CELLS = {
    "a": [f"{kind}:{severity}" for kind in SEEN for severity in range(1, 6)],
    "b": [f"{kind}:{severity}" for kind in _UNSEEN for severity in range(1, 6)],
    "c": ["clean"],
    "d": ["clean", *(f"{kind}:5" for kind in SEEN)],
}
_POINTS = {"resnet8": 9, "mobilenet_v2": 23}


def record(network, method, accuracies, *, bits=None, cost=None, seed=0, **fields):
    """Returns a record of a run with a budget of mean bits, unless `fields` say otherwise.

    Args:
        network, method: Of the run.
        accuracies: On tests (a) to (d), or one on all.
        bits: Of a uniform method.
        cost: Mean bit-width of every image; None for none.
        seed: Of the run.
        fields: More of the run, or of the record.
    """
    run = {
        "network": network, "method": method, "kind": "mean_bit_width", "budget": 2.5,
        "bits": bits and list(bits), "ablation": None, "learning_rate": 0.001, "steps": 600,
        "seed": seed, "tuning": False, "front": None,
    }  # fmt: skip
    if method in ("float", "tfmot"):
        run |= {"kind": None, "budget": None}
    run |= {name: fields.pop(name) for name in list(fields) if name in run}
    if isinstance(accuracies, float):
        accuracies = (accuracies,) * 4
    bit_ops = None if cost is None else cost**2 * MACS[network]
    each = bit_ops if method in ("dqmq", "static") else None
    return {
        "run": run,
        "macs": MACS[network],
        "scores": {
            test: {
                "accuracy": accuracy,
                "cost": each,
                "cells": {name: [400, round(400 * accuracy), each or 0.0] for name in names},
            }
            for (test, names), accuracy in zip(_CELLS.items(), accuracies)
        },
        **({"bit_ops": bit_ops} if each is None and bit_ops is not None else {}),
        **fields,
    }


def bits_by_kind(network, random):
    """Returns `{kind: {point: bits}}` with weights that are the same for all kinds."""
    count = _POINTS[network]
    weights = {f"conv2d_{i}:kernel": float(random.integers(2, 8)) for i in range(count)}
    base = random.uniform(2.2, 6, count)
    return {
        kind: {f"activation_{i}": float(b) for i, b in enumerate(base + shift)} | weights
        for kind, shift in zip(("clean", *SEEN), (0.0, *random.uniform(-0.9, 1.5, len(SEEN))))
    }


def study(random, seeds=3):
    """Returns a whole study of plausible figures, with every kind of record."""
    records = []
    levels = {
        "dorefa": -5.0, "pact": -4.0, "lsq": -1.6, "hawq": -1.2, "hawq_free": -0.9, "hgq2": -1.4, "static": -0.7, "dqmq": 0.0,
    }  # fmt: skip
    for network, top in (("resnet8", 0.78), ("mobilenet_v2", 0.74)):

        def add(method, level, seed, network=network, top=top, **fields):
            noise = random.normal(0, 0.2)
            tests = [top + (level + noise + gain) / 100 for gain in (0, -4, 8, 1)]
            if method == "dqmq" and "download_bytes" not in fields:
                fields["bits_by_kind"] = bits_by_kind(network, random)
                for name, loss in (("shuffled", 0.01), ("shuffled_bits", 0.005)):
                    fields[name] = {t: a - loss for t, a in zip(results.TESTS, tests)}
            records.append(record(network, method, tests, seed=seed, **fields))

        for seed in range(seeds):
            add("float", 1.0, seed)
            add("tfmot", 0.8, seed)
            for budget, loss in zip(results.MEAN_BITS, (-4.0, -1.5, -0.4)):
                for method, level in levels.items():
                    if (method, network) == ("hgq2", "mobilenet_v2"):
                        continue
                    uniform = method in results.UNIFORM
                    low = int(budget)
                    for pair in ((low, low), (low, low + 1))[: 2 if uniform and budget == 3 else 1]:
                        fall = -30 if (method, budget) == ("dorefa", 2.5) else 0
                        cost = budget - (0.12 if uniform else random.uniform(0, 0.02))
                        for ablation in results.trainings(method):
                            add(
                                method, level + loss + fall + bool(ablation) / 2, seed,
                                budget=budget, bits=pair if uniform else None, cost=cost,
                                ablation=ablation,
                            )  # fmt: skip
        if network == "resnet8":
            for seed in range(seeds):
                for name in ("no_pathwise", "no_entropy", "random_encoder"):
                    add("dqmq", -5.0, seed, cost=2.49, ablation=name)
                for method in ("static", "dqmq"):
                    add(method, 0.5, seed, budget=8.0, cost=7.9)
                for method in ("lsq", "hawq", "static", "dqmq"):
                    at = {"kind": "download_bytes", "download_bytes": 39_000 + seed}
                    add(method, -2.0, seed, budget=40_000, **at)
    return records
