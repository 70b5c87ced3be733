// The playground's form: fields by endpoint, validation, and the request made from them.

import { byId } from "./dom.js";

/** Each endpoint's kind of models, text limits in characters, and other fields. */
const ENDPOINTS = {
  "/chat": { kind: "chat", about: "One question, one answer.", label: "Message", bounds: [1, 1000], fields: ["temperature", "stream"], example: "What is the capital of France?" },
  "/summarize": {
    kind: "chat",
    about: "A summary in a few sentences.",
    label: "Text",
    bounds: [10, 5000],
    fields: ["length"],
    example:
      "The honey bee lives in colonies of up to sixty thousand insects. Most of them are workers, which collect nectar and pollen, build the comb, feed the young and defend the hive. One queen lays all the eggs, up to two thousand a day in early summer.",
  },
  "/v1/chat/completions": { kind: "chat", about: "As OpenAI's, with any of its clients.", label: "Message", bounds: [1, Infinity], fields: ["temperature", "tokens", "stream"], example: "What is the capital of France?" },
};
const FIELDS = ["temperature", "tokens", "length", "stream"];
const EXAMPLES = Object.values(ENDPOINTS).map(({ example }) => example);

const endpoint = () => ENDPOINTS[byId("endpoint").value];

/** Return the kind of models of the chosen endpoint. */
export const modelKind = () => endpoint().kind;

/** Show the fields of the chosen endpoint; an unchanged example text is replaced by the endpoint's own. */
export function showFields() {
  const { about, label, fields, example } = endpoint();
  for (const name of FIELDS) byId(`${name}-field`).hidden = !fields.includes(name);
  byId("endpoint-hint").textContent = about;
  byId("text-label").textContent = label;
  if (EXAMPLES.includes(byId("text").value)) byId("text").value = example;
  showLength();
}

/** Show the text's length and its maximum. */
export function showLength() {
  const [least, most] = endpoint().bounds;
  const bounds = most === Infinity ? "" : ` of ${least.toLocaleString("en-US")} to ${most.toLocaleString("en-US")}`;
  byId("text-hint").textContent = `${characters().toLocaleString("en-US")}${bounds} characters`;
}

const characters = () => [...byId("text").value].length;

/** Return the form's first error as `[field, sentence]`, or null. */
export function fault() {
  const { bounds, fields } = endpoint();
  const [least, most] = bounds;
  if (!byId("text").value.trim()) return ["text", "Write something first."];
  if (characters() < least || characters() > most) return ["text", `Between ${least} and ${most} characters, please.`];
  for (const name of ["temperature", "tokens"]) {
    if (fields.includes(name) && !byId(name).checkValidity()) return [name, byId(name).validationMessage];
  }
  if (byId("endpoint").value.startsWith("/v1/") && !byId("model").value) return ["model", "Choose a model: this endpoint has no default."];
  return null;
}

/** Return the form's request as `{path, headers, body}`, exactly as it is sent. */
export function request() {
  const path = byId("endpoint").value;
  const headers = byId("fresh").checked ? { "Cache-Control": "no-cache" } : {};
  return { path, headers, body: path === "/summarize" ? summary() : path === "/chat" ? chat() : completion() };
}

const model = () => (byId("model").value ? { model: byId("model").value } : {});
const temperature = () => (byId("temperature").value === "" ? {} : { temperature: byId("temperature").valueAsNumber });

const summary = () => ({ text: byId("text").value, length: byId("length").value, ...model() });

function chat() {
  return { message: byId("text").value, ...temperature(), ...model(), ...(byId("stream").checked ? { stream: true } : {}) };
}

function completion() {
  const most = byId("tokens").value === "" ? {} : { max_tokens: byId("tokens").valueAsNumber };
  const streamed = byId("stream").checked ? { stream: true, stream_options: { include_usage: true } } : {};
  return { model: byId("model").value, messages: [{ role: "user", content: byId("text").value }], ...temperature(), ...most, ...streamed };
}
