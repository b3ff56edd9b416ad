"use strict";
// gradio's sliders send a number that was typed before they clamp it, and send nothing at keys.
{
  const isNumber = ({ type, dataset }) => type === "number" && dataset.testid === "number-input";

  const clamp = (input) => {
    const value = Math.min(input.max, Math.max(input.min, input.value));
    if (input.value === String(value)) return;
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const send = (input) => input.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));

  // Before the slider's own handler, which sends the number.
  addEventListener("blur", ({ target }) => target.dataset && isNumber(target) && clamp(target), true);
  addEventListener("keyup", ({ target, key }) => {
    if (target.type === "range" && key !== "Tab") send(target);
    if (isNumber(target) && key === "Enter") {
      clamp(target);
      send(target);
    }
  });
}
