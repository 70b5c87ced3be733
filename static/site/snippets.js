// Code examples of a request in three languages, with the environment variable AIAPI_KEY instead of the key.

/** What to install before, by language: curl is there, and JavaScript without an SDK uses fetch. */
const INSTALL = { openai: { python: "pip install openai", javascript: "npm install openai" }, native: { python: "pip install requests" } };

const INDENT = "    ";
/** Where an answer of OpenAI's endpoints has its result. */
const RESULTS = { "/v1/chat/completions": "choices[0].message.content", "/v1/embeddings": "data[0].embedding" };

/** Return the code of a request `{path, headers, body}` to an origin as `{curl, python, javascript, install}`. */
export function snippets(origin, request) {
  const isOpenAI = request.path.startsWith("/v1/");
  return {
    curl: curl(origin, request, isOpenAI),
    python: isOpenAI ? pythonWithOpenAI(origin, request) : pythonWithRequests(origin, request),
    javascript: isOpenAI ? javascriptWithOpenAI(origin, request) : javascriptWithFetch(origin, request),
    install: INSTALL[isOpenAI ? "openai" : "native"],
  };
}

const operation = (path) => path.replace("/v1/", "").replaceAll("/", ".");
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(origin, { path, headers, body }, isOpenAI) {
  const name = isOpenAI ? "Authorization: Bearer" : "X-API-Key:";
  const values = Object.entries(body).map(([key, value]) => `\n    ${JSON.stringify(key)}: ${JSON.stringify(value)}`);
  const lines = [
    `curl -sS${body.stream ? "N" : ""} ${origin}${path}`,
    `-H "${name} $AIAPI_KEY"`,
    ...Object.entries({ "Content-Type": "application/json", ...headers }).map(([key, value]) => `-H ${quoted(`${key}: ${value}`)}`),
    `-d ${quoted(`{${values.join(",")}\n  }`)}`,
  ];
  return lines.join(" \\\n  ");
}

/** Format a JSON value as Python. A JSON string is a valid Python string. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${python(each)}`).join(", ")}}`;
  return JSON.stringify(value);
}

function pythonWithOpenAI(origin, { path, headers, body }) {
  const named = Object.entries(body).map(([name, value]) => `${INDENT}${name}=${python(value)},`);
  const extra = Object.keys(headers).length ? [`${INDENT}extra_headers=${python(headers)},`] : [];
  const use = body.stream
    ? ["for chunk in answer:", `${INDENT}if chunk.choices:`, `${INDENT}${INDENT}print(chunk.choices[0].delta.content or "", end="", flush=True)`]
    : [`print(answer.${RESULTS[path]})`];
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ["AIAPI_KEY"])`,
    `answer = client.${operation(path)}.create(`,
    ...named,
    ...extra,
    ")",
    ...use,
  ].join("\n");
}

function pythonWithRequests(origin, { path, headers, body }) {
  const more = Object.entries(headers).map(([name, value]) => `, ${python(name)}: ${python(value)}`).join("");
  const use = body.stream
    ? ["for line in answer.iter_lines():", `${INDENT}if line.startswith(b"data: "):`, `${INDENT}${INDENT}print(line[6:].decode())`]
    : ["print(answer.json())"];
  return [
    "import os",
    "import requests",
    "",
    "answer = requests.post(",
    `${INDENT}${JSON.stringify(origin + path)},`,
    `${INDENT}headers={"X-API-Key": os.environ["AIAPI_KEY"]${more}},`,
    `${INDENT}json=${python(body)},`,
    ...(body.stream ? [`${INDENT}stream=True,`] : []),
    `${INDENT}timeout=60,`,
    ")",
    "answer.raise_for_status()",
    ...use,
  ].join("\n");
}

function javascriptWithOpenAI(origin, { path, headers, body }) {
  const extra = Object.keys(headers).length ? [`${INDENT}{ headers: ${JSON.stringify(headers)} },`] : [];
  const use = body.stream
    ? ['for await (const chunk of answer) process.stdout.write(chunk.choices[0]?.delta.content ?? "");']
    : [`console.log(answer.${RESULTS[path]});`];
  return [
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(`${origin}/v1`)}, apiKey: process.env.AIAPI_KEY });`,
    `const answer = await client.${operation(path)}.create(`,
    `${INDENT}${JSON.stringify(body)},`,
    ...extra,
    ");",
    ...use,
  ].join("\n");
}

function javascriptWithFetch(origin, { path, headers, body }) {
  const all = Object.entries({ "Content-Type": "application/json", ...headers });
  const more = all.map(([name, value]) => `, ${JSON.stringify(name)}: ${JSON.stringify(value)}`).join("");
  const use = body.stream
    ? ["const text = new TextDecoder();", "for await (const bytes of answer.body) process.stdout.write(text.decode(bytes, { stream: true }));"]
    : ["console.log(await answer.json());"];
  return [
    `const answer = await fetch(${JSON.stringify(origin + path)}, {`,
    '  method: "POST",',
    `  headers: { "X-API-Key": process.env.AIAPI_KEY${more} },`,
    `  body: JSON.stringify(${JSON.stringify(body)}),`,
    "});",
    "if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);",
    ...use,
  ].join("\n");
}
