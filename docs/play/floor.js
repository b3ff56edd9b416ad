// The floor over the image: a handle for each object, moved by pointer or keys.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAST = 4;

export class Floor {
  selected = null;
  dragging = false;
  #element;
  #step;
  #actions;
  #handles = new Map(); // label → button
  #positions = new Map();

  /**
   * @param {HTMLElement} element
   * @param {number} step how far an arrow key moves an object
   * @param {{move: (label: string, position: number[]) => void, remove: (label: string) => void,
   *   release: () => void}} actions `release` is called after a drag
   */
  constructor(element, step, actions) {
    [this.#element, this.#step, this.#actions] = [element, step, actions];
    element.addEventListener("click", (event) => {
      if (event.target.closest(".handle") || !this.#positions.has(this.selected)) return;
      actions.move(this.selected, this.at(event));
      this.#handles.get(this.selected).focus({ focusVisible: false, preventScroll: true });
    });
  }

  /** Return the position of a pointer, in [-1, 1] on the floor. */
  at(event) {
    const box = this.#element.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * 2 - 1,
      ((event.clientY - box.top) / box.height) * 2 - 1,
    ];
  }

  /**
   * Let an object follow the pointer until it is released.
   * @param {PointerEvent} event
   * @param {string} label
   * @param {HTMLElement | null} handle the handle by which it is held, if it is
   */
  drag(event, label, handle = null) {
    (handle ?? this.#element).setPointerCapture(event.pointerId); // also outside the window
    const [x, y] = this.at(event);
    const from = handle ? this.#positions.get(label) : [x, y];
    const offset = [from[0] - x, from[1] - y];
    const follow = (move) => {
      const [x, y] = this.at(move);
      this.#actions.move(label, [x + offset[0], y + offset[1]]);
    };
    const stop = new AbortController();
    const { signal } = stop;
    addEventListener("pointermove", (move) => move.pointerId === event.pointerId && follow(move), { signal });
    for (const end of ["pointerup", "pointercancel"]) {
      const finish = (last) => {
        if (last.pointerId !== event.pointerId) return;
        stop.abort();
        this.dragging = false;
        this.#actions.release();
      };
      addEventListener(end, finish, { signal });
    }
    this.dragging = true;
    follow(event);
  }

  /** Show objects, a map from labels to positions. */
  show(objects) {
    this.#positions = new Map(objects);
    if (!objects.has(this.selected)) this.selected = [...objects.keys()].at(-1) ?? null;
    for (const [label, handle] of this.#handles) {
      if (objects.has(label)) continue;
      if (handle === document.activeElement) this.#handles.get(this.selected)?.focus();
      handle.remove();
      this.#handles.delete(label);
    }
    for (const [label, [x, y]] of objects) {
      const handle = this.#handles.get(label) ?? this.#create(label);
      handle.style.left = `${(x + 1) * 50}%`;
      handle.style.setProperty("--x", handle.style.left); // keeps the name in the image
      handle.style.top = `${(y + 1) * 50}%`;
      handle.classList.toggle("selected", label === this.selected);
      handle.setAttribute("aria-label", `${label}, x ${x.toFixed(2)}, y ${y.toFixed(2)}`);
    }
  }

  #create(label) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.className = "handle";
    handle.dataset.label = label;
    const name = document.createElement("span");
    name.textContent = label;
    handle.append(name);
    handle.addEventListener("focus", () => {
      this.selected = label;
      this.show(this.#positions);
    });
    handle.addEventListener("pointerdown", (event) => {
      if (event.button === 0) this.drag(event, label, handle);
    });
    handle.addEventListener("keydown", (event) => this.#key(event, label));
    this.#handles.set(label, handle);
    this.#element.append(handle);
    return handle;
  }

  #key(event, label) {
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = this.#step * (event.shiftKey ? FAST : 1);
      const [x, y] = this.#positions.get(label);
      this.#actions.move(label, [x + step * arrow[0], y + step * arrow[1]]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.#actions.remove(label);
    } else {
      return;
    }
    event.preventDefault();
  }
}
