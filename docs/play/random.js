// A seeded generator of random numbers, the same in every browser: xoshiro128** 1.1
// (Blackman & Vigna 2021, arXiv 1805.01407), whose state is filled by splitmix32.

/**
 * Create a generator of uniform numbers in [0, 1), multiples of 2^-32.
 * @param {number} seed 0 to 2^32 - 1
 * @param {number} stream a small integer; streams of one seed are independent
 * @returns {() => number}
 */
export function uniform(seed, stream = 0) {
  let counter = (seed ^ Math.imul(stream, 0x85ebca6b)) >>> 0;
  const state = Uint32Array.from({ length: 4 }, () => {
    counter = (counter + 0x9e3779b9) >>> 0;
    let z = counter;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  });
  return () => {
    const result = Math.imul(rotated(Math.imul(state[1], 5), 7), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotated(state[3], 11);
    return result / 2 ** 32;
  };
}

/**
 * Sample standard normal numbers by the Box-Muller transform, in pairs (cosine, sine).
 * @param {number} count an even number
 * @param {() => number} next as `uniform` returns it
 * @returns {Float32Array}
 */
export function normal(count, next) {
  const result = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    const angle = 2 * Math.PI * next();
    result[i] = radius * Math.cos(angle);
    result[i + 1] = radius * Math.sin(angle);
  }
  return result;
}

/** Return `items` in random order (Fisher-Yates). */
export function shuffled(items, next) {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

function rotated(value, bits) {
  return (value << bits) | (value >>> (32 - bits));
}
