// Buttons with data-copy: copy the code beside them.

import { copy } from "../site/dom.js";

document.addEventListener("click", ({ target }) => {
  const box = target.closest("[data-copy]")?.parentElement;
  if (box) copy(box.querySelector("code").textContent, box.querySelector("[role=status]"));
});
