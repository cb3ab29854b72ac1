// Runs an opened file with LiteRT.js, on the CPU (WebAssembly).

import { FileError, PROFILE } from "./file.js";
import { probes } from "./probe.js";

const TIMED_MILLISECONDS = 50;

let runtime = null;
let errors = [];
let earlierWork = Promise.resolve();

/**
 * Loads LiteRT.js once, and returns its module.
 *
 * @throws {FileError} If it is not there.
 */
export function loadRuntime() {
  runtime ??= startRuntime().catch((error) => {
    runtime = null;
    throw new FileError(
      `LiteRT.js did not load (${error.message ?? error}). The page expects it in the folder ` +
        "vendor/, see README.md.",
    );
  });
  return runtime;
}

async function startRuntime() {
  const module = await import("@litertjs/core");
  // If LiteRT.js cannot allocate a network, it does not throw, but gives zeros. It only logs it.
  globalThis.Module = { printErr: (line) => /\bERROR:/.test(line) && errors.push(line) };
  await module.loadLiteRt(new URL("../wasm/", import.meta.resolve("@litertjs/core")).href);
  return module;
}

const withoutMarker = (line) => line.replace(/^.*\bERROR: */, "");

/** Does work of LiteRT.js, one at a time, and throws what it logs as an error. */
function checked(work) {
  const result = earlierWork.then(async () => {
    errors = [];
    const value = await work();
    if (errors.length) throw new Error(errors.map(withoutMarker).join("; "));
    return value;
  });
  earlierWork = result.catch(() => {});
  return result;
}

/**
 * Returns the numbers that the network reads: `(pixel - mean) / std` in its color order.
 *
 * @param input The input of an opened file, see `openFile`.
 * @param image Pixels from 0 to 255 of the input's size.
 */
export function inputValues({ type, mean, std, color, channels }, { values }) {
  const from = (i) => (color === "BGR" ? i - 2 * (i % channels) + channels - 1 : i);
  if (type === "uint8") return Uint8Array.from(values, (_, i) => values[from(i)]);
  return Float32Array.from(values, (_, i) => {
    const channel = i % channels;
    return Math.fround(values[from(i)] - mean[channel]) / std[channel];
  });
}

/** A network that is ready to run. `Network.load` makes it; `delete` frees its memory. */
export class Network {
  /**
   * @param file What `openFile` returned.
   * @throws {FileError} If LiteRT.js cannot load the file.
   */
  static async load(file) {
    const network = new Network(file, await loadRuntime());
    try {
      network.compiled = await network.compile(file.bytes);
      const signature = file.graph.signatures.find(({ key }) => key === file.signature);
      for (const [name, bytes] of Object.entries(probes(file.bytes, signature.subgraph) ?? {})) {
        network.probes[name] = await network.compile(bytes);
      }
      await network.run(blank(file.input));
    } catch (error) {
      network.delete();
      const isCrash = error instanceof WebAssembly.RuntimeError;
      throw new FileError(
        `LiteRT.js cannot run this file (${withoutMarker(error.message ?? String(error))}). It may be ` +
          "corrupt, or have operators that LiteRT.js does not have." +
          (isCrash ? " LiteRT.js has crashed: reload the page before you go on." : ""),
      );
    }
    return network;
  }

  constructor(file, runtime) {
    this.file = file;
    this.runtime = runtime;
    this.compiled = null;
    this.probes = {};
  }

  /** Frees the memory after the run in progress. Later runs fail. */
  delete() {
    return checked(() => {
      for (const model of [this.compiled, ...Object.values(this.probes)]) model?.delete();
    });
  }

  /**
   * Runs the network on one image.
   *
   * @param image Pixels from 0 to 255 of the input's size.
   * @returns `{outputs, profile, exposure}`: the outputs in the order of the file, the profile of an
   *     adaptive file or null, and `{black, gain}` of an `Exposure` layer or null.
   */
  async run(image) {
    const tensor = this.tensor(image);
    try {
      const { outputs, profile } = await this.infer(tensor);
      const exposure = {};
      for (const [name, model] of Object.entries(this.probes)) {
        const [[value]] = Object.values(await results(model, this.file.signature, this.named(tensor)));
        exposure[name] = value;
      }
      return { outputs, profile, exposure: this.probes.gain ? exposure : null };
    } finally {
      tensor.delete();
    }
  }

  /** Returns the mean time of one inference, the router included, in milliseconds. */
  async milliseconds(image) {
    const tensor = this.tensor(image);
    try {
      const start = performance.now();
      for (let runs = 1; ; runs += 1) {
        await this.infer(tensor);
        const elapsed = performance.now() - start;
        if (elapsed > TIMED_MILLISECONDS) return elapsed / runs; // The clock of a browser is coarse.
      }
    } finally {
      tensor.delete();
    }
  }

  compile(bytes) {
    return checked(() => this.runtime.loadAndCompile(bytes, { accelerator: "wasm" }));
  }

  tensor(image) {
    const { height, width, channels } = this.file.input;
    return new this.runtime.Tensor(inputValues(this.file.input, image), [1, height, width, channels]);
  }

  named(tensor) {
    return { [this.file.input.name]: tensor };
  }

  /** Runs the router and the profile that it chooses, or the whole file where it has no router. */
  async infer(tensor) {
    const named = this.named(tensor);
    if (this.file.routing === "signatures") {
      const { profile } = await results(this.compiled, "router", named);
      const key = `profile_${profile[0]}`;
      return { outputs: this.ordered(await results(this.compiled, key, named)), profile: profile[0] };
    }
    const all = await results(this.compiled, this.file.signature, named);
    const profile = this.file.routing === "graph" ? all[PROFILE][0] : null;
    return { outputs: this.ordered(all), profile };
  }

  ordered(named) {
    return this.file.outputs.map(({ name }) => named[name]);
  }
}

async function results(model, signature, inputs) {
  const tensors = await checked(() => model.run(signature, inputs));
  const arrays = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    arrays[name] = tensor.toTypedArray();
    tensor.delete();
  }
  return arrays;
}

function blank({ height, width, channels }) {
  return { height, width, channels, values: new Float32Array(height * width * channels) };
}
