"""`DQMQModel`: training to a budget, decisions, freezing and saving, on trained networks."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import qonnx_runs
from helpers.new_process import in_new_process
from helpers.small_networks import KINDS, compiled, network, training_data

import dqmq_tf
from dqmq_tf.layers import QualityAffine


def cost_of(qmodel):
    decided = qmodel._parts.policy.activation_count
    bits = qmodel._parts.policy.assigned.numpy()[0]
    return qmodel._parts.costs.of_file(bits[decided:], bits[:decided])


def test_a_model_has_at_most_twelve_public_names_that_keras_models_do_not_have(simulated):
    qmodel, _ = simulated
    model = keras.Model(qmodel.inputs, qmodel.outputs)
    model.compile("adam", "mse")
    model.stop_training = model.history = None  # Keras sets them in `fit`.
    names = {name for name in set(dir(qmodel)) - set(dir(model)) if not name.startswith("_")}
    assert len(names) <= 12, names


class TestBudget:
    def test_training_uses_most_of_a_budget_of_download_bytes(self, deployable):
        qmodel, _ = deployable
        qmodel._training.keeper.measure()
        # One bit of the smallest of the four kernels is 2 % of the file.
        assert 0.94 * 6_000 <= cost_of(qmodel) <= 6_000

    def test_training_uses_most_of_a_budget_of_mean_bits(self, simulated, by_kind):
        qmodel, history = simulated
        decision = qmodel._parts.policy(qmodel._parts.policy.seen.values(), training=False)
        bits = np.asarray(decision["activations"])[..., 0]
        weights = np.asarray(decision["weights"])[:, :, 0]
        assert 0.96 * 3.0 <= qmodel._parts.costs.exact(weights, bits) <= 3.0
        assert history["cost"][1] == pytest.approx(3.0, rel=0.1)

    def test_a_frozen_model_does_not_exceed_the_budget(self, simulated, tmp_path):
        qmodel, _ = simulated
        qmodel.save(tmp_path / "m.keras")
        frozen = keras.models.load_model(tmp_path / "m.keras").freeze()
        bits = frozen._parts.policy.assigned.numpy()[0]
        decided = frozen._parts.policy.activation_count
        assert frozen._parts.costs.exact(bits[decided:], bits[:decided]) <= 3.0
        assert frozen.decisions(np.zeros((2, 16, 16, 3), "float32")).bits_vary_by == "static"

    def test_a_file_does_not_exceed_the_budget_and_has_mixed_bits(
        self, deployable, tmp_path, clean_images
    ):
        qmodel, _ = deployable
        qmodel.save(tmp_path / "m.keras")
        frozen = keras.models.load_model(tmp_path / "m.keras")
        report = dqmq_tf.convert(frozen, tmp_path / "m.tflite")
        assert report.download_bytes <= 6_000
        assert report.download_bytes == pytest.approx(cost_of(frozen), rel=0.01)
        assert len({tensor.bit_width for tensor in report.weights}) >= 2
        found = dqmq_tf.verify(frozen, tmp_path / "m.tflite", clean_images[0])
        assert found.top1_agreement >= 0.98


class TestBitsDependOnQuality:
    def test_kinds_of_degradation_get_different_bits(self, simulated, by_kind):
        qmodel, _ = simulated
        means = {kind: qmodel.decisions(images).mean() for kind, images in by_kind.items()}
        spread = {
            point: max(m[point] for m in means.values()) - min(m[point] for m in means.values())
            for point in qmodel.decision_points
        }
        assert max(spread.values()) >= 0.5, spread

    def test_kinds_of_degradation_get_different_means_before_rounding(self, simulated, by_kind):
        # The network has only four activations. Means may differ even if they round to the same bits.
        qmodel, _ = simulated
        policy = qmodel._parts.policy
        means = [np.mean(policy.means(qmodel._parts.encoder(x)), axis=0) for x in by_kind.values()]
        spread = np.ptp(means, axis=0)[: policy.activation_count]
        assert sum(spread >= 0.2) >= 2, spread

    def test_the_embedding_of_another_image_changes_the_bits(self, simulated, by_kind):
        qmodel, _ = simulated
        embeddings = {k: qmodel._parts.encoder(x) for k, x in by_kind.items()}

        def decide(z):
            return np.asarray(qmodel._parts.policy(z, training=False)["activations"])

        own = {kind: decide(z) for kind, z in embeddings.items()}
        swapped = max(np.mean(own["clean"] != own[kind]) for kind in KINDS)
        assert swapped > 0.1

    def test_without_the_policy_s_directions_all_images_get_the_same_bits(self, simulated, by_kind):
        qmodel, _ = simulated
        kept = qmodel._parts.policy.direction.numpy()
        qmodel._parts.policy.direction.assign(np.zeros_like(kept))
        try:
            bits = qmodel.decisions(np.concatenate(list(by_kind.values()))).bits
        finally:
            qmodel._parts.policy.direction.assign(kept)
        assert (bits == bits[0]).all()

    def test_decisions_do_not_depend_on_the_other_images_of_the_batch(self, simulated, by_kind):
        qmodel, _ = simulated
        images = np.concatenate([by_kind["low_light"][:9], by_kind["clean"][:9]])
        together = qmodel.decisions(images).bits
        alone = np.concatenate([qmodel.decisions(image[None]).bits for image in images])
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_allclose(
            qmodel.predict(images, verbose=0),
            qmodel.predict(images, batch_size=3, verbose=0),
            atol=0.01,
        )

    def test_logs_contain_every_term_of_the_objective(self, simulated):
        _, history = simulated
        names = {"pathwise", "score_function", "model_cost", "entropy", "cost", "multiplier"}
        assert names <= set(history)
        assert {"mean_bits", "loss", "accuracy"} <= set(history)

    def test_the_network_has_learned_its_task(self, simulated, by_kind, clean_images):
        qmodel, _ = simulated
        _, labels = clean_images
        right = [
            (qmodel.predict(images, verbose=0).argmax(1) == labels).mean()
            for images in by_kind.values()
        ]
        # Chance is 0.1. All degraded images have severity 5, and the training is short. Ten seeds gave
        # 0.50 to 0.70, and a change in rounding has the same effect as another seed.
        assert np.mean(right) > 0.45


class TestQualityNormalization:
    def test_scales_depend_on_the_embedding_after_training(self, simulated, by_kind):
        qmodel, _ = simulated
        affines = qmodel._parts.affines
        assert len(affines) == 2
        scales = [np.abs(layer.scale_direction.numpy()).max() for layer in affines]
        assert min(scales) > 1e-3

    def test_the_quality_of_another_image_changes_the_predictions(self, simulated, by_kind):
        qmodel, _ = simulated
        own = qmodel.predict(by_kind["contrast"], verbose=0)
        call, z = qmodel._parts.encoder.call, qmodel._parts.encoder(by_kind["gaussian_noise"])
        qmodel._parts.encoder.call = lambda x: z[: keras.ops.shape(x)[0]]
        try:
            other = np.asarray(qmodel(by_kind["contrast"], training=False))
        finally:
            qmodel._parts.encoder.call = call
        assert np.abs(own - other).max(axis=1).mean() > 0.05

    def test_a_model_frozen_to_one_profile_has_one_normalization_for_all_images(
        self, simulated, by_kind, tmp_path
    ):
        simulated[0].save(tmp_path / "m.keras")
        frozen = keras.models.load_model(tmp_path / "m.keras").freeze(profiles=1)
        found = frozen._parts.policy(frozen._parts.encoder(by_kind["contrast"]), training=False)[
            "embedding"
        ]
        assert (np.asarray(found) == np.asarray(found)[0]).all()

    @pytest.mark.parametrize("budget,count", [(4.5, 3), (3.0, 2)])
    def test_layers_get_it_from_the_input_on_until_its_share_of_the_budget_is_used(
        self, budget, count
    ):
        qmodel = dqmq_tf.quantize_model(
            network(), target="simulation", budget=dqmq_tf.Budget(mean_bit_width=budget)
        )
        affines = qmodel._parts.affines
        assert [layer.name for layer in affines] == [f"norm_{i}_quality" for i in range(count)]
        spent = [QualityAffine.bit_operations(*layer.scale_direction.shape) for layer in affines]
        assert 0 < sum(spent) <= 0.02 * qmodel._parts.bit_ops

    def test_the_cost_includes_what_decides_the_bits(self, simulated):
        costs = simulated[0]._parts.costs
        bits = [8] * len(costs.weights), [8] * len(costs.decided)
        macs = costs.macs.sum()
        assert 0 < costs.overhead
        assert costs.exact(*bits) == pytest.approx(((64 * macs + costs.overhead) / macs) ** 0.5)


class TestWithoutQuality:
    @pytest.fixture(scope="class")
    def static(self, float_network):
        qmodel = dqmq_tf.quantize_model(
            float_network,
            target="simulation",
            budget=dqmq_tf.Budget(mean_bit_width=3.4),
            config=dqmq_tf.DQMQConfig(quality_aware=False),
        )
        compiled(qmodel, 1e-3).fit(training_data(2), verbose=0)
        return qmodel

    def test_all_images_get_the_same_bits_within_the_budget(self, static, by_kind):
        table = static.decisions(np.concatenate(list(by_kind.values())))
        assert table.bits_vary_by == "static"
        assert (table.bits == table.bits[0]).all()
        decided = static._parts.policy.activation_count
        bits = table.bits[0]
        assert 3.2 <= static._parts.costs.exact(bits[decided:], bits[:decided]) <= 3.4
        assert len(set(bits.tolist())) >= 2

    def test_static_bits_need_no_encoder_so_the_cost_includes_none(self, static):
        assert static._parts.costs.overhead == 0
        assert not static._parts.affines
        parts = [getattr(layer, "affine", layer) for layer in static.layers]
        assert not [part for part in parts if isinstance(part, QualityAffine)]

    def test_freezing_keeps_the_bits(self, static, by_kind, tmp_path):
        static.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        before = loaded.decisions(by_kind["clean"]).bits
        np.testing.assert_array_equal(loaded.freeze().decisions(by_kind["clean"]).bits, before)

    def test_several_profiles_without_quality_are_an_error(self):
        with pytest.raises(ValueError, match="profiles=2.*one profile"):
            dqmq_tf.DQMQConfig(quality_aware=False, profiles=2)


class TestFreeze:
    @pytest.fixture(scope="class")
    def two_profiles(self, simulated, by_kind, tmp_path_factory):
        """A copy that is frozen to two profiles, the images it was frozen on, and their table."""
        path = tmp_path_factory.mktemp("two") / "m.keras"
        simulated[0].save(path)
        images = np.concatenate(list(by_kind.values()))
        frozen = keras.models.load_model(path).freeze(profiles=2, data=images)
        return frozen, images, frozen.decisions(images)

    def test_two_profiles_are_chosen_by_quality_within_the_budget(self, two_profiles):
        copy, _, table = two_profiles
        assert copy.frozen_profiles == 2 and table.bits_vary_by == "profile"
        assert len(np.unique(table.bits, axis=0)) == 2
        assert set(table.profile) == {0, 1}
        decided = copy._parts.policy.activation_count
        mean = copy._parts.costs.exact(table.bits[:, decided:], table.bits[:, :decided])
        assert mean <= 3.0 * 1.001

    def test_the_integers_of_a_frozen_model_fit_their_bits_and_its_kernels(
        self, simulated, tmp_path
    ):
        simulated[0].save(tmp_path / "m.keras")
        copy = keras.models.load_model(tmp_path / "m.keras")
        precision = copy.freeze().precision()
        for path, variables in precision.weights.items():
            weight = variables["kernel"]
            kernel = copy._parts.wrappers[path].layer.kernel.numpy()
            assert weight.integers.shape == kernel.shape
            assert np.abs(weight.integers).max() <= 2 ** (weight.bit_width - 1) - 1
            error = np.abs(weight.step * weight.integers - kernel)
            inside = np.abs(kernel) < weight.step * (2 ** (weight.bit_width - 1) - 1)
            assert (
                error[inside] <= 0.51 * np.broadcast_to(weight.step, kernel.shape)[inside]
            ).all()

    def test_precision_of_a_model_that_is_not_frozen_is_an_error(self, simulated):
        with pytest.raises(ValueError, match="freeze"):
            simulated[0].precision()

    def test_a_trained_profile_is_a_qonnx_file(self, two_profiles, tmp_path):
        copy, images, table = two_profiles
        profiles = table.profile
        for number in range(2):
            path, chosen = tmp_path / f"{number}.onnx", images[profiles == number][:64]
            dqmq_tf.export_qonnx(copy, path, number)
            outputs, expected = qonnx_runs.run(path, chosen)[0], copy(chosen).numpy()
            assert len(outputs) == 64 and len(np.unique(expected.argmax(-1))) > 4
            assert (outputs.argmax(-1) == expected.argmax(-1)).all()
            assert qonnx_runs.equal_outputs(outputs, expected) >= 60
            bit_ops, _ = qonnx_runs.cost_by_qonnx(path)
            assert bit_ops == pytest.approx(qonnx_runs.cost_by_policy(copy, number)[0], rel=0.01)

    def test_a_number_of_profiles_out_of_range_is_an_error(self, simulated):
        with pytest.raises(ValueError, match="profiles=5"):
            simulated[0].freeze(profiles=5)

    def test_freezing_a_model_that_has_not_seen_data_is_an_error(self):
        with pytest.raises(ValueError, match="has not seen data"):
            dqmq_tf.quantize_model(network()).freeze()


class TestSaving:
    def test_a_loaded_model_predicts_and_decides_the_same_in_a_new_process(
        self, simulated, by_kind, tmp_path
    ):
        qmodel, _ = simulated
        images = np.concatenate([x[:20] for x in by_kind.values()])
        qmodel.save(tmp_path / "m.keras")
        np.save(tmp_path / "x.npy", images)
        code = (
            "import keras, numpy as np, dqmq_tf\n"
            "folder = sys.argv[1]\n"
            "m = keras.models.load_model(folder + '/m.keras')\n"
            "x = np.load(folder + '/x.npy')\n"
            "np.save(folder + '/p.npy', m.predict(x, verbose=0))\n"
            "np.save(folder + '/d.npy', m.decisions(x).bits)\n"
        )
        in_new_process(code, tmp_path)
        np.testing.assert_array_equal(
            np.load(tmp_path / "p.npy"), qmodel.predict(images, verbose=0)
        )
        np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), qmodel.decisions(images).bits)

    def test_optimizers_and_schedule_continue_after_loading(self, simulated, tmp_path):
        qmodel, _ = simulated
        qmodel.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert again._parts.policy.phase == qmodel._parts.policy.phase == "settled"
        assert int(again.optimizer.iterations) == int(qmodel.optimizer.iterations)
        assert int(again._training.policy_optimizer.iterations) == int(
            qmodel._training.policy_optimizer.iterations
        )
        before = again.decisions(np.zeros((1, 16, 16, 3), "float32")).bits
        # Tracing would take longer than these two steps.
        again.run_eagerly = True
        again.fit(training_data(1).take(2), verbose=0)
        assert (again.decisions(np.zeros((1, 16, 16, 3), "float32")).bits == before).all()

    def test_a_loaded_model_with_the_default_budget_has_the_same_cost(self, tmp_path):
        # The default budget includes the cost of what decides the bits.
        qmodel = dqmq_tf.quantize_model(network(), target="simulation")
        qmodel.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert again._parts.bit_ops == qmodel._parts.bit_ops
        assert again._parts.costs.overhead == qmodel._parts.costs.overhead
        assert again._parts.costs.exact([8] * 4, [8] * 4) == qmodel._parts.costs.exact(
            [8] * 4, [8] * 4
        )

    def test_a_config_can_be_restored_from_json(self):
        config = dqmq_tf.DQMQConfig(
            rules=[dqmq_tf.LayerRule(pattern="conv_.*", weight_bits=(3, 5))], profiles=2
        )
        assert dqmq_tf.DQMQConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class TestBadInput:
    def test_an_empty_dataset_is_an_error(self):
        qmodel = compiled(dqmq_tf.quantize_model(network()))
        empty = tf.data.Dataset.from_tensor_slices((np.zeros((0, 16, 16, 3)), np.zeros(0)))
        with pytest.raises(ValueError, match="empty"):
            qmodel.fit(empty.batch(4))

    def test_nan_in_the_first_batch_is_an_error(self):
        qmodel = compiled(dqmq_tf.quantize_model(network()))
        images = np.zeros((8, 16, 16, 3), "float32")
        images[3, 0, 0, 0] = np.nan
        with pytest.raises(ValueError, match="Input .* holds 1 values that are NaN or infinite"):
            qmodel.fit(images, np.zeros(8), verbose=0)

    def test_infinity_in_a_later_batch_is_an_error(self, deployable, tmp_path):
        deployable[0].save(tmp_path / "m.keras")
        qmodel = keras.models.load_model(tmp_path / "m.keras")
        images = np.zeros((8, 16, 16, 3), "float32")
        images[7] = np.inf
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or infinity"):
            qmodel.fit(images, np.zeros(8), batch_size=4, verbose=0)
