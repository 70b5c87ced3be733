// Numbers for reading: the same format on every page. What is rounded here is exact in the element's title.

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export const UNKNOWN = "–";

/** Write a count as 1,204 or 1.2 M; null as a dash. */
export function count(number) {
  if (number === null || number === undefined) return UNKNOWN;
  return Math.abs(number) < 10_000 ? WHOLE.format(number) : SHORT.format(number).replace(/([A-Z])$/, " $1");
}

/** Write a count with all its digits. */
export const exactly = (number) => (number === null || number === undefined ? UNKNOWN : WHOLE.format(number));

/** Write US dollars (a number or a text) as $12.34, less than ten cents with two significant digits. */
export function money(dollars) {
  if (dollars === null || dollars === undefined) return UNKNOWN;
  const value = Number(dollars);
  if (value === 0 || Math.abs(value) >= 0.1) {
    return value >= 100_000 ? `$${count(value)}` : `$${value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  }
  return value < 1e-9 ? "$0.00" : `$${value.toFixed(Math.min(9, 1 - Math.floor(Math.log10(value))))}`;
}

/** Write US dollars (a text with nine decimals) with all their digits, but for zeros at the end. */
export const exactMoney = (dollars) => (dollars === null || dollars === undefined ? UNKNOWN : `$${String(dollars).replace(/(\.\d\d\d*?)0+$/, "$1")}`);

/** Write what requests cost of which some may be of models without a price: `at least $1.20`, or `unknown`. */
export function knownMoney({ cost, unpriced_requests: unpriced }, write = money) {
  if (!unpriced) return write(cost);
  return cost === null ? "unknown" : `at least ${write(cost)}`;
}

/** Write milliseconds as 340 ms or 1.25 s; null as a dash. */
export function milliseconds(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  return ms < 1000 ? `${ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** Write a share of 1 as 36 %, or 36.4 % where that is not whole; null as a dash. */
export const percent = (share) => (share === null || share === undefined ? UNKNOWN : `${Number((share * 100).toFixed(1))} %`);

/** The browser's time zone by its IANA name. */
export const TIME_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/**
 * The time zone of usage, by whole hours: the browser's, or UTC where the browser's hours begin in between (India's).
 * Usage is kept by whole hours of UTC, so the days of such a zone can't be told.
 */
export const IS_LOCAL = [0, 3, 6, 9].every((month) => new Date(new Date().getFullYear(), month, 1).getTimezoneOffset() % 60 === 0);
export const USAGE_ZONE = IS_LOCAL ? TIME_ZONE : "UTC";

/** Write a moment in local time: the time alone where it is today, with the date where it is not. */
export function moment(date, { seconds = false, timeZone = undefined } = {}) {
  const time = { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined, hourCycle: "h23", timeZone };
  const day = (of) => of.toLocaleDateString("en-CA", { timeZone });
  const isToday = day(date) === day(new Date());
  return date.toLocaleString("en-GB", isToday ? time : { ...time, day: "numeric", month: "short", year: "numeric" });
}

/** Write so many seconds as 42 s, 12 min, 5 h or 6 days. */
export function duration(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  return whole < 172_800 ? `${Math.round(whole / 3600)} h` : `${Math.round(whole / 86_400)} days`;
}

/** Name a limit, column or choice for reading: `requests_per_minute` is "requests per minute". */
export const words = (name) => String(name).replaceAll("_", " ");

/** Say whose a limit of /usage or of a refusal is; `account` says how an account is called. */
export function holder({ owner, maker }, account) {
  if (maker) return `the key ${maker} that made this one`;
  return owner.startsWith("key") ? "this key" : account;
}
