// The sampling worker, as an object of the page.

export class Denoiser {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #running = null; // {id, resolve, reject, onStep}
  #count = 0;

  /**
   * Load the network.
   * @param {string | null} backend "wasm" not to use the GPU
   * @param {(loaded: number, total: number) => void} onProgress bytes; total 0 if unknown
   * @returns {Promise<{client: object, backend: string, threads: number}>}
   */
  load(backend, onProgress) {
    return new Promise((resolve, reject) => {
      this.#worker.onerror = (event) => reject(new Error(event.message ?? "no module workers"));
      this.#worker.onmessage = ({ data }) => {
        if (data.type === "loading") onProgress(data.loaded, data.total);
        else if (data.type === "ready") resolve(data);
        else if (data.type === "error" && data.id === undefined) reject(new Error(data.message));
        else this.#receive(data);
      };
      this.#worker.postMessage({ type: "load", backend });
    });
  }

  /**
   * Sample an image; cancels a sampling that is running, which resolves to null.
   * @param {{noise: Float32Array, labels: Float32Array, positions: Float32Array, draft?: boolean}} given
   *   noise (3, H, W), labels (L) and positions (L, 2 or 4); draft: whether fewer steps are enough
   * @param {(step: {step: number, count: number, x_t: Float32Array, x_0: Float32Array}) => void} onStep
   * @returns {Promise<Float32Array | null>} x_0, (3, H, W), in [-1, 1]
   */
  sample(given, onStep = () => {}) {
    this.cancel();
    const id = ++this.#count;
    return new Promise((resolve, reject) => {
      this.#running = { id, resolve, reject, onStep };
      this.#worker.postMessage({ type: "sample", id, ...given });
    });
  }

  /** End the sampling that is running; it resolves to null. */
  cancel() {
    if (this.#running) this.#worker.postMessage({ type: "cancel" });
    this.#running?.resolve(null);
    this.#running = null;
  }

  #receive(data) {
    const running = this.#running;
    if (data.id !== running?.id) return; // cancelled
    if (data.type === "step") return running.onStep(data);
    this.#running = null;
    if (data.type === "error") running.reject(new Error(data.message));
    else running.resolve(data.x_0);
  }
}
