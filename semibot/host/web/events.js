// Read an event stream with fetch, which, unlike EventSource, can send headers.

/** One message of a stream: {id, event, data}. Follows the event stream format of WHATWG HTML. */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let id = "", event = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      // A CR at the very end may be the first half of CRLF.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { id, event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
          continue;
        }
        if (line.startsWith(":")) continue;
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "id") id = text;
        else if (field === "event") event = text;
        else if (field === "data") data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Follow a session for ever: show what is stored, hand out what comes after it, and connect
 * again from the last event whenever the connection ends. Ends when `signal` is aborted, and
 * when the session is gone or nobody signs in, which `onLink` is told.
 *
 * `begin(signal)` shows what is stored and returns the event id that this covers;
 * `open(lastId, signal)` opens the stream after an id.
 */
export async function follow({ begin, open, signal, onEvent, onLink }) {
  let lastId = null;
  let failures = 0;
  while (!signal.aborted) {
    onLink(failures ? "again" : "connecting");
    try {
      lastId ??= await begin(signal);
      const response = await open(lastId, signal);
      if (response.status === 204 || response.status === 404) return onLink("gone");
      if (response.status === 401) return onLink("refused");
      if (response.status === 400) lastId = null; // an id that this host cannot know: begin anew
      if (!response.ok) throw new Error(`the host answered ${response.status}`);
      onLink("up");
      for await (const message of readEvents(response)) {
        failures = 0;
        // First, so that an event which we cannot show is not asked for again and again.
        if (message.id) lastId = message.id;
        onEvent(JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return undefined;
      if (error.status === 404) return onLink("gone");
      if (error.status === 401) return onLink("refused");
    }
    failures += 1;
    onLink("down");
    await pause(Math.min(8, 0.25 * 2 ** Math.min(failures, 6)) * (0.5 + Math.random() / 2), signal);
  }
  return undefined;
}

/** Wait, but not while the user looks at a page that could be connected by now. */
function pause(seconds, signal) {
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = () => {
      clearTimeout(timer);
      done.abort();
      resolve();
    };
    const timer = setTimeout(end, seconds * 1000);
    addEventListener("online", end, { signal: done.signal });
    addEventListener("focus", end, { signal: done.signal });
    signal.addEventListener("abort", end, { signal: done.signal });
  });
}
