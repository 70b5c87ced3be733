// Making and finding elements. Text always goes in as text: nothing here parses HTML.

/** Return the element of an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element. `attributes` are set as they are, apart from those that are null or false, and from functions, which
 * listen to the event of that name; children are elements or texts.
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

/** Make a table in a box that scrolls by itself. Cells are texts, or `{text, title}` where the exact value differs. */
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

/** Copy a text, and say so in a live region for a moment. */
export async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "Copied";
  } catch {
    told.textContent = "This browser doesn't let pages copy: select the text instead.";
  }
  setTimeout(() => { told.textContent = ""; }, 4000);
}
