// Lets a file show what an `Exposure` layer did to a picture: its black point and its gain.
//
// The layer computes `(x - black) * gain`, with one number of each per image. They stay inside of
// the network. A copy of the file, in which the last operator (DEQUANTIZE) reads such a number
// instead of the class scores, gives it out. Nothing else of the copy changes.

const SUB = 41;
const MUL = 18;
const DEQUANTIZE = 6;
const ONE_NUMBER = [1, 1, 1, 1];

const isOneNumber = ({ shape }) => shape.length === 4 && shape.every((length) => length === 1);
const isImage = ({ shape }) => shape.length === 4 && shape[1] * shape[2] > 1;

/**
 * Returns copies of a file that give out the numbers of its `Exposure` layer.
 *
 * @param {Uint8Array} bytes The file.
 * @param subgraph The subgraph of the network, see `readFile`.
 * @returns `{black, gain}`, two files, or null if the network has no such layer.
 */
export function probes(bytes, subgraph) {
  const found = exposure(subgraph);
  const last = subgraph.operators.at(-1);
  if (!found || last?.code !== DEQUANTIZE || !subgraph.outputs.includes(last.outputs[0])) return null;
  const give = (tensor) => redirected(bytes, last, subgraph.tensors[last.outputs[0]], tensor);
  return { black: give(found.black), gain: give(found.gain) };
}

/** Returns the tensors of the black point and the gain, or null. */
function exposure({ tensors, operators }) {
  const producer = new Map(operators.flatMap((operator) => operator.outputs.map((to) => [to, operator])));
  for (const { code, inputs } of operators) {
    const [lifted, gain] = inputs;
    if (code !== MUL || !isImage(tensors[lifted]) || !isOneNumber(tensors[gain])) continue;
    const source = producer.get(lifted);
    if (source?.code !== SUB || !isOneNumber(tensors[source.inputs[1]])) continue;
    if (producer.has(gain) && producer.has(source.inputs[1])) return { black: source.inputs[1], gain };
  }
  return null;
}

// Equal vectors of a file may be one vector, so none is changed. New ones stand behind all that is
// there, as an offset of a flatbuffer counts forward, and only the two offsets to them change.
function redirected(bytes, operator, output, tensor) {
  const inputs = [1, tensor];
  const shape = [ONE_NUMBER.length, ...ONE_NUMBER];
  const end = Math.ceil(bytes.length / 4) * 4;
  const copy = new Uint8Array(end + 4 * (inputs.length + shape.length));
  copy.set(bytes);
  const view = new DataView(copy.buffer);
  [...inputs, ...shape].forEach((value, i) => view.setInt32(end + 4 * i, value, true));
  view.setUint32(operator.inputsField, end - operator.inputsField, true);
  view.setUint32(output.shapeField, end + 4 * inputs.length - output.shapeField, true);
  return copy;
}
