// Isolates the page, so that the network can run on several threads.

const TRIED = "isolation-tried";

/**
 * Reload the page once through the service worker, unless the server isolates it. Where that is not
 * possible (an address without https, a private window), the page stays as it is, with one thread.
 */
export async function isolate() {
  try {
    if (crossOriginIsolated || sessionStorage.getItem(TRIED)) {
      return sessionStorage.removeItem(TRIED);
    }
    await navigator.serviceWorker.register("service-worker.js");
    await navigator.serviceWorker.ready;
    sessionStorage.setItem(TRIED, "yes");
  } catch {
    return;
  }
  location.reload();
  await new Promise(() => {}); // the end of this page
}
