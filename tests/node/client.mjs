// What a JavaScript developer writes for OpenAI, run against the platform: the base URL and the key are all that differ.
// Prints one JSON object that says what came back; tests/test_openai_clients.py judges it.
import OpenAI from "openai";

const [baseURL, apiKey, model, embedder] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hello there" }];
const tools = [
  {
    type: "function",
    function: { name: "add", parameters: { type: "object", properties: { a: { type: "integer" } }, required: ["a"] } },
  },
];
const told = {};

async function failure(call) {
  try {
    await call();
    return { name: "none" };
  } catch (error) {
    const { status, code, param, type } = error;
    return { name: error.constructor.name, status, code, param, type };
  }
}

const plain = await client.chat.completions.create({ model, messages }).withResponse();
told.plain = plain.data.choices[0].message.content;
told.usage = plain.data.usage.total_tokens;
told.requestId = plain.data._request_id === plain.response.headers.get("x-request-id");
told.remaining = plain.response.headers.get("x-ratelimit-remaining-requests") !== null;

told.streamed = "";
const stream = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) told.streamedUsage = chunk.usage.total_tokens;
}

const runner = client.chat.completions.stream({ model, messages });
told.final = (await runner.finalChatCompletion()).choices[0].message.content;

const forced = { type: "function", function: { name: "add" } };
const called = await client.chat.completions.create({ model, messages, tools, tool_choice: forced });
told.tool = called.choices[0].message.tool_calls[0].function;

const schema = { type: "object", properties: { answer: { type: "string" } }, required: ["answer"] };
const parsed = await client.chat.completions.parse({
  model,
  messages,
  response_format: { type: "json_schema", json_schema: { name: "Answer", schema, strict: true } },
});
told.parsed = JSON.parse(parsed.choices[0].message.content);

const vectors = await client.embeddings.create({ model: embedder, input: ["one", "two"] });
told.vectors = vectors.data.map((each) => each.embedding.length);

told.response = (await client.responses.create({ model, input: "hello there" })).output_text;
told.events = [];
for await (const event of await client.responses.create({ model, input: "hello there", stream: true })) {
  told.events.push(event.type);
}

told.completion = (await client.completions.create({ model, prompt: "hello there", max_tokens: 50 })).choices[0].text;
told.models = [];
for await (const each of client.models.list()) told.models.push(each.id);
told.model = (await client.models.retrieve(model)).id;

told.errors = {
  key: await failure(() => new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list()),
  model: await failure(() => client.chat.completions.create({ model: "unknown", messages })),
  parameter: await failure(() => client.chat.completions.create({ model, messages, temperature: 9 })),
  path: await failure(() => client.files.list()),
};

const aborted = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of aborted) {
  told.aborted = chunk.choices.length;
  break; // which closes the connection
}
console.log(JSON.stringify(told));
