// Helpers for DOM elements. Text is inserted as text, never parsed as HTML.

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Create an element. Attributes that are null or false are left out; functions become listeners of the event of that
 * name. Children are elements or texts.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Create a table in a scrolling box. Cells are texts, or `{text, title}`: a text or elements, and the exact value as title. */
export function table(caption, columns, rows) {
  const head = columns.map(({ label, isNumber }) => element("th", { scope: "col", class: isNumber && "number" }, label));
  const cells = (row) =>
    row.map((cell, index) => {
      const { text, title } = typeof cell === "object" && cell !== null ? cell : { text: cell };
      const shown = { title, class: columns[index].isNumber && "number" };
      return index === 0 ? element("th", { ...shown, scope: "row" }, text) : element("td", shown, text);
    });
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, head)),
      element("tbody", {}, rows.map((row) => element("tr", {}, cells(row)))),
    ),
  );
}

/** Copy a text to the clipboard, and announce it briefly in a live region. */
export async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied";
  } catch {
    told.textContent = "This browser doesn't let pages copy: select the text instead.";
  }
  setTimeout(() => { told.textContent = ""; }, 4000);
}
