// Opens a `.tflite` file: checks what can be checked before LiteRT.js sees it, and reads what the
// file says about itself.

import { isFlatbuffer, readFile } from "./flatbuffer.js";

/** The output of a file with `routing="graph"` that tells the profile. */
export const PROFILE = "profile";

const METADATA = "dqmq_tf";
const MAGIC = "DQMQSEAL";
const DIGEST_BYTES = 32;
const INPUT_TYPES = ["float32", "uint8"];
const RESIZE = ["bilinear", "nearest", "area"];

/** A file that the page cannot use. The message says why and what to do. */
export class FileError extends Error {}

/**
 * Opens a file.
 *
 * @param {Uint8Array} bytes The contents.
 * @returns `{bytes, graph, facts, routing, profiles, input, signature, outputs, labels}`, where
 *     `input` has the name, type, height, width and channels of the image, and how it is fed
 *     (`mean`, `std`, `color`, `resize`), and `signature` is the key of the signature that takes it.
 * @throws {FileError} If it is not a `.tflite` file, is corrupt, or does not take one image.
 */
export async function openFile(bytes) {
  if (!isFlatbuffer(bytes)) {
    throw new FileError("This is not a TensorFlow Lite file. Choose a file that ends in .tflite.");
  }
  await checkSeal(bytes);
  const { graph, facts } = parse(bytes);
  const network = imageSignature(graph);
  const input = imageInput(network, facts);
  const outputs = network.outputs.filter(
    ({ name }) => facts?.routing !== "graph" || name !== PROFILE,
  );
  checkScores(outputs[0]);
  return {
    bytes,
    graph,
    facts,
    routing: facts?.routing ?? null,
    profiles: facts?.profiles ?? null,
    input,
    signature: network.key,
    outputs,
    labels: Array.isArray(facts?.labels) ? facts.labels.map(String) : [],
  };
}

// A file of dqmq_tf ends in a checksum. Other files have none, and LiteRT.js trusts its input.
async function checkSeal(bytes) {
  const body = bytes.subarray(0, bytes.length - MAGIC.length - DIGEST_BYTES);
  const end = bytes.subarray(body.length);
  if (new TextDecoder().decode(end.subarray(0, MAGIC.length)) !== MAGIC) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", body));
  if (!digest.every((byte, index) => byte === end[MAGIC.length + index])) {
    throw new FileError(
      "This file is corrupt: it does not match the checksum at its end. Copy it again, or convert " +
        "the model again.",
    );
  }
}

function parse(bytes) {
  try {
    const graph = readFile(bytes);
    const text = graph.metadata[METADATA];
    return { graph, facts: text ? JSON.parse(new TextDecoder().decode(text)) : null };
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof SyntaxError)) throw error;
    throw new FileError(
      `This file is truncated or corrupt (${error.message}). Copy it again, or convert the model ` +
        "again.",
    );
  }
}

/** Returns the signature that takes the image: of an adaptive file, that of its first profile. */
function imageSignature(graph) {
  const keys = graph.signatures.map(({ key }) => key);
  const chosen =
    graph.signatures.find(({ key }) => key === "profile_0") ?? graph.signatures[0];
  if (!chosen) {
    throw new FileError(
      "This file has no signature, so its inputs have no names. Convert it again with a current " +
        "converter.",
    );
  }
  if (keys.includes("profile_0") && !keys.includes("router")) {
    throw new FileError("This file has profiles but no router. Convert the model again.");
  }
  return chosen;
}

function imageInput(signature, facts) {
  const [first, ...others] = signature.inputs;
  if (!first || others.length) {
    throw new FileError(
      `This file takes ${signature.inputs.length} inputs, and the page has one picture. Choose a ` +
        "file with one input.",
    );
  }
  const numbers = `${first.type} [${first.shape.join(", ")}]`;
  const [batch, height, width, channels] = first.shape;
  if (first.shape.length !== 4 || batch !== 1 || ![1, 3].includes(channels)) {
    throw new FileError(
      `The input "${first.name}" of this file is not an image: it is ${numbers}, and the page ` +
        "feeds [1, height, width, 1 or 3].",
    );
  }
  const unsupported = [first, ...signature.outputs].find(
    ({ type }) => !INPUT_TYPES.includes(type) && type !== "int32",
  );
  if (unsupported || !INPUT_TYPES.includes(first.type)) {
    const { name, type } = unsupported ?? first;
    throw new FileError(
      `"${name}" has the type ${type}, which LiteRT.js refuses as an input or output. Convert the ` +
        'model with io_dtype="float32".',
    );
  }
  return { name: first.name, type: first.type, height, width, channels, ...feeding(first, facts) };
}

function checkScores(output) {
  const classes = output?.shape.at(-1) ?? 0;
  if (classes < 2 || output.shape.some((length, axis) => length !== 1 && axis < output.shape.length - 1)) {
    throw new FileError(
      `The output "${output?.name}" of this file is not one score per class: its shape is ` +
        `[${output?.shape.join(", ")}]. Choose a classifier.`,
    );
  }
}

/** Returns how the input is fed. Where the file does not say it, pixels 0 to 255 as RGB. */
function feeding({ name, shape }, facts) {
  const stated = facts?.inputs?.[name] ?? {};
  const channels = shape[3];
  const resize = stated.resize ?? "bilinear";
  if (!RESIZE.includes(resize)) {
    throw new FileError(
      `This file wants its pictures resized by "${resize}", which the page does not have. It has ` +
        `${RESIZE.join(", ")}.`,
    );
  }
  const perChannel = (values, otherwise) => {
    const list = [values ?? otherwise].flat();
    return Array.from({ length: channels }, (_, index) => Math.fround(list[index % list.length]));
  };
  return {
    mean: perChannel(stated.mean, 0),
    std: perChannel(stated.std, 1),
    color: stated.color ?? (channels === 1 ? "GRAY" : "RGB"),
    resize,
    isStated: name in (facts?.inputs ?? {}),
  };
}
