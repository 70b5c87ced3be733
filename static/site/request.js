// The playground's form: fields by endpoint, validation, the request made from them, and the link that holds them.

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
  "/v1/chat/completions": {
    kind: "chat",
    about: "A conversation in OpenAI's protocol: each message is sent with the ones before it.",
    label: "Message",
    bounds: [1, Infinity],
    fields: ["system", "temperature", "tokens", "stream"],
    example: "What is the capital of France?",
  },
};
const FIELDS = ["system", "temperature", "tokens", "length", "stream"];
const EXAMPLES = Object.values(ENDPOINTS).map(({ example }) => example);
/** What a link holds: values by the fields' ids. */
const LINKED = ["endpoint", "model", "compare", "system", "text", "temperature", "tokens", "length", "stream", "fresh"];

const endpoint = () => ENDPOINTS[byId("endpoint").value];

/** Return the kind of models of the chosen endpoint. */
export const modelKind = () => endpoint().kind;

/** Return whether the chosen endpoint takes the earlier turns of a conversation. */
export const isConversation = () => endpoint().fields.includes("system");

/** Show the fields of the chosen endpoint; an unchanged example text is replaced by the endpoint's own. */
export function showFields() {
  const { about, label, fields, example } = endpoint();
  for (const name of FIELDS) byId(`${name}-field`).hidden = !fields.includes(name);
  byId("endpoint-hint").textContent = about;
  byId("text-label").textContent = label;
  if (EXAMPLES.includes(byId("text").value) || !byId("text").value) byId("text").value = example;
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
  if (characters() < least || characters() > most) return ["text", `Write between ${least} and ${most} characters.`];
  for (const name of ["temperature", "tokens"]) {
    if (fields.includes(name) && !byId(name).checkValidity()) return [name, byId(name).validationMessage];
  }
  if (isConversation() && byId("model").options.length > 1 && !byId("model").value) return ["model", "Choose a model: this endpoint has no default."];
  return null;
}

/** Return the form's request to a model as `{path, headers, body}`, exactly as it is sent. */
export function request(model, turns) {
  const path = byId("endpoint").value;
  const headers = byId("fresh").checked ? { "Cache-Control": "no-cache" } : {};
  const body = { "/chat": chat, "/summarize": summary, "/v1/chat/completions": completion }[path](model, turns);
  return { path, headers, body };
}

const named = (model) => (model ? { model } : {});
const temperature = () => (byId("temperature").value === "" ? {} : { temperature: byId("temperature").valueAsNumber });

const summary = (model) => ({ text: byId("text").value, length: byId("length").value, ...named(model) });

function chat(model) {
  return { message: byId("text").value, ...temperature(), ...named(model), ...(byId("stream").checked ? { stream: true } : {}) };
}

/** A body of OpenAI's needs a model: before the key's models are known, the code names a placeholder. */
function completion(model, turns) {
  const most = byId("tokens").value === "" ? {} : { max_tokens: byId("tokens").valueAsNumber };
  const streamed = byId("stream").checked ? { stream: true, stream_options: { include_usage: true } } : {};
  const system = byId("system").value.trim();
  const messages = [
    ...(system ? [{ role: "system", content: system }] : []),
    ...turns.flatMap(({ question, answer }) => [{ role: "user", content: question }, { role: "assistant", content: answer }]),
    { role: "user", content: byId("text").value },
  ];
  return { model: model || byId("model").dataset.wanted || "MODEL", messages, ...temperature(), ...most, ...streamed };
}

const isBox = (field) => field.type === "checkbox";

/** Return a link to the playground with the form as it is now. Its values are behind `#`, so no server sees them. */
export function formLink() {
  const fields = LINKED.map((id) => byId(id)).map((field) => [field.id, isBox(field) ? String(Number(field.checked)) : field.value]);
  const link = new URL(location.href);
  link.hash = new URLSearchParams(fields.filter(([, value]) => value)).toString();
  return link.href;
}

/** Fill the form from the link that opened the page. Models are chosen once a key has shown which there are. */
export function fillFrom(hash) {
  if (!hash.includes("=")) return;
  const values = new URLSearchParams(hash.slice(1));
  for (const field of LINKED.map((id) => byId(id)).filter(({ id }) => values.has(id))) {
    const value = values.get(field.id);
    if (isBox(field)) field.checked = value === "1";
    else if (field.id === "model" || field.id === "compare") field.dataset.wanted = value;
    else if (field.id !== "endpoint" || ENDPOINTS[value]) field.value = value;
  }
  const isUsual = values.get("endpoint") === byId("endpoint").options[0].value;
  byId("options").open = !isUsual || ["system", "temperature", "tokens"].some((id) => values.has(id));
}
