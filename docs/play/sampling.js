// Sampling from an exported denoiser. `client` is the content of model.json (docs/ecosystem.md).

/**
 * Sample one image with DPM-Solver++ (arXiv 2211.01095, algorithm 2; algorithm 1, which is DDIM,
 * for `client.order` 1).
 * @param {object} client
 * @param {(x_t: Float32Array, timestep: number) => Promise<Float32Array>} estimate the guided
 *   estimate of x_0
 * @param {Float32Array} noise standard normal, 3 * H * W
 * @param {(step: {step: number, x_t: Float32Array, x_0: Float32Array}) => Promise<boolean>} onStep
 *   called after each estimate; sampling ends if it resolves to false
 * @returns {Promise<Float32Array | null>} x_0 in [-1, 1]; null if `onStep` ended the sampling
 */
export async function sample(client, estimate, noise, onStep) {
  const alphas = [...client.alphas, 1];
  const sigmas = [...client.sigmas, 0];
  let x_t = noise;
  let before = null;
  let ratio = null;
  for (const [i, timestep] of client.timesteps.entries()) {
    const x_0 = await estimate(x_t, timestep);
    if (!(await onStep({ step: i, x_t, x_0 }))) return null;
    if (sigmas[i + 1] === 0) return x_0;
    // A step in λ = log(α / σ).
    const step = Math.log(alphas[i + 1] / sigmas[i + 1]) - Math.log(alphas[i] / sigmas[i]);
    const second = before !== null && client.order === 2 ? step / ratio / 2 : 0;
    const kept = sigmas[i + 1] / sigmas[i];
    const added = -alphas[i + 1] * Math.expm1(-step);
    x_t = x_t.map((value, k) => {
      const data = second ? x_0[k] + second * (x_0[k] - before[k]) : x_0[k];
      return kept * value + added * data;
    });
    [before, ratio] = [x_0, step];
  }
  throw new Error("model.json has no timesteps");
}

/**
 * Return x_0 with the noise that the last estimate leaves out, if these weights have such noise.
 * @param {object} client
 * @param {Float32Array} x_0 3 * H * W
 * @param {Float32Array} noise standard normal, 3 * H * W
 * @returns {Float32Array}
 */
export function withFinalNoise(client, x_0, noise) {
  const factor = client.final_noise;
  if (!factor) return x_0;
  const size = client.image_size ** 2;
  return x_0.map((value, i) => {
    const [channel, k] = [Math.floor(i / size), i % size];
    return value + factor[channel].reduce((sum, weight, j) => sum + weight * noise[j * size + k], 0);
  });
}

/** Return a client that samples in a third of the steps: not as well, but the objects are there. */
export function draftOf(client) {
  const chosen = (values) => values.filter((_, i) => i % 3 === 1 || values.length < 3);
  const [timesteps, alphas, sigmas] = [client.timesteps, client.alphas, client.sigmas].map(chosen);
  return { ...client, timesteps, alphas, sigmas };
}

/**
 * Sample positions by the layout `clear`: the first object at `first`, each other one at the first
 * of random candidates that is clear of those before, or else at the farthest. All are at pixel
 * centers; the pipeline also moves them within the pixel if the network takes headings.
 * @param {object} client
 * @param {number} count
 * @param {() => number} next uniform random numbers
 * @param {number[][]} taken positions of objects that are already there
 * @returns {number[][]} [x, y], x right and y down, in [-1, 1]
 */
export function samplePositions(client, count, next, taken = []) {
  const { first, clearance, candidates } = client.positions;
  const cells = cumulative(client.positions.density.flat());
  const result = [...taken];
  while (result.length < taken.length + count) {
    result.push(result.length ? clearPosition() : first);
  }
  return result.slice(taken.length);

  function clearPosition() {
    let [best, farthest] = [null, -1];
    for (let i = 0; i < candidates && farthest < clearance; i++) {
      const [x, y] = randomPosition(client, cells, next);
      const distance = Math.min(...result.map(([u, v]) => Math.hypot(x - u, y - v)));
      if (distance > farthest) [best, farthest] = [[x, y], distance];
    }
    return best;
  }
}

/** Return [left, top, right, bottom] of the positions in the training images, in [-1, 1]. */
export function floorBounds(client) {
  const { density } = client.positions;
  const rows = density.map((row) => Math.max(...row));
  const columns = density[0].map((_, k) => Math.max(...density.map((row) => row[k])));
  const [left, right] = edges(columns);
  const [top, bottom] = edges(rows);
  return [left, top, right, bottom];
}

/**
 * Return the nearest pixel center, or the first object's position if that is nearer. For a network
 * that takes headings: the position itself, unless it is within half a pixel of the first object's.
 */
export function snapped(client, [x, y]) {
  const { first, turning } = client.positions;
  const distance = Math.hypot(x - first[0], y - first[1]);
  if (turning) return distance < 1 / client.image_size ? first : [x, y];
  const pixel = [centerOf(client, (x + 1) / 2), centerOf(client, (y + 1) / 2)];
  return distance < Math.hypot(x - pixel[0], y - pixel[1]) ? first : pixel;
}

/** Return RGBA pixels, H * W * 4, of x_0 or x_t. */
export function toPixels(client, x) {
  const size = client.image_size ** 2;
  const pixels = new Uint8ClampedArray(4 * size).fill(255);
  for (let channel = 0; channel < 3; channel++) {
    for (let k = 0; k < size; k++) {
      pixels[4 * k + channel] = client.pixel_mean + client.pixel_scale * x[channel * size + k];
    }
  }
  return pixels;
}

/** Sample a position: a cell by its mass, then a point in it, at the center of its pixel. */
function randomPosition(client, cells, next) {
  const threshold = next() * cells.at(-1);
  const cell = cells.findIndex((sum) => sum > threshold);
  const side = client.positions.density.length;
  return [
    centerOf(client, ((cell % side) + next()) / side),
    centerOf(client, (Math.floor(cell / side) + next()) / side),
  ];
}

/** Return where the first positive value begins and the last one ends, in [-1, 1]. */
function edges(values) {
  const isPositive = (value) => value > 0;
  const ends = [values.findIndex(isPositive), values.findLastIndex(isPositive) + 1];
  return ends.map((end) => (2 * end) / values.length - 1);
}

function cumulative(values) {
  let sum = 0;
  return values.map((value) => (sum += value));
}

function centerOf(client, fraction) {
  const size = client.image_size;
  const pixel = Math.min(size - 1, Math.max(0, Math.floor(fraction * size)));
  return ((pixel + 0.5) / size) * 2 - 1;
}
