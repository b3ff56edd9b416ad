// A worker that samples, so that the page stays responsive. A new request cancels the current one.

import { draftOf, sample } from "./sampling.js";

const ORT = new URL("ort/", import.meta.url).href;
let ort;
let session;
let client;
let latest = 0;

onmessage = async ({ data }) => {
  try {
    if (data.type === "load") await load(data);
    else if (data.type === "cancel") latest = 0;
    else await answer(data);
  } catch (error) {
    postMessage({ type: "error", id: data.id, message: String(error?.message ?? error) });
  }
};

async function load({ backend }) {
  const [response, graph] = await Promise.all([fetch("model.json"), download("model.onnx")]);
  if (!response.ok) throw new Error(`model.json: ${response.status}`);
  client = await response.json();
  let adapter = backend === "wasm" ? null : await navigator.gpu?.requestAdapter();
  if (adapter?.info?.isFallbackAdapter) adapter = null; // software, slower than wasm
  ort = await import(`${ORT}ort.${adapter ? "webgpu" : "wasm"}.min.mjs`);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = ORT;
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(4, navigator.hardwareConcurrency)
    : 1;
  const used = adapter && (await runsOn("webgpu", graph)) ? "webgpu" : "wasm";
  if (used === "wasm") session = await createSession("wasm", graph);
  postMessage({ type: "ready", client, backend: used, threads: ort.env.wasm.numThreads });
}

/** Create a session on the GPU; return whether it can run the graph. */
async function runsOn(provider, graph) {
  try {
    session = await createSession(provider, graph);
    const count = client.labels.length;
    const noise = new Float32Array(3 * client.image_size ** 2);
    const width = client.positions?.turning ? 4 : 2;
    const estimate = denoiser(new Float32Array(count), new Float32Array(width * count));
    // The first run compiles the shaders, of every branch.
    for (const timestep of client.timesteps) await estimate(noise, timestep);
    return true;
  } catch {
    return false;
  }
}

function createSession(provider, graph) {
  return ort.InferenceSession.create(graph, {
    executionProviders: [provider],
    // On the CPU, images take as long without optimizations, which take seconds themselves.
    graphOptimizationLevel: provider === "wasm" ? "disabled" : "all",
    logSeverityLevel: 3, // errors
  });
}

async function answer({ id, noise, labels, positions, draft = false }) {
  latest = id;
  const steps = draft ? draftOf(client) : client;
  const x_0 = await sample(steps, denoiser(labels, positions), noise, async (step) => {
    postMessage({ type: "step", id, count: steps.timesteps.length, ...step });
    await new Promise((resolve) => setTimeout(resolve)); // lets a newer request in
    return latest === id;
  });
  postMessage({ type: "done", id, x_0 });
}

function denoiser(labels, positions) {
  const size = client.image_size;
  const given = { labels: new ort.Tensor("float32", labels, [1, labels.length]) };
  if (client.positions) {
    given.positions = new ort.Tensor("float32", positions, [1, labels.length, positions.length / labels.length]);
  }
  return async (x_t, timestep) => {
    const { x0 } = await session.run({
      ...given,
      x_t: new ort.Tensor("float32", x_t, [1, 3, size, size]),
      timestep: new ort.Tensor("int64", [BigInt(timestep)], [1]),
    });
    return x0.data;
  };
}

async function download(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    postMessage({ type: "loading", loaded, total });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
