"use strict";
// The floor and the palette. gradio runs this once, with `element`, `props`, `trigger` and `watch`.
// `props.value` is the scene that the server reads: {objects: [{label, x, y}, …]}.
const { bounds, icons, labels, middle, most, first } = props;
const surface = element.querySelector(".surface");
const image = surface.querySelector("img");
const palette = element.querySelector(".palette");
const hint = element.querySelector(".hint");
const SHAPES = {
  cube: "M4 9 12 5l8 4v8l-8 4-8-4zM20 9l-8 4-8-4M12 13v8",
  sphere: "M12 4a8 8 0 1 1 0 16 8 8 0 0 1 0-16",
  cylinder: "M5 7a7 3 0 0 1 14 0v10a7 3 0 0 1-14 0zM19 7a7 3 0 0 1-14 0",
};
const STEP = 0.0625; // of an arrow key: two pixels of the image
const NEAR = 0.08; // how near the middle an object must be; 0.1 was too far in a test
let objects = read(props.value);
let selected = objects[objects.length - 1]?.label;
let drag = null;
let timer = null;

function read(value) {
  return (value?.objects ?? []).map(({ label, x, y }) => ({ label, x, y }));
}

function icon(label) {
  const known = icons[label];
  if (known === undefined) return null;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", SHAPES[known.shape]);
  path.setAttribute("fill", known.color);
  svg.append(path);
  return svg;
}

function send(delay = 0) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    props.value = { objects: objects.map((each) => ({ ...each })) };
    trigger("input");
  }, delay);
}

const find = (label) => objects.find((each) => each.label === label);
const clamp = (value, least, largest) => Math.min(largest, Math.max(least, value));

function place(object, x, y) {
  const [left, top, right, bottom] = bounds;
  object.x = Number(clamp(x, left, right).toFixed(4));
  object.y = Number(clamp(y, top, bottom).toFixed(4));
}

function point(event) {
  const box = surface.getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * 2 - 1,
    ((event.clientY - box.top) / box.height) * 2 - 1,
  ];
}

function isOver(event) {
  return point(event).every((value) => Math.abs(value) <= 1);
}

// The freest of some random spots, on the circle in which nearly all training objects are.
function freeSpot() {
  const [left, top, right, bottom] = bounds;
  let best = null;
  for (let trial = 0; trial < 40; trial++) {
    const angle = Math.random() * 2 * Math.PI;
    const radius = 0.75 * Math.sqrt(Math.random());
    const x = (left + right) / 2 + (radius * Math.cos(angle) * (right - left)) / 2;
    const y = (top + bottom) / 2 + (radius * Math.sin(angle) * (bottom - top)) / 2;
    const room = Math.min(2, ...objects.map((each) => Math.hypot(each.x - x, each.y - y)));
    if (best === null || room > best.room) best = { x, y, room };
  }
  return best;
}

function add(label) {
  if (objects.length >= most) return;
  const object = { label, x: null, y: null };
  const spot = bounds && freeSpot();
  if (spot) place(object, spot.x, spot.y);
  objects.push(object);
  selected = label;
  draw();
  send();
}

function remove(label) {
  if (objects.length === 1) return say("An image needs at least one object.");
  objects = objects.filter((each) => each.label !== label);
  if (selected === label) selected = objects[objects.length - 1].label;
  draw();
  send();
}

function where({ x, y }) {
  const percent = (value) => Math.round((value + 1) * 50);
  return `${percent(x)} % from the left, ${percent(y)} % from the top`;
}

