// The guides: buttons that copy code.

import { copy } from "./dom.js";

for (const block of document.querySelectorAll(".code-block")) {
  const button = block.querySelector("button");
  button.hidden = false;
  button.addEventListener("click", () => copy(block.querySelector("pre").textContent, block.querySelector("[role=status]")));
}
