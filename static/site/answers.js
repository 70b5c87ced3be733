// Reading of answers, plain or streamed, of all endpoints, and of their usage records.

import { refusalFrom, send, serverSentEvents } from "./service.js";

/** A stream's record is written at its end, with Redis slightly later. Milliseconds between attempts, 3 s in total. */
const LOOKS = [0, 300, 700, 2000];

/** Read an answer, pass each piece of text to `write`, return `{tokens}`. Throws Refusal for an error in a stream. */
export async function readAnswer(answer, write) {
  const isStream = (answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
  if (isStream) return readStream(answer, write);
  const body = await answer.json();
  write(body.response ?? body.summary ?? body.choices?.[0]?.message?.content ?? "");
  return { tokens: tokensOf(body) };
}

async function readStream(answer, write) {
  let tokens = null;
  for await (const { event, data } of serverSentEvents(answer)) {
    if (data === "[DONE]") continue;
    const body = JSON.parse(data);
    if (event === "error" || body.error) throw refusalFrom(body, body.status ?? 0, answer.headers);
    if (event === "done") return { tokens: tokensOf(body) };
    write(body.text ?? body.choices?.[0]?.delta?.content ?? "");
    tokens = tokensOf(body) ?? tokens;
  }
  return { tokens };
}

function tokensOf(body) {
  const usage = body.usage;
  if (usage) return { input: usage.prompt_tokens, output: usage.completion_tokens, total: usage.total_tokens };
  return body.tokens_used === undefined ? null : { total: body.tokens_used };
}

/**
 * Fetch the request's usage record, which has a stream's cost; null if there is none, or the key may not read it. Looked
 * for among the latest: asking for one that is not there yet would put an error into the browser's console.
 */
export async function recordOf(requestId, key) {
  for (const wait of LOOKS) {
    await new Promise((resolve) => { setTimeout(resolve, wait); });
    try {
      const { requests } = await (await send("/requests?limit=20", { key })).json();
      const record = requests.find(({ id }) => id === requestId);
      if (record) return record;
    } catch {
      return null;
    }
  }
  return null;
}
