"use strict";
// The estimate of x_0 is shown on the floor, by floor.js.
watch("value", () => {
  const image = element.querySelector(".estimate");
  if (image === null) return;
  const detail = { source: image.src, text: image.alt };
  document.dispatchEvent(new CustomEvent("estimate", { detail }));
});
