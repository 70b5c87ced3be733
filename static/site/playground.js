// The playground: sends the form's request, shows its answer as it arrives, its cost, and its code.

import { readAnswer, recordOf } from "./answers.js";
import { byId, copy, element } from "./dom.js";
import { exactMoney, exactly, milliseconds, money, moment, UNKNOWN } from "./format.js";
import { onKey } from "./key.js";
import { showRefusal } from "./refusals.js";
import { fault, modelKind, request, showFields, showLength } from "./request.js";
import { Refusal, send } from "./service.js";
import { snippets } from "./snippets.js";

/** Descriptions of cache outcomes. */
const OUTCOMES = {
  HIT: "from the cache, nothing billed",
  MISS: "asked the model",
  COALESCED: "shared with an identical request, nothing billed",
  BYPASS: "the cache was not used",
};

let key = ""; // the only copy
let models = []; // the models that the key may use
let running = null;
let latest = null; // the request whose facts are shown
let endCountdown = () => {};
let shownCode = null;
let language = "curl";

const say = (text) => { byId("status").textContent = text; };

async function loadModels(entered) {
  byId("key-problem").replaceChildren();
  byId("use-key").disabled = true;
  try {
    const { data } = await (await send("/v1/models", { key: entered })).json();
    key = entered;
    models = data;
    const offered = showModels();
    say(`Key accepted: ${offered} ${offered === 1 ? "model" : "models"} to choose from.`);
    showCode();
  } catch (error) {
    key = "";
    showRefusal(byId("key-problem"), error);
  }
  byId("use-key").disabled = false;
}

/** List the models of the chosen endpoint and return their number. The selected model stays if it is among them. */
function showModels() {
  const names = models.filter(({ kind }) => kind === modelKind()).map(({ id }) => id);
  const chosen = byId("model").value;
  byId("model").replaceChildren(element("option", { value: "" }, "Default"), ...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) byId("model").value = chosen;
  else if (byId("endpoint").value.startsWith("/v1/")) byId("model").value = names[0] ?? "";
  return names.length;
}

function showFault() {
  const [field, sentence] = fault() ?? [];
  for (const name of ["text", "temperature", "tokens", "model"]) byId(name).setAttribute("aria-invalid", String(name === field));
  byId("text-problem").hidden = !field;
  byId("text-problem").textContent = sentence ?? "";
  if (field) byId(field).focus();
  return Boolean(field);
}

async function ask() {
  if (running || showFault()) return;
  if (!key) {
    say("Enter your key first.");
    byId("key").focus();
    return;
  }
  const asked = request();
  const stopper = new AbortController();
  begin(stopper);
  showCode(asked);
  const clock = { began: performance.now(), first: null };
  let answer = null;
  try {
    answer = await send(asked.path, { key, method: "POST", headers: asked.headers, body: asked.body, signal: stopper.signal });
    showLimits(answer.headers);
    const { tokens } = await readAnswer(answer, (text) => write(text, clock));
    tell(answer, { tokens, first: clock.first, total: performance.now() - clock.began }, stopper);
  } catch (error) {
    fail(error, answer, clock);
  } finally {
    end();
  }
}

function begin(stopper) {
  running = latest = stopper;
  endCountdown();
  byId("failure").replaceChildren();
  byId("facts").replaceChildren();
  byId("limits").hidden = true;
  byId("answer").textContent = "";
  byId("answer").setAttribute("aria-busy", "true");
  byId("send").disabled = true;
  byId("stop").disabled = false;
  byId("answer").hidden = false;
  byId("answer-card").scrollIntoView({ block: "nearest" });
  say("Waiting for the answer…");
}

function end() {
  running = null;
  byId("answer").setAttribute("aria-busy", "false");
  byId("send").disabled = false;
  byId("stop").disabled = true;
}