function handle(label) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "handle";
  button.dataset.label = label;
  const name = document.createElement("span");
  name.textContent = label;
  const ring = document.createElement("i");
  const drawn = icon(label);
  if (drawn) ring.append(drawn);
  button.append(ring, name);
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    button.focus({ preventScroll: true });
    button.setPointerCapture(event.pointerId);
    selected = label;
    drag = { label, moved: false, x: event.clientX, y: event.clientY };
    draw();
  });
  button.addEventListener("pointermove", (event) => {
    if (drag?.label !== label) return;
    drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 3;
    if (!drag.moved) return;
    place(find(label), ...point(event));
    draw();
  });
  const end = () => {
    if (drag?.label !== label) return;
    const { moved } = drag;
    drag = null;
    draw();
    if (moved) send();
  };
  button.addEventListener("pointerup", end);
  button.addEventListener("pointercancel", end);
  button.addEventListener("click", (event) => event.stopPropagation());
  button.addEventListener("focus", () => {
    if (selected === label) return;
    selected = label;
    draw();
  });
  button.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      const object = find(label);
      place(object, object.x + x * STEP, object.y + y * STEP);
      draw();
      send(400);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      remove(label);
      surface.querySelector(".selected")?.focus();
    } else return;
    event.preventDefault();
  });
  return button;
}

// Handles are kept while their object is there, so that a drag and the focus survive.
function draw() {
  const handles = new Map(
    [...surface.querySelectorAll(".handle")].map((button) => [button.dataset.label, button]),
  );
  for (const object of bounds ? objects : []) {
    let button = handles.get(object.label);
    handles.delete(object.label);
    if (button === undefined) {
      button = handle(object.label);
      surface.append(button);
    }
    button.style.left = `${(object.x + 1) * 50}%`;
    button.style.setProperty("--x", button.style.left); // keeps the name in the image
    button.style.top = `${(object.y + 1) * 50}%`;
    button.classList.toggle("selected", object.label === selected);
    button.classList.toggle("dragged", drag?.label === object.label && drag.moved);
    button.setAttribute("aria-label", `${object.label}, ${where(object)}. Arrow keys move it.`);
  }
  for (const button of handles.values()) button.remove();
  for (const button of palette.children) {
    const shown = find(button.dataset.label) !== undefined;
    button.setAttribute("aria-pressed", shown);
    button.disabled = !shown && objects.length >= most;
  }
  say(advice());
}

function say(text) {
  if (hint.textContent !== text) hint.textContent = text; // it is read out
}

function advice() {
  if (!bounds) return "Choose the objects. These weights choose the positions themselves.";
  if (!objects.some(({ x, y }) => Math.hypot(x - middle[0], y - middle[1]) < NEAR)) {
    return "No object is in the middle. Every training image has one there, so the network may add others.";
  }
  if (objects.length >= most) return `${most} objects at most. Click one below to take it away.`;
  return "Drag an object: the image follows. Below, click to add or take away.";
}

// A click adds an object or takes it away; the mouse also drags one onto the floor.
function choice(label) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.label = label;
  button.title = label;
  button.setAttribute("aria-label", label);
  button.append(icon(label) ?? label);
  let start = null;
  let moved = false;
  button.addEventListener("pointerdown", (event) => {
    moved = false;
    if (!bounds || event.button !== 0 || event.pointerType === "touch" || find(label)) return;
    start = event;
    button.setPointerCapture(event.pointerId);
  });
  button.addEventListener("pointermove", (event) => {
    if (start === null) return;
    moved ||= Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > 6;
    if (!moved || !isOver(event)) return;
    if (!find(label)) objects.push({ label, x: 0, y: 0 });
    selected = label;
    place(find(label), ...point(event));
    draw();
  });
  button.addEventListener("pointerup", () => {
    if (start !== null && moved && find(label)) send();
    start = null;
  });
  button.addEventListener("click", () => {
    if (moved) return; // the end of a drag
    if (find(label)) remove(label);
    else add(label);
  });
  return button;
}

for (const label of labels) palette.append(choice(label));
palette.classList.toggle("icons", labels.every((label) => label in icons));

surface.addEventListener("click", (event) => {
  const object = find(selected);
  if (!bounds || object === undefined) return;
  place(object, ...point(event));
  draw();
  send();
});

watch("value", () => {
  if (drag) return;
  objects = read(props.value);
  if (!find(selected)) selected = objects[objects.length - 1]?.label;
  draw();
});

function show({ source, text }) {
  image.src = source;
  image.alt = text;
  element.querySelector(".what").textContent = text;
}
document.addEventListener("estimate", (event) => show(event.detail));
show(first);
draw();
