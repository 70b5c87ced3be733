// The playground: sends the form's request to one or two models, and shows its code. A link holds the form, not the key.

import { showCode } from "./code.js";
import { byId, copy, element } from "./dom.js";
import { count, money } from "./format.js";
import { onKey } from "./key.js";
import { Pane } from "./pane.js";
import { showRefusal } from "./refusals.js";
import { fault, fillFrom, formLink, isConversation, modelKind, request, showFields, showLength } from "./request.js";
import { send } from "./service.js";
import { snippets } from "./snippets.js";

const NONE = { model: "Default model", compare: "No second model" };

let key = ""; // in memory; key.js may keep a copy for the tab
let models = [...byId("model").options].map(publicModel); // then those that the key may use
let running = null;
const panes = [new Pane("", ask), new Pane("-2", ask)];

/** Return a model as the page lists it for visitors, in the form of /v1/models. */
function publicModel({ value: id, dataset: { kind, aliases, context, price } }) {
  return { id, kind, aliases: aliases.split(" "), context_size: Number(context), price };
}

async function loadModels(entered) {
  byId("key-problem").replaceChildren();
  byId("use-key").disabled = true;
  try {
    models = (await (await send("/v1/models", { key: entered })).json()).data;
    key = entered;
    const offered = showModels();
    panes[0].say(`Key accepted: ${offered} ${offered === 1 ? "model" : "models"} to choose from.`);
    byId("panes").classList.add("ready");
    showForm();
  } catch (error) {
    key = "";
    showRefusal(byId("key-problem"), error);
  }
  byId("use-key").disabled = false;
  return Boolean(key);
}

/** List the models of the chosen endpoint and return their number. A selected model stays if it is among them. */
function showModels() {
  const offered = models.filter(({ kind }) => kind === modelKind());
  const names = offered.map(({ id }) => id);
  for (const [id, none] of Object.entries(NONE)) {
    const field = byId(id);
    const chosen = field.value || field.dataset.wanted;
    const known = offered.find(({ id: name, aliases }) => name === chosen || aliases.includes(chosen));
    field.replaceChildren(element("option", { value: "" }, none), ...names.map((name) => element("option", { value: name }, name)));
    field.value = known?.id ?? "";
  }
  if (isConversation() && !byId("model").value) byId("model").value = names[0] ?? "";
  return names.length;
}

/** Show what the filled-in form needs: fields, the models' prices, the second answer, the code. */
function showForm() {
  const other = byId("compare");
  if (other.value === byId("model").value) other.value = "";
  for (const option of other.options) option.disabled = Boolean(option.value) && option.value === byId("model").value;
  const isComparing = Boolean(other.value);
  panes[1].part("pane").hidden = !isComparing;
  byId("panes").classList.toggle("two", isComparing);
  byId("send").textContent = isComparing ? "Send to both" : "Send";
  for (const [index, id] of ["model", "compare"].entries()) {
    const model = models.find(({ id: name }) => name === byId(id).value);
    if (models.length) byId(`${id}-hint`).textContent = model ? describe(model) : "";
    panes[index].part("pane-title").textContent = isComparing ? model?.id ?? NONE[id] : "Answer";
  }
  showLength();
  showCodeOf(request(byId("model").value, panes[0].turns), "The form as it is now.");
}

function describe({ context_size: context, price }) {
  const cost = price?.input_per_million ? `${money(price.input_per_million)} in, ${money(price.output_per_million)} out` : price;
  return `${count(context)} tokens of context; ${cost ? `${cost} per million` : "no price entered"}.`;
}

function showCodeOf(asked, what) {
  showCode(snippets(location.origin, asked));
  byId("code-hint").textContent = what;
}

function showFault() {
  const [field, sentence] = fault() ?? [];
  for (const name of ["text", "temperature", "tokens", "model"]) byId(name).setAttribute("aria-invalid", String(name === field));
  byId("text-problem").hidden = !field;
  byId("text-problem").textContent = sentence ?? "";
  if (!field) return false;
  if (byId("options").contains(byId(field))) byId("options").open = true;
  byId(field).focus();
  return true;
}

async function ask() {
  if (running) return;
  for (const pane of panes) pane.clearFailure();
  if (showFault()) return;
  if (!key) {
    byId("key-problem").replaceChildren(element("p", { class: "bad-text", role: "alert" }, "Enter your API key first."));
    byId("key").focus();
    return;
  }
  const names = [byId("model").value, byId("compare").value].slice(0, byId("compare").value ? 2 : 1);
  if (panes[1].turns.length < panes[0].turns.length) panes[1].turns = [...panes[0].turns];
  const requests = names.map((model, index) => request(model, panes[index].turns));
  const question = isConversation() ? byId("text").value : null;
  showCodeOf(requests[0], "Exactly what was sent.");
  begin();
  const { signal } = running;
  const done = await Promise.all(requests.map((asked, index) => panes[index].ask(asked, { key, signal, question })));
  if (question !== null && done.every(Boolean)) remember(question, names.length);
  end();
}

/** Keep a turn of the conversation, which the models get with the next question. */
function remember(question, number) {
  for (const pane of panes.slice(0, number)) pane.turns.push({ question, answer: pane.text });
  if (byId("text").value === question) byId("text").value = ""; // what was typed meanwhile stays
  byId("clear").hidden = false;
  showLength();
}

function begin() {
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  panes[0].part("talk").scrollIntoView({ block: "nearest" });
}

function end() {
  running = null;
  byId("send").disabled = false;
  byId("stop").disabled = true;
}

function clear() {
  running?.abort();
  for (const pane of panes) pane.clear();
  byId("clear").hidden = true;
  showForm();
}

fillFrom(location.hash);
showModels();
showFields();
showForm();
onKey(loadModels);
byId("endpoint").addEventListener("change", () => {
  clear();
  showModels();
  showFields();
  showForm();
});
byId("ask").addEventListener("input", showForm);
byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
byId("ask").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => { clear(); byId("text").focus(); });
byId("leave").addEventListener("click", () => { byId("compare").value = ""; showForm(); byId("compare").focus(); });
byId("link").addEventListener("click", () => copy(formLink(), byId("linked")));
