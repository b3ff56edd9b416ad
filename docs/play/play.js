// The page: choose objects, put them on the floor, and watch an image being sampled.

import { Denoiser } from "./denoiser.js";
import { Floor } from "./floor.js";
import { isolate } from "./isolation.js";
import { fillPalette } from "./palette.js";
import { normal, shuffled, uniform } from "./random.js";
import { floorBounds, samplePositions, snapped, toPixels, withFinalNoise } from "./sampling.js";
import { Strip } from "./strip.js";

const MOST_OBJECTS = 8;
const TRAINED_OBJECTS = 3;
const FIRST_SCENE = ["cyan cube", "red sphere", "green cylinder"];
const FIRST_LAYOUT = 2; // seed; easy to see
const LARGEST_SEED = 2 ** 32 - 1;
const NOISE = 0; // streams of random numbers
const LAYOUT = 1;
const HEADINGS = 2;
const FINAL_NOISE = 3;
const MIDDLE = 0.08; // how near the middle an object must be; 0.1 was too far in a test
const DELAY = 120; // ms without a further change until sampling begins

const $ = (id) => document.getElementById(id);
const objects = new Map(); // label → [x, y]
const denoiser = new Denoiser();
const next = uniform(Date.now() >>> 0, LAYOUT);
let client, backend, bounds, floor, palette, strip, timer;
let sampled = null; // the scene of the image that is shown or sampled; null after a draft
let following = false;

const ready = start().catch((error) => {
  failed(error);
  throw error;
});
ready.catch(() => {});

/** For other scripts, and the tests. */
window.iclevr = {
  ready,
  /**
   * Sample an image from given noise, apart from what the page shows.
   * @param {{noise: number[], finalNoise: number[], labels: string[], positions: number[][]}} given
   *   twice 3 * H * W standard normal numbers, channel by channel; [x, y] of each label's object
   * @returns {Promise<number[]>} x_0 in [-1, 1], 3 * H * W
   */
  async sample({ noise, finalNoise, labels, positions }) {
    await ready;
    const x_0 = await denoiser.sample(
      inputs(Float32Array.from(noise), labels.map((label, i) => [label, positions[i]])),
    );
    return x_0 && Array.from(withFinalNoise(client, x_0, Float32Array.from(finalNoise)));
  },
};

async function start() {
  $("stuck").remove();
  await isolate();
  const asked = new URLSearchParams(location.search).get("backend");
  const loaded = await denoiser.load(asked, (bytes, total) => {
    if (bytes < total) $("bar").value = bytes / total;
    else $("bar").removeAttribute("value"); // nobody knows how much is left
    $("status").textContent =
      bytes === total ? "Loading onnxruntime-web …" : `Loading the network, ${(bytes / 1e6).toFixed(1)} MB …`;
  });
  client = loaded.client;
  backend = loaded.backend === "webgpu" ? "WebGPU" : `wasm, ${loaded.threads} thread${loaded.threads > 1 ? "s" : ""}`;
  if (!client.positions) throw new Error("these weights take no positions; export others");
  bounds = floorBounds(client);
  for (const canvas of [$("x_0"), $("x_t")]) canvas.width = canvas.height = client.image_size;
  floor = new Floor($("floor"), 2 / client.image_size, { move, remove, release });
  palette = fillPalette($("palette"), client.labels, floor, { toggle, move });
  strip = new Strip($("strip"), client, show);
  describe();
  listen();
  $("controls").inert = false;
  const scene = FIRST_SCENE.filter((label) => client.labels.includes(label));
  place(scene.length ? scene : client.labels.slice(0, TRAINED_OBJECTS), uniform(FIRST_LAYOUT, LAYOUT));
}

function listen() {
  $("new-layout").onclick = () => place([...objects.keys()]);
  $("new-scene").onclick = () => {
    const labels = shuffled(client.labels, next);
    place(labels.slice(0, 1 + Math.floor(TRAINED_OBJECTS * next())));
  };
  $("new-noise").onclick = () => {
    $("seed").value = (seed() + 1) % (LARGEST_SEED + 1);
    changed(0);
  };
  $("clear").onclick = () => {
    place([]);
    palette.focus(client.labels[0]); // the button is disabled now
  };
  $("seed").oninput = () => changed();
  $("seed").onchange = () => ($("seed").value = seed());
  $("download").onclick = download;
}

function describe() {
  const steps = client.timesteps.length;
  const guided = client.guidance_scales.filter((scale) => scale !== 1);
  const scales = [...new Set(guided.map((scale) => Number(scale.toFixed(1))))].join(", ");
  $("settings").textContent =
    `${steps} steps${guided.length ? `, ${guided.length} of them with guidance ${scales}` : ""}, as stored with the ` +
    "weights. Above the noisy image, below the estimate of the image. Choose a step to see it large.";
  $("limit").textContent = `Up to ${MOST_OBJECTS}; the training images show 1 to ${TRAINED_OBJECTS}.`;
}

// Changes of the scene

function place(labels, random = next) {
  const positions = samplePositions(client, labels.length, random);
  const order = shuffled(labels, random);
  objects.clear();
  for (const label of labels) objects.set(label, positions[order.indexOf(label)]);
  changed(0);
}

function toggle(label) {
  if (objects.has(label)) return remove(label);
  const [position] = samplePositions(client, 1, next, [...objects.values()]);
  move(label, position);
}

