// Speak to the host: one place for addresses, tokens and errors.

/** What the host answered that was no success: `code`, a message in words, `status`, `details`. */
export class HostError extends Error {
  constructor(status, error) {
    super(error?.message || `the host answered ${status}`);
    this.status = status;
    this.code = error?.code || `HTTP_${status}`;
    this.details = error?.details || {};
  }
}

const TOKEN = "semibot-token";
const SIGN_IN_ATTEMPTS = 5;
let askForToken = async () => null;

/** Say how to ask the user for an access token. */
export function onSignIn(ask) {
  askForToken = ask;
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await fetch(path, {
      method,
      signal,
      cache: "no-store",
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(token ? { Authorization: `Bearer ${token}` } : {}),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (response.status !== 401 || attempt >= SIGN_IN_ATTEMPTS) return response;
    // Several requests are refused at once, and one answer of the user is for all of them.
    if (sessionStorage.getItem(TOKEN) !== token) continue;
    const given = await askForToken(Boolean(token));
    if (!given) return response;
    sessionStorage.setItem(TOKEN, given);
  }
}

async function data(response) {
  const answer = await response.json().catch(() => null);
  if (!response.ok || !answer?.success) throw new HostError(response.status, answer?.error);
  return answer.data;
}

const session = (id) => `/api/v1/sessions/${encodeURIComponent(id)}`;
const chat = (id) => `/api/v1/chat/sessions/${encodeURIComponent(id)}`;
const page = (cursor) => `?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;

export const api = {
  sessions: async (cursor) => data(await send("GET", `/api/v1/sessions${page(cursor)}`)),
  session: async (id) => data(await send("GET", session(id))),
  messages: async (id, cursor, signal) =>
    data(await send("GET", `${session(id)}/messages${page(cursor)}`, { signal })),
  remove: async (id) => data(await send("DELETE", session(id))),
  cancel: async (id, runId) => data(await send("POST", `${chat(id)}/cancel`, { body: { run_id: runId } })),

  /** How the user's execution plane stands. */
  plane: async () => data(await send("GET", "/api/v1/vm/status")),

  /** Open the stream of a session, after `lastId`. */
  stream: (id, lastId, signal) =>
    send("GET", `${session(id)}/stream`, { signal, headers: { "Last-Event-ID": lastId } }),

  /**
   * Send a message, and return {sessionId, runId} once it is stored. The answer is read from
   * the session's stream, like by every other tab, so this one is let go; the run goes on.
   */
  say: async (id, message, key) => {
    const letGo = new AbortController();
    const response = await send("POST", id ? chat(id) : "/api/v1/chat/start", {
      body: { message, on_disconnect: "continue" },
      headers: { "Idempotency-Key": key },
      signal: letGo.signal,
    });
    if (!response.ok) await data(response);
    letGo.abort();
    return { sessionId: response.headers.get("X-Session-ID"), runId: response.headers.get("X-Run-ID") };
  },
};
