// The statement's button; the page is complete without it.
document.getElementById("print").addEventListener("click", () => print());
