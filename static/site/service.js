// Requests to the API. The key is kept by the callers, in memory; cookies are never sent.

/** A failed request. `status` is 0 if there was no response. */
export class Refusal extends Error {
  constructor(detail, { status = 0, code = "", requestId = "", retryAfter = 0, fields = {}, limit = null } = {}) {
    super(detail);
    Object.assign(this, { status, code, requestId, retryAfter, fields, limit });
  }
}

// No cache mode: with "no-store", browsers add `Cache-Control: no-cache`, which makes the API skip its cache.

/** Send a request and return a 2xx Response. Throws Refusal for any other, AbortError when stopped. */
export async function send(path, { key, method = "GET", headers = {}, body, signal } = {}) {
  const isOpenAI = path.startsWith("/v1/");
  const own = isOpenAI ? { Authorization: `Bearer ${key}` } : { "X-API-Key": key };
  const typed = body === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { ...own, ...typed, ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service could not be reached. Is your connection up?", { code: "unreachable" });
  }
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

/** Return whether a text can be sent as a key: headers permit visible ASCII only. */
export const canBeKey = (text) => /^[\x21-\x7e]+$/.test(text);

async function refusalOf(answer) {
  const body = await answer.json().catch(() => ({}));
  return refusalFrom(body, answer.status, answer.headers);
}

/** Return a Refusal for an error's body, in the native format or in OpenAI's. */
export function refusalFrom(body, status, headers) {
  const error = body.error ?? body;
  return new Refusal(error.message ?? error.detail ?? `The service answered ${status}.`, {
    status,
    code: error.code ?? "",
    requestId: body.request_id ?? headers.get("X-Request-ID") ?? "",
    retryAfter: Number(headers.get("Retry-After")) || 0,
    fields: error.errors ?? (error.param ? { [error.param]: [] } : {}),
    limit: error.limit ?? null,
  });
}

/** Yield a Response's server-sent events as `{event, data}`, without comments. */
export async function* serverSentEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value = "" } = await reader.read();
    waiting += done ? "\n\n" : value;
    const blocks = waiting.split(/\r?\n\r?\n/);
    waiting = blocks.pop();
    for (const block of blocks) {
      const parsed = parseEvent(block);
      if (parsed.data) yield parsed;
    }
    if (done) return;
  }
}

function parseEvent(block) {
  const fields = { event: "message", data: "" };
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^(\w*):? ?(.*)$/s.exec(line) ?? [];
    if (name === "data") data.push(value);
    else if (name === "event") fields.event = value;
  }
  return { ...fields, data: data.join("\n") };
}
