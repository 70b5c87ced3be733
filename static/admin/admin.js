// Unfold's pages have no main landmark: screen readers jump to it.
addEventListener("DOMContentLoaded", () => document.getElementById("content")?.setAttribute("role", "main"));
