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
 * Follow a session for ever: connect, hand out its events, and connect again from the last
 * one whenever the connection ends. Stops when `signal` is aborted or the session is gone.
 */
export async function follow({ open, signal, onEvent, onLink }) {
  let lastId = null;
  let failures = 0;
  while (!signal.aborted) {
    let problem = "the connection ended";
    try {
      onLink("connecting");
      const response = await open(lastId, signal);
      if (response.status === 204 || response.status === 404) return onLink("gone");
      if (response.status === 400) {
        lastId = null; // an id that this host cannot know: begin anew
        throw new Error("the host did not know where we were");
      }
      if (!response.ok) throw new Error(`the host answered ${response.status}`);
      onLink("up");
      for await (const message of readEvents(response)) {
        failures = 0;
        if (message.id) lastId = message.id;
        let event;
        try {
          event = JSON.parse(message.data);
        } catch {
          continue;
        }
        onEvent(event, message.id);
      }
    } catch (error) {
      if (signal.aborted) return;
      problem = error.message || String(error);
    }
    failures += 1;
    const seconds = Math.min(10, 0.5 * 2 ** Math.min(failures, 5)) * (0.5 + Math.random() / 2);
    onLink("down", problem, seconds);
    await pause(seconds, signal);
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, seconds * 1000);
    addEventListener("online", end);
    signal.addEventListener("abort", end);
  });
}
