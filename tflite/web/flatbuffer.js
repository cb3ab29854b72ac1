// Reads the parts of a `.tflite` file that the page needs, and nothing else of the format.
//
// The slots are those of TensorFlow Lite's schema (schema.fbs). A table that has no value in a slot
// uses the default of the schema.

export const IDENTIFIER = "TFL3";

const MODEL = {
  operatorCodes: 1,
  subgraphs: 2,
  buffers: 4,
  metadata: 6,
  signatures: 7,
};
const SUBGRAPH = { tensors: 0, inputs: 1, outputs: 2, operators: 3 };
const TENSOR = { shape: 0, type: 1, name: 3, quantization: 4 };
const QUANTIZATION = { scale: 2, zeroPoint: 3 };
const OPERATOR = { code: 0, inputs: 1, outputs: 2 };
const OPERATOR_CODE = { deprecatedCode: 0, code: 3 };
const SIGNATURE = { inputs: 0, outputs: 1, key: 2, subgraph: 4 };
const SIGNATURE_TENSOR = { name: 0, index: 1 };
const METADATA = { name: 0, buffer: 1 };
const BUFFER = { data: 0 };

// Names of schema.fbs's TensorType, by number.
const TYPES = [
  "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8",
  "float64", "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4",
]; // prettier-ignore

/** A table of a flatbuffer: its fields are read by their slots. */
class Table {
  constructor(view, position) {
    this.view = view;
    this.position = position;
    this.fields = position - view.getInt32(position, true);
  }

  /** Returns the position of the value in a slot, or 0 if the table does not have it. */
  at(slot) {
    const entry = 4 + 2 * slot;
    if (entry >= this.view.getUint16(this.fields, true)) return 0;
    const offset = this.view.getUint16(this.fields + entry, true);
    return offset ? this.position + offset : 0;
  }

  integer(slot, bytes = 4) {
    const position = this.at(slot);
    if (!position) return 0;
    return bytes === 1 ? this.view.getInt8(position) : this.view.getInt32(position, true);
  }

  table(slot) {
    const position = this.at(slot);
    return position ? new Table(this.view, follow(this.view, position)) : null;
  }

  /** Returns the positions of a vector's elements, which have `bytes` each. */
  elements(slot, bytes = 4) {
    const field = this.at(slot);
    if (!field) return [];
    const start = follow(this.view, field);
    const length = this.view.getUint32(start, true);
    if (start + 4 + length * bytes > this.view.byteLength) throw new RangeError("a vector is cut off");
    return Array.from({ length }, (_, index) => start + 4 + index * bytes);
  }

  tables(slot) {
    return this.elements(slot).map((at) => new Table(this.view, follow(this.view, at)));
  }

  integers(slot) {
    return this.elements(slot).map((at) => this.view.getInt32(at, true));
  }

  floats(slot) {
    return this.elements(slot).map((at) => this.view.getFloat32(at, true));
  }

  longs(slot) {
    return this.elements(slot, 8).map((at) => Number(this.view.getBigInt64(at, true)));
  }

  bytes(slot) {
    const field = this.at(slot);
    if (!field) return new Uint8Array();
    const start = follow(this.view, field);
    const length = this.view.getUint32(start, true);
    return new Uint8Array(this.view.buffer, this.view.byteOffset + start + 4, length);
  }

  text(slot) {
    return new TextDecoder().decode(this.bytes(slot));
  }
}

function follow(view, position) {
  return position + view.getUint32(position, true);
}

/** Returns whether bytes begin like a `.tflite` file. */
export function isFlatbuffer(bytes) {
  return bytes.length >= 8 && new TextDecoder().decode(bytes.subarray(4, 8)) === IDENTIFIER;
}

/**
 * Reads a file.
 *
 * @param {Uint8Array} bytes The contents of a `.tflite` file.
 * @returns `{metadata, signatures, subgraphs}`: the metadata by name as bytes; per signature its
 *     key, subgraph, inputs and outputs; per subgraph its tensors and operators. `inputsField` and
 *     `shapeField` are where the offsets of these vectors stand, for `probe.js`.
 * @throws {RangeError} If an offset points outside of the file.
 */
export function readFile(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const model = new Table(view, follow(view, 0));
  const buffers = model.tables(MODEL.buffers);
  const metadata = {};
  for (const entry of model.tables(MODEL.metadata)) {
    const buffer = buffers[entry.integer(METADATA.buffer)];
    if (!buffer) throw new RangeError("the buffer of metadata is missing");
    metadata[entry.text(METADATA.name)] = buffer.bytes(BUFFER.data);
  }
  const codes = model.tables(MODEL.operatorCodes).map(builtinCode);
  const subgraphs = model.tables(MODEL.subgraphs).map((table) => readSubgraph(table, codes));
  if (!subgraphs.length) throw new RangeError("there is no subgraph");
  const signatures = model.tables(MODEL.signatures).map((table) => readSignature(table, subgraphs));
  return { metadata, signatures, subgraphs };
}

// Old files have the code in the first slot only, new ones in both.
function builtinCode(table) {
  return Math.max(table.integer(OPERATOR_CODE.deprecatedCode, 1), table.integer(OPERATOR_CODE.code));
}

function readSubgraph(table, codes) {
  return {
    tensors: table.tables(SUBGRAPH.tensors).map(readTensor),
    inputs: table.integers(SUBGRAPH.inputs),
    outputs: table.integers(SUBGRAPH.outputs),
    operators: table.tables(SUBGRAPH.operators).map((operator) => ({
      code: codes[operator.integer(OPERATOR.code)],
      inputs: operator.integers(OPERATOR.inputs),
      outputs: operator.integers(OPERATOR.outputs),
      inputsField: operator.at(OPERATOR.inputs),
    })),
  };
}

function readTensor(table) {
  const quantization = table.table(TENSOR.quantization);
  const type = table.integer(TENSOR.type, 1);
  return {
    name: table.text(TENSOR.name),
    shape: table.integers(TENSOR.shape),
    shapeField: table.at(TENSOR.shape),
    type: TYPES[type] ?? `type ${type}`,
    scale: quantization?.floats(QUANTIZATION.scale) ?? [],
    zeroPoint: quantization?.longs(QUANTIZATION.zeroPoint) ?? [],
  };
}

function readSignature(table, subgraphs) {
  const subgraph = subgraphs[table.integer(SIGNATURE.subgraph)];
  if (!subgraph) throw new RangeError("the subgraph of a signature is missing");
  const named = (slot) =>
    table.tables(slot).map((entry) => {
      const index = entry.integer(SIGNATURE_TENSOR.index);
      const tensor = subgraph.tensors[index];
      if (!tensor) throw new RangeError("a tensor of a signature is missing");
      return { ...tensor, name: entry.text(SIGNATURE_TENSOR.name), index };
    });
  return {
    key: table.text(SIGNATURE.key),
    subgraph,
    inputs: named(SIGNATURE.inputs),
    outputs: named(SIGNATURE.outputs),
  };
}
