// What came back: the text as it comes, then the facts. Plain answers and streams of all endpoints read alike.

import { Refusal, refusalFrom, send, serverSentEvents } from "./service.js";

/** Records of a stream are written at its end; with Redis a moment later. Milliseconds between looks, summing to 3 s. */
const LOOKS = [0, 300, 700, 2000];

/** Read an answer, calling `write` with each piece of text; returns `{tokens}`. Raises Refusal for an error in mid-stream. */
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

/** Ask for the request's own record, which knows what a stream cost; null where the key may not see it, or none came. */
export async function recordOf(requestId, key) {
  for (const wait of LOOKS) {
    await new Promise((resolve) => { setTimeout(resolve, wait); });
    try {
      return await (await send(`/requests/${encodeURIComponent(requestId)}`, { key })).json();
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 404) return null;
    }
  }
  return null;
}
