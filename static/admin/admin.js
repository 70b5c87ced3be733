// What unfold's pages lack: for screen readers a main landmark, and the names of the sidebar and of some fields; for all
// readers the ISO date beside a date field, which the browser writes in a format of its own.

function nameFields() {
  for (const field of document.querySelectorAll("td[data-label] :is(input, select, textarea):not([aria-label])")) {
    field.setAttribute("aria-label", field.closest("td").dataset.label);
  }
  for (const box of document.querySelectorAll(".select2-container")) {
    const field = box.parentElement.querySelector("select");
    const name = document.querySelector(`label[for="${field?.id}"]`)?.textContent.trim() ?? "";
    for (const shown of box.querySelectorAll("[role=combobox], [role=textbox]")) {
      shown.removeAttribute("aria-labelledby");
      shown.setAttribute("aria-label", name);
    }
  }
}

function showDates() {
  for (const field of document.querySelectorAll("input[type=date], input[type=datetime-local]")) {
    const shown = document.createElement("small");
    const show = () => { shown.textContent = field.value.replace("T", " "); };
    shown.setAttribute("aria-hidden", "true");
    field.addEventListener("input", show);
    field.after(" ", shown);
    show();
  }
}

addEventListener("DOMContentLoaded", () => {
  document.getElementById("main")?.setAttribute("role", "main");
  document.getElementById("nav-sidebar-inner")?.setAttribute("aria-label", "Sidebar");
  for (const icon of document.querySelectorAll(":is(a, button) .material-symbols-outlined")) {
    const isAlone = icon.closest("a, button").textContent.trim() === icon.textContent.trim(); // then it is the name
    if (!isAlone) icon.setAttribute("aria-hidden", "true");
  }
  showDates();
  window.django?.jQuery?.(nameFields); // after Select2 has made them
});

addEventListener("load", () => {
  for (const region of document.querySelectorAll(".simplebar-content-wrapper[role=region]")) region.removeAttribute("role");
  setTimeout(() => { // after Django's script has made the fields that choose several
    for (const icon of document.querySelectorAll(".help-tooltip[aria-label]")) icon.setAttribute("role", "img");
  });
});
