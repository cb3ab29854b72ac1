// One file on the page: choosing it, its facts, and what it makes of the picture.

import { FileError, openFile } from "./file.js";
import { asInput, draw } from "./image.js";
import { Network } from "./model.js";
import { degrade } from "./quality/degradations.js";
import { Random } from "./quality/random.js";
import { ranked } from "./scores.js";

const SHOWN_CLASSES = 5;

export class FilePanel {
  /**
   * @param {HTMLElement} section The section that shows the file.
   * @param {() => void} changed Called when another file is ready.
   */
  constructor(section, changed) {
    section.append(document.getElementById("file-template").content.cloneNode(true));
    this.section = section;
    this.changed = changed;
    this.network = null;
    this.choice = 0;
    const title = section.querySelector("h2").textContent;
    const chooser = this.find("input");
    chooser.setAttribute("aria-label", `${title}: choose a .tflite file`);
    chooser.addEventListener("change", () => {
      if (chooser.files.length) this.open(chooser.files[0]);
      chooser.value = ""; // The same file can be chosen again.
    });
  }

  find(selector) {
    return this.section.querySelector(selector);
  }

  /** Opens a file and shows its facts, or why it cannot be used. */
  async open(file) {
    const choice = (this.choice += 1);
    this.network?.delete();
    this.network = null;
    this.find(".result").hidden = true;
    this.find(".error").textContent = "";
    this.find(".facts").textContent = `Loading ${file.name}…`;
    try {
      const opened = await openFile(new Uint8Array(await file.arrayBuffer()));
      const network = await Network.load(opened);
      if (choice !== this.choice) {
        network.delete(); // Another file was chosen while this one loaded.
        return;
      }
      this.network = network;
      this.find(".facts").textContent = facts(file, opened);
      this.changed();
    } catch (error) {
      if (choice !== this.choice) return;
      this.find(".facts").textContent = "";
      this.find(".error").textContent = `${file.name}: ${error.message}`;
      if (!(error instanceof FileError)) throw error;
    }
  }

  /** Degrades a picture, runs the network on it, and shows the result. */
  async show(picture, { kind, severity, seed }) {
    const { network } = this;
    if (!network) return;
    const image = degrade(asInput(picture, network.file.input), kind, severity, new Random(seed));
    const result = await network.run(image);
    const milliseconds = await network.milliseconds(image);
    if (network !== this.network) return;
    draw(this.find(".seen canvas"), image);
    this.tell("profile", profileText(network.file, result.profile));
    this.tell("exposure", exposureText(result.exposure));
    this.tell("latency", `${milliseconds.toPrecision(2)} ms`);
    this.list(result.outputs[0], network.file.labels);
    this.find(".result").hidden = false;
  }

  /** Shows a fact about the result, or hides its row. */
  tell(name, text) {
    const row = this.find(`.${name}`);
    row.hidden = !text;
    row.querySelector("dd").textContent = text ?? "";
  }

  list(output, labels) {
    const { scores, meaning } = ranked(output, labels, SHOWN_CLASSES);
    this.find("caption").textContent = meaning;
    this.find("tbody").replaceChildren(
      ...scores.map(({ label, share }) => {
        const row = document.createElement("tr");
        const name = document.createElement("th");
        name.scope = "row";
        name.textContent = label;
        const value = document.createElement("td");
        value.textContent = `${(100 * share).toFixed(1)} %`;
        row.style.setProperty("--share", `${100 * share}%`);
        row.append(name, value);
        return row;
      }),
    );
    const [best] = scores;
    this.find(".status").textContent = `${best.label}, ${(100 * best.share).toFixed(0)} percent`;
  }
}

function facts({ name, size }, { facts: stated, input, routing, profiles, labels }) {
  const parts = [
    name,
    `${size.toLocaleString("en")} bytes`,
    stated ? `target ${stated.target}` : "not from dqmq_tf",
    `${input.width} × ${input.height} ${input.color}`,
    input.isStated ? null : "fed with pixels from 0 to 255",
    profiles ? `${profiles.length} profiles, chosen by ${routing}` : bits(stated?.bits),
    labels.length ? null : "classes without names",
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Returns the range of bit-widths of `{layer: bits}`. */
function bits(widths) {
  const values = Object.values(widths ?? {});
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? `weights of ${low} bits` : `weights of ${low} to ${high} bits`;
}

function profileText({ profiles }, profile) {
  if (profile === null) return null;
  const widths = bits(profiles[profile].bits);
  return `${profile} (of ${profiles.length})${widths ? `: ${widths}` : ""}`;
}

function exposureText(exposure) {
  return exposure && `gain ${exposure.gain.toFixed(2)}, black ${exposure.black.toFixed(1)}`;
}
