"""Turns a graph and its precision into the bytes of a `.tflite` file.

`write_file` runs the steps in this order:

1. `lowered_model` rebuilds the trained model as a plain float Keras model, the lowered model. Its
   weights are integers times a scale, and batch norms are folded into them. `rules` chooses the
   function that lowers a layer; these functions are in `linear`, `elementwise`, `data_movement` and
   `float_fallback`, and all work on a `LoweringBuilder` (`builder`).
2. `float_file` converts the lowered model to a float file with TensorFlow's converter. While bits
   are chosen, `float_template` does that once, and later files take its constants.
3. `tensor_matching` finds the tensors of the lowered model in that file, by the markers that
   `tensor_markers` put there.
4. `quantization_plan` decides the scale and zero point of each tensor and has litert-quantizer
   write them.
5. `final_pass` and `integer_kernels` add what litert-quantizer does not support, and the metadata.
6. `number_check` compares every number in the file with the lowered model.

Batch norms: `dqmq_tf.graph.Graph.folds` decides which ones are folded,
`linear._set_folded_weights` folds them when it lowers the layer before, and `folding` has the
arithmetic. `elementwise.batch_norm` lowers those that are not folded.
"""
