// Adds the two headers without which browsers give a page no threads; most static servers do not
// send them. Answers only for the page and its workers, and removes itself where another page is
// served at its address by now.

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

oninstall = () => skipWaiting();
onactivate = (event) => event.waitUntil(clients.claim());
onfetch = (event) => {
  const { destination, mode } = event.request;
  if (mode === "navigate" || destination === "worker") event.respondWith(answer(event.request));
};

async function answer(request) {
  const response = await fetch(request);
  const content = await response.clone().text();
  if (request.mode === "navigate" && !content.includes('src="play.js"')) {
    await registration.unregister();
    return response;
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(content, { status, statusText, headers });
}
