// The models of a key: names, context, prices, the speed of their answers to the account, and code.

import { showCode } from "./code.js";
import { byId, element, table } from "./dom.js";
import { count, exactly, exactMoney, milliseconds } from "./format.js";
import { onKey } from "./key.js";
import { showRefusal } from "./refusals.js";
import { send } from "./service.js";
import { snippets } from "./snippets.js";

/** Outcomes without a call to the model of their own. */
const FROM_CACHE = ["hit", "coalesced", "replay"];
const NUMBERS = ["Context", "Input", "Output", "First token", "Answer"];
const COLUMNS = [{ label: "Model" }, { label: "For" }, ...NUMBERS.map((label) => ({ label, isNumber: true })), { label: "Next" }];

/** Show the models of a key; returns whether it was accepted. The speed needs the scope `usage`. */
async function show(key) {
  byId("key-problem").replaceChildren();
  try {
    const { data } = await (await send("/v1/models", { key })).json();
    const answers = await fetchAnswers(key).catch(() => []);
    const caption = "Prices in US dollars per million tokens. Times are medians of your account's latest 100 requests, without answers from the cache.";
    const box = table(caption, COLUMNS, data.map((model) => row(model, answers.filter((each) => each.model === model.id))));
    box.querySelector("table").className = "models";
    byId("models").replaceChildren(box);
    byId("status").textContent = `${data.length} ${data.length === 1 ? "model" : "models"} for this key.`;
    if (data.length) showUse(data[0]);
    return true;
  } catch (error) {
    showRefusal(byId("key-problem"), error);
    return false;
  }
}

/** Fetch the account's latest requests that a model answered itself. */
async function fetchAnswers(key) {
  const { requests } = await (await send("/requests?limit=100", { key })).json();
  return requests.filter(({ status, cache }) => status < 400 && !FROM_CACHE.includes(cache));
}

/** Return the median of the numbers, null without any, as a cell that names how many there are. */
function median(numbers) {
  const known = numbers.filter((number) => number !== null).sort((one, other) => one - other);
  return { text: milliseconds(known[Math.floor((known.length - 1) / 2)]), title: known.length ? `of ${known.length} ${known.length === 1 ? "answer" : "answers"}` : null };
}

function row(model, answers) {
  const names = [element("code", {}, model.id), ...(model.aliases.length ? [element("br"), element("span", { class: "small quiet" }, `also ${model.aliases.join(", ")}`)] : [])];
  const link = `/playground/#${new URLSearchParams({ endpoint: "/v1/chat/completions", model: model.id })}`;
  const tryIt = model.kind === "chat" ? [element("a", { href: link, "aria-label": `Try ${model.id}` }, "Try"), " · "] : [];
  const code = element("button", { type: "button", class: "link", "aria-label": `Code for ${model.id}`, click: () => { showUse(model); byId("use").scrollIntoView(); } }, "Code");
  return [
    { text: names },
    model.kind,
    { text: count(model.context_size), title: `${exactly(model.context_size)} tokens` },
    exactMoney(model.price?.input_per_million),
    exactMoney(model.price?.output_per_million),
    median(answers.map((each) => each.first_token_ms)),
    median(answers.map((each) => each.latency_ms)),
    { text: [...tryIt, code] },
  ];
}

function showUse({ id, kind }) {
  const asked = kind === "chat" ? { path: "/v1/chat/completions", body: { model: id, messages: [{ role: "user", content: "Hello!" }] } } : { path: "/v1/embeddings", body: { model: id, input: "Hello!" } };
  byId("used").textContent = id;
  byId("use").hidden = false;
  showCode(snippets(location.origin, { headers: {}, ...asked }));
}

onKey(show);
