// The camera: starts, gives frames, stops.

export class Camera {
  /** @param {HTMLVideoElement} video Plays the stream; it need not be visible. */
  constructor(video) {
    this.video = video;
    this.stream = null;
  }

  get isOn() {
    return this.stream !== null;
  }

  /** @throws {Error} If there is no camera, or the person does not allow it. */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("The browser gives a page the camera only over HTTPS or from localhost.");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      throw new Error(`The camera cannot be used: ${error.message}. Choose a picture instead.`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = this.stream = null;
  }
}
