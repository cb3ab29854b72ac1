// One file on the page: choosing it, its facts, and what it makes of the picture.

import { exposureText, fileText, profileText } from "./facts.js";
import { FileError, openFile } from "./file.js";
import { asInput, draw } from "./image.js";
import { Network } from "./model.js";
import { degrade } from "./quality/degradations.js";
import { Random } from "./quality/random.js";
import { ranked } from "./scores.js";

const SHOWN_CLASSES = 5;
const SEVERITIES = [0, 1, 2, 3, 4, 5];

const percent = (share) => `${(100 * share).toFixed(1)} %`;

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
    const chooser = this.find("input");
    const title = this.find("h2").textContent;
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
      this.find(".facts").textContent = fileText(file, opened);
      this.changed();
    } catch (error) {
      if (choice !== this.choice) return;
      this.find(".facts").textContent = "";
      this.find(".error").textContent = `${file.name}: ${error.message}`;
      if (!(error instanceof FileError)) throw error;
    }
  }

  /** Degrades a picture, runs the network on it, and shows the result. */
  show(picture, quality) {
    return this.withNetwork(async (network) => {
      const image = degraded(picture, network, quality);
      const result = await network.run(image);
      const milliseconds = await network.milliseconds(image);
      return () => {
        draw(this.find(".seen canvas"), image);
        this.tell("profile", profileText(network.file, result.profile));
        this.tell("exposure", exposureText(result.exposure));
        this.tell("latency", `${milliseconds.toPrecision(2)} ms`);
        this.list(result.outputs[0], network.file.labels);
        this.find(".sweep").hidden = true;
        this.find(".result").hidden = false;
      };
    });
  }

  /** Shows the best class at each severity, and what followed the quality. */
  sweep(picture, { kind, severity, seed }) {
    return this.withNetwork(async (network) => {
      const rows = [];
      for (const level of SEVERITIES) {
        const image = degraded(picture, network, { kind, severity: level, seed });
        const { outputs, profile, exposure } = await network.run(image);
        const [best] = ranked(outputs[0], network.file.labels, 1).scores;
        const followed = [profile?.toString(), exposure?.gain.toFixed(2)].filter(Boolean);
        const row = tableRow(`${level}`, [best.label, percent(best.share), followed.join(", ")]);
        if (level === severity) row.setAttribute("aria-current", "true");
        rows.push(row);
      }
      const title = [network.file.profiles && "Profile", network.probes.gain && "Gain"];
      return () => {
        this.find(".sweep .followed").textContent = title.filter(Boolean).join(", ");
        this.find(".sweep tbody").replaceChildren(...rows);
        this.find(".sweep").hidden = false;
      };
    });
  }

  /** Does work with the network and shows its result, unless another file was chosen meanwhile. */
  async withNetwork(work) {
    const { network } = this;
    if (!network) return;
    try {
      const show = await work(network);
      if (network !== this.network) return;
      this.find(".error").textContent = "";
      show();
    } catch (error) {
      if (network === this.network) this.find(".error").textContent = `The network failed: ${error.message}`;
    }
  }

  /** Shows a fact about the result, or hides its row. */
  tell(name, text) {
    const row = this.find(`.${name}`);
    row.hidden = !text;
    row.querySelector("dd").textContent = text ?? "";
  }

  list(output, labels) {
    const { scores, meaning } = ranked(output, labels, SHOWN_CLASSES);
    this.find(".scores caption").textContent = meaning;
    const rows = scores.map(({ label, share }) => {
      const row = tableRow(label, [percent(share)]);
      row.style.setProperty("--share", `${100 * share}%`);
      return row;
    });
    this.find(".scores tbody").replaceChildren(...rows);
    const [best] = scores;
    this.find(".status").textContent = `${best.label}, ${(100 * best.share).toFixed(0)} percent`;
  }
}

function degraded(picture, network, { kind, severity, seed }) {
  return degrade(asInput(picture, network.file.input), kind, severity, new Random(seed));
}

function tableRow(title, values) {
  const row = document.createElement("tr");
  const header = document.createElement("th");
  header.scope = "row";
  header.textContent = title;
  const cells = values.map((value) => {
    const cell = document.createElement("td");
    cell.textContent = value;
    return cell;
  });
  row.append(header, ...cells);
  return row;
}
