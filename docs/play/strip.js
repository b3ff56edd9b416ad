// The strip of steps: x_t above the estimate of x_0, one column per step.

import { toPixels } from "./sampling.js";

/** Return the columns of the fewest rows, each about as long as the others. */
const columnsFor = (count, most) => Math.ceil(count / Math.ceil(count / most));

export class Strip {
  #client;
  #onShow;
  #columns;
  #steps = []; // {x_t, x_0} of the current sampling

  /**
   * @param {HTMLElement} element
   * @param {object} client the content of model.json
   * @param {(x_t: Float32Array, x_0: Float32Array) => void} onShow called with the chosen step
   */
  constructor(element, client, onShow) {
    [this.#client, this.#onShow] = [client, onShow];
    const count = client.timesteps.length;
    this.#columns = Array.from({ length: count }, (_, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Step ${index + 1} of ${count}`);
      button.onclick = () => this.#choose(index);
      const canvases = [0, 1].map(() => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = client.image_size;
        return canvas;
      });
      button.append(...canvases, String(index + 1));
      return { button, canvases };
    });
    element.style.setProperty("--columns", columnsFor(count, 10));
    element.style.setProperty("--columns-on-phone", columnsFor(count, 8));
    element.replaceChildren(
      ...this.#columns.map(({ button }) => {
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
    this.restart();
  }

  /** Begin a new sampling: the steps of the one before stay visible until they are replaced. */
  restart() {
    this.#steps = [];
    for (const { button } of this.#columns) {
      button.setAttribute("aria-disabled", true); // but can keep the focus
      button.setAttribute("aria-pressed", false);
    }
  }

  clear() {
    this.restart();
    for (const canvas of this.#columns.flatMap(({ canvases }) => canvases)) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    }
  }

  /** Add the next step, and show it. */
  add(x_t, x_0) {
    const index = this.#steps.push({ x_t, x_0 }) - 1;
    const { button, canvases } = this.#columns[index];
    const size = this.#client.image_size;
    for (const [i, x] of [x_t, x_0].entries()) {
      const image = new ImageData(toPixels(this.#client, x), size, size);
      canvases[i].getContext("2d").putImageData(image, 0, 0);
    }
    button.setAttribute("aria-disabled", false);
    this.#choose(index);
  }

  #choose(index) {
    if (index >= this.#steps.length) return;
    for (const [i, { button }] of this.#columns.entries()) {
      button.setAttribute("aria-pressed", i === index);
    }
    this.#onShow(this.#steps[index].x_t, this.#steps[index].x_0);
  }
}
