// Fetches the figures. The admin's key lives in this tab's session storage and goes nowhere but here.

const KEY = "gkt.key";
const TIMEOUT_MS = 30_000;

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is not figures. `locked`: a key is needed, or another one. */
export class FetchError extends Error {
  constructor(message, { locked = false } = {}) {
    super(message);
    this.locked = locked;
  }
}

export async function fetchFigures(query, signal) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  const late = AbortSignal.timeout(TIMEOUT_MS);
  let reply;
  try {
    // no credentials: the browser neither sends nor asks for passwords of its own
    reply = await fetch(`dashboard/figures?${new URLSearchParams(query)}`, {
      headers, credentials: "omit", cache: "no-store", signal: AbortSignal.any([signal, late]),
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new FetchError(late.aborted ? `the gateway did not answer within ${TIMEOUT_MS / 1000} s` : "the gateway cannot be reached");
  }
  const body = await reply.json().catch(() => null);
  if (reply.ok && body) return body;
  const message = body?.error?.message ?? `the gateway answered with status ${reply.status}`;
  throw new FetchError(message, { locked: reply.status === 401 || body?.error?.code === "admin_required" });
}
