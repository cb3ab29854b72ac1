// The page: connects its controls with the picture and the two files.

import { Camera } from "./camera.js";
import { FilePanel } from "./file_panel.js";
import { draw, asInput, pixelsOf } from "./image.js";
import { KINDS } from "./quality/degradations.js";

const STRENGTHS = ["unchanged", "mild", "moderate", "clear", "heavy", "strong"];
const PREVIEW_SIDE = 320;

const element = (id) => document.getElementById(id);
const camera = new Camera(element("video"));
const panels = [new FilePanel(element("yours"), update), new FilePanel(element("other"), update)];

let picture = null;
let seed = 1;
let isStale = false;
let isRunning = false;
let cameraStarts = false;

/** Shows the result of the current picture and settings. Calls while it runs are merged into one. */
async function update() {
  isStale = true;
  if (isRunning) return;
  isRunning = true;
  try {
    while (isStale && picture) {
      isStale = false;
      for (const panel of panels) await panel.show(picture, quality());
      // All severities take longer. A newer picture goes first, and a camera has one all the time.
      for (const panel of panels) if (!isStale && !camera.isOn) await panel.sweep(picture, quality());
    }
  } finally {
    isRunning = false;
  }
}

function quality() {
  return { kind: element("kind").value, severity: Number(element("severity").value), seed };
}

function setPicture(source, name) {
  picture = pixelsOf(source);
  const scale = Math.min(PREVIEW_SIDE / Math.max(picture.height, picture.width), 1);
  const [height, width] = [picture.height, picture.width].map((side) => Math.max(Math.round(side * scale), 1));
  draw(element("preview"), asInput(picture, { height, width, channels: 3, resize: "area" }));
  element("preview").setAttribute("aria-label", `Picture: ${name}`);
  element("drop-hint").hidden = true;
}

async function openPicture(file) {
  stopCamera();
  element("picture-error").textContent = "";
  try {
    setPicture(await createImageBitmap(file), file.name);
  } catch (error) {
    element("picture-error").textContent =
      `${file.name} is not a picture that this browser can show (${error.message}). Choose a PNG or ` +
      "a JPEG file.";
    return;
  }
  await update();
}

async function toggleCamera() {
  if (camera.isOn) {
    stopCamera();
    return;
  }
  if (cameraStarts) return; // The person is being asked, and clicked again.
  cameraStarts = true;
  element("picture-error").textContent = "";
  try {
    await camera.start();
  } catch (error) {
    element("picture-error").textContent = error.message;
    return;
  } finally {
    cameraStarts = false;
  }
  showCameraState();
  while (camera.isOn) {
    setPicture(element("video"), "the camera");
    await update();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  camera.stop();
  showCameraState();
  update();
}

function showCameraState() {
  element("camera").setAttribute("aria-pressed", String(camera.isOn));
  element("camera").textContent = camera.isOn ? "Stop the camera" : "Use the camera";
}

function showSeverity() {
  const { severity } = quality();
  const text = `${severity}, ${STRENGTHS[severity]}`;
  element("severity-text").textContent = text;
  element("severity").setAttribute("aria-valuetext", text);
}

/** A dropped `.tflite` file goes to the panel under the pointer, and anything else is a picture. */
function acceptDrops() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (!file) return;
    const panel = panels.find(({ section }) => section.contains(event.target));
    if (panel || file.name.endsWith(".tflite")) (panel ?? panels[0]).open(file);
    else openPicture(file);
  });
  for (const type of ["dragenter", "dragleave", "drop"]) {
    element("drop").addEventListener(type, () => {
      element("drop").classList.toggle("over", type === "dragenter");
    });
  }
}

element("kind").append(...KINDS.map((kind) => new Option(kind.replaceAll("_", " "), kind)));
element("picture").addEventListener("change", ({ target }) => {
  if (target.files.length) openPicture(target.files[0]);
});
element("camera").addEventListener("click", toggleCamera);
element("kind").addEventListener("change", update);
element("severity").addEventListener("input", () => {
  showSeverity();
  update();
});
element("again").addEventListener("click", () => {
  seed += 1;
  update();
});
acceptDrops();
showSeverity();