function write(text, clock) {
  if (!text) return;
  if (clock.first === null) {
    clock.first = performance.now() - clock.began;
    say("Answering…");
  }
  const box = byId("answer");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  box.append(text);
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** Show the facts at once, then complete them from the usage record: a stream's headers don't have its cost. */
async function tell(answer, { tokens, first, total }, stopper) {
  const { headers } = answer;
  const cost = headers.get("X-Cost-USD");
  say(`Answered in ${milliseconds(total)}.`);
  showFacts(headers, { tokens, cost, first, total });
  if (cost !== null && tokens) return;
  const record = await recordOf(headers.get("X-Request-ID"), key);
  if (!record || latest !== stopper) return;
  const counted = { input: record.input_tokens, output: record.output_tokens, total: record.input_tokens + record.output_tokens };
  showFacts(headers, { tokens: tokens ?? counted, cost: cost ?? record.cost, first, total, isUnpriced: record.cost === null });
}

function showFacts(headers, { tokens, cost, first, total, isUnpriced = false }) {
  const outcome = headers.get("X-Cache");
  const detail = tokens?.input === undefined ? null : `${exactly(tokens.input)} in, ${exactly(tokens.output)} out`;
  const facts = [
    ["Tokens", exactly(tokens?.total), detail],
    isUnpriced ? ["Cost", "unknown", "the model has no price"] : ["Cost", money(cost), money(cost) === exactMoney(cost) ? null : exactMoney(cost)],
    ["Model", headers.get("X-Model") ?? UNKNOWN, headers.get("X-Fallback") === "true" ? "a fallback served it" : null],
    ["Cache", outcome ?? UNKNOWN, OUTCOMES[outcome]],
    ["First text", milliseconds(first)],
    ["Total", milliseconds(total)],
    ["Request id", headers.get("X-Request-ID") ?? UNKNOWN],
  ];
  const lines = facts.map(([name, value, more]) =>
    element("div", { class: name === "Request id" && "whole" }, element("dt", {}, name), element("dd", {}, value, more && element("small", {}, more))),
  );
  byId("facts").replaceChildren(...lines);
}

function showLimits(headers) {
  const told = [...headers].filter(([name]) => /^(x-)?ratelimit/.test(name));
  const rows = told.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, element("code", {}, name)), element("td", {}, value, meaning(name, value))),
  );
  byId("limit-rows").replaceChildren(...rows);
  byId("limits").hidden = rows.length === 0;
  byId("limits").open = true;
}

const meaning = (name, value) =>
  name === "x-ratelimit-reset" ? ` (${moment(new Date(Number(value) * 1000), { seconds: true })})` : null;

function fail(error, answer, clock) {
  const total = milliseconds(performance.now() - clock.began);
  if (error.name === "AbortError") {
    say(`Stopped after ${total}. What was written until then is billed.`);
    return;
  }
  const refusal = error instanceof Refusal ? error : new Refusal("The answer broke off.", { code: "unreachable", requestId: answer?.headers.get("X-Request-ID") });
  say(`Failed after ${total}.`);
  byId("answer").hidden = !byId("answer").textContent;
  endCountdown = showRefusal(byId("failure"), refusal, { again: ask });
}

/** Show the code of the latest request, or of the form's. */
function showCode(sent = null) {
  shownCode = snippets(location.origin, sent ?? request());
  byId("code-text").textContent = shownCode[language];
  const which = sent ? "Exactly what was sent" : "As the form stands now";
  byId("code-hint").firstChild.textContent = `${which}. Put your key into the environment variable `;
}

function chooseTab(tab) {
  language = tab.id.replace("tab-", "");
  for (const each of document.querySelectorAll('[role="tab"]')) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  byId("code").setAttribute("aria-labelledby", tab.id);
  byId("code-text").textContent = shownCode[language];
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  chooseTab(next);
  next.focus();
}

onKey(loadModels);
byId("endpoint").addEventListener("change", () => {
  showModels();
  showFields();
});
byId("ask").addEventListener("input", () => { showLength(); showCode(); });
byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
byId("ask").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
byId("stop").addEventListener("click", () => running?.abort());
byId("copy").addEventListener("click", () => copy(shownCode[language], byId("copied")));
for (const tab of document.querySelectorAll('[role="tab"]')) {
  tab.addEventListener("click", () => chooseTab(tab));
  tab.addEventListener("keydown", moveTab);
}
showFields();
showCode();
