// What the page says: errors, receipts, times and values in words.

import { HostError } from "./api.js";

/** An error as a sentence or two that say what to do. */
export function explain(error) {
  if (!(error instanceof HostError)) return "The host cannot be reached. Is it running? Nothing is lost; try again.";
  const { code, details, status } = error;
  const wait = details.retryAfterMs ? ` Try again in ${Math.ceil(details.retryAfterMs / 1000)} s.` : "";
  if (code === "EXECUTION_PLANE_NOT_READY") {
    const why = details.lastError ? ` It said: ${details.lastError}.` : "";
    return `The execution plane is ${details.status || "not ready"}, so nothing was sent.${why}${wait}`.replace("..", ".");
  }
  if (status === 401) return "The host asks who you are. Reload the page to sign in.";
  return `${sentence(error.message)}${wait}`;
}

/** A text with a capital and a full stop. */
export function sentence(text) {
  const trimmed = String(text ?? "").trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

/** How an answer that failed ended, from `{code, message}`. */
export function describeFailure({ code, message }) {
  if (code === "INTERRUPTED" || code === "EXECUTION_PLANE_DISCONNECTED") {
    return `This answer was interrupted. ${sentence(message)}`.trim();
  }
  if (code === "DEADLINE_EXCEEDED") return `This answer took too long. ${sentence(message)}`.trim();
  return sentence(message) || `This answer failed (${code || "no reason was given"}).`;
}

/** A receipt in words: a sentence, and what was stopped. */
export function describeReceipt(receipt) {
  if (receipt.vm_lost) return { text: "The execution plane was lost; what it did last is not known.", details: [] };
  if (receipt.already) return { text: "It had ended already.", details: [] };
  if (receipt.started === false) return { text: "Stopped before it began.", details: [] };
  const { tokens_in: read = 0, tokens_out: written = 0 } = receipt.usage || {};
  const seconds = typeof receipt.seconds === "number" ? ` in ${receipt.seconds.toFixed(2)} s` : "";
  const tokens = read || written ? ` ${read} tokens read, ${written} written.` : "";
  const item = (word) => (each) =>
    `${word} ${String(each.kind).replaceAll("_", " ")} ${each.name}${each.effect ? `: ${each.effect}` : ""}`;
  return {
    text: `Stopped${seconds}.${tokens}`,
    details: [
      ...(receipt.stopped || []).map(item("Stopped")),
      ...(receipt.abandoned || []).map(item("Could not stop")),
    ],
  };
}

/** How the execution plane does, from `liveness` of its status; nothing while all is well. */
export function describePlane(liveness) {
  const { state, block, heardMsAgo } = liveness || {};
  if (state === "busy") return "The execution plane is busy; answers may be slow.";
  if (state === "blocked" && block) {
    return `The execution plane stood still for ${duration(block.seconds * 1000)}, held up by ${block.where}.`;
  }
  if (state === "silent") return `The execution plane has said nothing for ${duration(heardMsAgo)}; waiting for it.`;
  if (state === "dead") return `The execution plane has said nothing for ${duration(heardMsAgo)} and may be gone.`;
  return "";
}

/** A duration in milliseconds. */
export function duration(milliseconds) {
  if (typeof milliseconds !== "number") return "";
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** A moment, as short as it can be understood. */
export function when(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  const now = new Date();
  if (date.toDateString() === now.toDateString()) {
    return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  }
  const year = date.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year });
}

/** The beginning of a value, on one line; of an object with one field, that field. */
export function brief(value, limit = 120) {
  if (value === undefined || value === null) return "";
  const fields = typeof value === "object" ? Object.values(value) : [];
  const told = fields.length === 1 && typeof fields[0] === "string" ? fields[0] : value;
  const line = (typeof told === "string" ? told : JSON.stringify(told)).replace(/\s+/g, " ").trim();
  return line === "{}" ? "" : line.length > limit ? `${line.slice(0, limit)}…` : line;
}

const MOST_SHOWN = 50_000; // a page with megabytes of text in it is no help to anybody

/** A whole value, unless it is very long. */
export function whole(value) {
  const text = spell(value);
  if (text.length <= MOST_SHOWN) return text;
  return `${text.slice(0, MOST_SHOWN)}\n… and ${text.length - MOST_SHOWN} more characters`;
}

function spell(value) {
  if (typeof value === "string") return value;
  const fields = value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value) : [];
  const isFlat = fields.length > 0 && fields.every(([, each]) => typeof each !== "object");
  if (isFlat) return fields.map(([name, each]) => `${name}: ${each}`).join("\n");
  return JSON.stringify(value, null, 2);
}
