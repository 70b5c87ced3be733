// CSV files made in the browser. Texts are escaped so that spreadsheets don't run them as formulas.

/** Return a value as a CSV cell: texts are quoted, with an apostrophe before formulas; null is empty. */
export function cell(value) {
  if (value === null || value === undefined) return "";
  const text = String(value);
  if (typeof value === "number" || /^-?\d+(\.\d+)?$/.test(text)) return text;
  return `"${(/^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
}

const COLUMNS = {
  requests: (each) => each.requests,
  invalid: (each) => each.errors.invalid,
  limited: (each) => each.errors.limited,
  failed: (each) => each.errors.failed,
  cache_hits: (each) => each.cache_hits,
  cache_misses: (each) => each.cache_misses,
  cache_hit_rate: (each) => each.cache_hit_rate,
  input_tokens: (each) => each.input_tokens,
  cached_tokens: (each) => each.cached_tokens,
  output_tokens: (each) => each.output_tokens,
  cost_usd: (each) => each.cost,
  unpriced_requests: (each) => each.unpriced_requests,
  saved_cost_usd: (each) => each.saved_cost,
  latency_p50_ms: (each) => each.latency_ms?.p50,
  latency_p95_ms: (each) => each.latency_ms?.p95,
  latency_p99_ms: (each) => each.latency_ms?.p99,
  first_token_p50_ms: (each) => each.first_token_ms?.p50,
  first_token_p95_ms: (each) => each.first_token_ms?.p95,
  first_token_p99_ms: (each) => each.first_token_ms?.p99,
};

/** Return a series by time and `group` as CSV (RFC 4180). */
export function usageCsv(series, group) {
  const head = ["start", group, ...Object.keys(COLUMNS)].join(",");
  const rows = series.map((each) => [each.start, each[group], ...Object.values(COLUMNS).map((read) => read(each))].map(cell).join(","));
  return [head, ...rows, ""].join("\r\n");
}

/** Download a text as a file. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
