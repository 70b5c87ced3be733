// The account's latest requests, and what became of one of them.

import { byId, copy, element, table } from "./dom.js";
import { count, exactly, exactMoney, milliseconds, money, moment, words } from "./format.js";
import { explain } from "./refusals.js";
import { send } from "./service.js";

const COLUMNS = [{ label: "Time" }, { label: "Status" }, { label: "Model" }, { label: "Key" }, { label: "Tokens", isNumber: true }, { label: "Cost", isNumber: true }, { label: "Latency", isNumber: true }];
const FACTS = {
  id: String,
  label: String,
  admitted_at: (at) => moment(new Date(at), { seconds: true }),
  cost: exactMoney,
  saved_cost: exactMoney,
  latency_ms: milliseconds,
  first_token_ms: milliseconds,
};

/** Fetch a page of requests, `{requests, next}`: the latest, or those before one of them. */
export async function fetchRecords(key, before = null) {
  return (await send(`/requests?limit=20${before ? `&before=${before}` : ""}`, { key })).json();
}

/** Show the requests of the pages fetched so far. `more` fetches and shows the next page. */
export function showRecords(records, next, more) {
  byId("records").replaceChildren(records.length ? table("Latest requests of the account", COLUMNS, records.map(row)) : "No request yet.");
  byId("older").hidden = !next;
  byId("older").onclick = more;
}

function row(record) {
  const tokens = record.input_tokens + record.output_tokens;
  const open = element("button", { type: "button", class: "link", click: () => showRecord(record) }, moment(new Date(record.admitted_at), { seconds: true }));
  const code = record.error_code ? [" ", explain({ code: record.error_code }, element("code", {}, record.error_code))] : [];
  const times = record.count > 1 ? ` × ${exactly(record.count)}` : "";
  return [
    { text: open },
    { text: [element("span", { class: record.status < 400 ? "" : "bad-text" }, `${record.status}${times}`), ...code] },
    record.model || "–",
    record.key,
    { text: count(tokens), title: `${exactly(record.input_tokens)} in, ${exactly(record.output_tokens)} out` },
    { text: record.cost === null ? "unknown" : money(record.cost), title: record.cost && exactMoney(record.cost) },
    milliseconds(record.latency_ms),
  ];
}

function showRecord(record) {
  const facts = Object.entries(record).filter(([, value]) => value !== null && value !== "");
  const dialog = byId("record");
  const told = element("span", { class: "small quiet", role: "status" });
  dialog.replaceChildren(
    element("h2", { id: "record-title" }, `Request with status ${record.status}`),
    element("dl", { class: "facts" }, facts.map(([name, value]) => element("div", { class: name === "id" && "whole" }, element("dt", {}, words(name)), element("dd", {}, (FACTS[name] ?? String)(value))))),
    element("p", { class: "small quiet" }, "The same as JSON: ", element("code", {}, `GET /requests/${record.id}`)),
    element(
      "div",
      { class: "actions" },
      element("button", { type: "button", class: "main", click: () => dialog.close() }, "Close"),
      element("button", { type: "button", click: () => copy(record.id, told) }, "Copy id"),
      told,
    ),
  );
  dialog.showModal();
}