function move(label, position) {
  if (!objects.has(label) && objects.size >= MOST_OBJECTS) return;
  const at = snapped(client, onFloor(position));
  const before = objects.get(label);
  floor.selected = label;
  if (before && before[0] === at[0] && before[1] === at[1]) return floor.show(objects);
  objects.set(label, at);
  changed();
}

/** Return the nearest position that an object of the training images can have. */
function onFloor([x, y]) {
  const [left, top, right, bottom] = bounds;
  return [Math.min(right, Math.max(left, x)), Math.min(bottom, Math.max(top, y))];
}

function isInMiddle([x, y]) {
  const [middleX, middleY] = client.positions.first;
  return Math.hypot(x - middleX, y - middleY) < MIDDLE;
}

function remove(label) {
  objects.delete(label);
  changed();
  if (!objects.size) palette.focus(label); // its handle had the focus
}

function changed(delay = DELAY) {
  floor.show(objects);
  palette.show(objects, objects.size >= MOST_OBJECTS);
  $("empty").hidden = objects.size > 0;
  $("empty").textContent = "Choose an object to begin.";
  $("download").disabled = $("new-layout").disabled = $("clear").disabled = objects.size === 0;
  $("middle").hidden = !objects.size || [...objects.values()].some(isInMiddle);
  $("images").ariaBusy = true;
  clearTimeout(timer);
  if (floor.dragging) return follow();
  denoiser.cancel();
  timer = setTimeout(resample, delay);
}

/** After a drag: the image of the last draft. */
function release() {
  if (scene() !== sampled) changed(0);
}

function scene() {
  return JSON.stringify([...objects]);
}

// Sampling

/** While an object is dragged, sample drafts, each of the scene when it begins. */
async function follow() {
  if (following) return;
  following = true;
  try {
    for (let drafted = null; floor.dragging && drafted !== scene(); ) {
      [drafted, sampled] = [scene(), null];
      const given = { ...inputs(noise(), [...objects]), draft: true };
      const x_0 = await denoiser.sample(given, ({ step, count, x_t }) => {
        draw($("x_t"), x_t);
        progress((step + 1) / count, `A draft in ${count} steps; the image follows when you let go`);
      });
      if (!x_0) break; // outdated
      draw($("x_0"), x_0);
    }
  } catch (error) {
    failed(error);
  } finally {
    following = false;
  }
}

async function resample() {
  if (!objects.size) return blank();
  sampled = scene();
  const start = performance.now();
  strip.restart();
  progress(0, "Sampling …");
  try {
    const final = noise(FINAL_NOISE);
    const x_0 = await denoiser.sample(inputs(noise(), [...objects]), ({ step, count, x_t, x_0 }) => {
      strip.add(x_t, step + 1 < count ? x_0 : withFinalNoise(client, x_0, final));
      progress((step + 1) / client.timesteps.length, `Step ${step + 1} of ${client.timesteps.length}`);
    });
    if (!x_0) return; // outdated
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    progress(1, `${client.timesteps.length} steps in ${seconds} s (${backend})`);
    $("announcement").textContent = `New image: ${[...objects.keys()].join(", ")}.`;
    $("images").ariaBusy = false;
  } catch (error) {
    failed(error);
  }
}

function noise(stream = NOISE) {
  return normal(3 * client.image_size ** 2, uniform(seed(), stream));
}

function inputs(noise, placed) {
  const labels = new Float32Array(client.labels.length);
  const turning = client.positions.turning;
  const width = turning ? 4 : 2;
  const positions = new Float32Array(width * client.labels.length);
  const angles = uniform(seed(), HEADINGS);
  const headings = client.labels.map(() => 2 * Math.PI * angles()); // stay while objects move
  for (const [label, position] of placed) {
    const index = client.labels.indexOf(label);
    if (index < 0) throw new Error(`unknown label: ${label}`);
    labels[index] = 1;
    positions.set(position, width * index);
    if (position.length < width && turning.includes(index)) {
      positions.set([Math.cos(headings[index]), Math.sin(headings[index])], width * index + 2);
    }
  }
  return { noise, labels, positions };
}

function seed() {
  const value = Math.floor(Number($("seed").value));
  return Math.min(LARGEST_SEED, Math.max(0, value || 0));
}

// Output

function show(x_t, x_0) {
  draw($("x_t"), x_t);
  draw($("x_0"), x_0);
  $("x_0").setAttribute("aria-label", `The image: ${[...objects.keys()].join(", ")}`);
}

function draw(canvas, x) {
  const size = client.image_size;
  canvas.getContext("2d").putImageData(new ImageData(toPixels(client, x), size, size), 0, 0);
}

function blank() {
  strip.clear();
  for (const canvas of [$("x_0"), $("x_t")]) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  progress(0, "No objects.");
  $("announcement").textContent = "No objects.";
  $("images").ariaBusy = false;
}

function progress(value, text) {
  $("bar").value = value;
  $("status").className = "";
  $("status").textContent = text;
}

function failed(error) {
  progress(0, `This did not work: ${error.message}`);
  $("empty").hidden = true;
  $("status").className = "failed";
  $("announcement").textContent = $("status").textContent;
  $("images").ariaBusy = false;
}

function download() {
  $("x_0").toBlob((blob) => {
    const link = document.createElement("a");
    const names = [...objects.keys()].map((label) => label.replaceAll(" ", "-"));
    link.download = `${names.join("_")}_seed${seed()}.png`;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
