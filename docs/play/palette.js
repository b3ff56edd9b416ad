// The palette: a button for each label, by color and shape.

import { icon, parts } from "./icons.js";

const FAR = 8; // pixels from where a press becomes a drag

/**
 * Fill the palette with buttons.
 * @param {HTMLElement} element
 * @param {string[]} labels
 * @param {import("./floor.js").Floor} floor
 * @param {{toggle: (label: string) => void, move: (label: string, position: number[]) => void}} actions
 * @returns {{show: (objects: Map<string, number[]>, full: boolean) => void, focus: (label: string) => void}}
 */
export function fillPalette(element, labels, floor, actions) {
  const columns = labels.every(parts) ? new Set(labels.map((label) => parts(label).color)).size : 4;
  element.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  const buttons = new Map(labels.map((label) => [label, create(label)]));
  element.replaceChildren(...buttons.values());
  return {
    show(objects, full) {
      for (const [label, button] of buttons) {
        button.setAttribute("aria-pressed", objects.has(label));
        button.disabled = full && !objects.has(label);
      }
    },
    focus: (label) => buttons.get(label).focus(),
  };

  function create(label) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = label;
    button.setAttribute("aria-label", label);
    button.append(icon(label) ?? label);
    button.onclick = () => actions.toggle(label);
    // Touch scrolls the page instead.
    button.onpointerdown = (event) => {
      if (event.pointerType !== "touch" && event.button === 0) dragFrom(event, label);
    };
    return button;
  }

  function dragFrom(down, label) {
    const stop = new AbortController();
    const { signal } = stop;
    addEventListener("pointerup", () => stop.abort(), { signal });
    addEventListener(
      "pointermove",
      (move) => {
        const distance = Math.hypot(move.clientX - down.clientX, move.clientY - down.clientY);
        if (distance < FAR || floor.at(move).some((value) => Math.abs(value) > 1)) return;
        stop.abort();
        floor.drag(move, label);
      },
      { signal },
    );
  }
}
