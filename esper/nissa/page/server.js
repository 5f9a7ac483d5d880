// What the server is asked. Every failure is an error with `status` (0: no answer) and words for the reader.

const PATIENCE = 15_000;

export class ServerError extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

export async function get(path) {
  let answer;
  try {
    answer = await fetch(path, {
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(PATIENCE),
      cache: "no-cache",
    });
  } catch (error) {
    throw new ServerError(
      0,
      error.name === "TimeoutError" ? "The server has not answered for 15 s." : "The server does not answer.",
    );
  }
  let body = null;
  try {
    body = await answer.json();
  } catch {
    if (answer.ok) throw new ServerError(answer.status, `The server sent something that is no JSON for ${path}.`);
  }
  if (answer.ok) return body;
  const told = body?.error ?? body ?? {};
  throw new ServerError(
    answer.status,
    told.detail ?? told.message ?? told.title ?? `The server answered ${answer.status}.`,
    told.hint,
  );
}

export const history = (run, cursor) =>
  get(`/api/v1/runs/${encodeURIComponent(run)}/history${cursor ? `?after=${encodeURIComponent(cursor)}` : ""}`);

const EVENTS = [
  "preparing",
  "run_started",
  "epoch",
  "decision",
  "seed",
  "trial",
  "fault",
  "cache",
  "compile_queue",
  "telemetry",
  "checkpoint",
  "growth",
  "rollback",
  "invention",
  "lineage",
  "inventing_ended",
  "control",
  "run_finished",
  "run_interrupted",
  "run_failed",
];

const FIRST_POLL = 1000;
const SLOWEST_POLL = 5000;

// Calls `onEvent(type, run)` for what happens in any run, and `onLink("live" | "polling")`. Where there is no stream
// (a proxy that holds it back, a server without it) `onEvent(null, null)` is called every now and then instead.
export function follow(onEvent, onLink) {
  let source = null;
  let timer = null;
  let pause = FIRST_POLL;
  const poll = () => {
    onEvent(null, null);
    pause = Math.min(SLOWEST_POLL, pause * 1.5);
    timer = setTimeout(poll, pause);
  };
  const open = () => {
    source = new EventSource("/api/v1/events");
    source.onopen = () => {
      clearTimeout(timer);
      timer = null;
      pause = FIRST_POLL;
      onLink("live");
      onEvent(null, null); // what happened while nobody listened
    };
    source.onerror = () => {
      onLink("polling");
      if (timer === null) timer = setTimeout(poll, pause);
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 10_000);
    };
    for (const type of EVENTS) {
      source.addEventListener(type, (message) => {
        let run = null;
        try {
          run = JSON.parse(message.data).run_id ?? null;
        } catch {
          /* still word that something happened */
        }
        onEvent(type, run);
      });
    }
  };
  open();
  return () => {
    source.close();
    clearTimeout(timer);
  };
}
