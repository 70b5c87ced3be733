// The models of a key: names, context, prices, the speed of the account's own requests, and code.

import { showCode } from "./code.js";
import { byId, element, table } from "./dom.js";
import { count, exactly, exactMoney, milliseconds } from "./format.js";
import { onKey } from "./key.js";
import { rangeOf } from "./ranges.js";
import { showRefusal } from "./refusals.js";
import { send } from "./service.js";
import { snippets } from "./snippets.js";
import { fetchUsage } from "./usage.js";

const NUMBERS = ["Context", "Input", "Output", "First token", "Answer"];
const COLUMNS = [{ label: "Model" }, { label: "For" }, ...NUMBERS.map((label) => ({ label, isNumber: true })), { label: "Next" }];

/** Show the models of a key; returns whether it was accepted. The speed needs the scope `usage`. */
async function show(key) {
  byId("key-problem").replaceChildren();
  try {
    const { data } = await (await send("/v1/models", { key })).json();
    const usage = await fetchUsage(key, rangeOf("30d"), "model").catch(() => null);
    const speeds = new Map((usage?.usage.series ?? []).map((each) => [each.model, each]));
    byId("models").replaceChildren(table("Prices in US dollars per million tokens; times are medians of your account's last 30 days", COLUMNS, data.map((model) => row(model, speeds.get(model.id)))));
    byId("status").textContent = `${data.length} ${data.length === 1 ? "model" : "models"} for this key.`;
    if (data.length) showUse(data[0]);
    return true;
  } catch (error) {
    showRefusal(byId("key-problem"), error);
    return false;
  }
}

function row(model, speed) {
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
    milliseconds(speed?.first_token_ms?.p50),
    milliseconds(speed?.latency_ms?.p50),
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
