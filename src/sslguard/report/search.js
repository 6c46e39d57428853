"use strict";
// Shows only the rows of tables that hold every word of the field, and unfolds where such a row is.
const field = document.getElementById("search");
const found = document.getElementById("found");
const rows = [...document.querySelectorAll("main tbody tr")];
const folds = [...document.querySelectorAll("main details")];
const texts = rows.map((row) => row.textContent.toLowerCase());
const before = folds.map((fold) => fold.open);
function search() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
  const shown = rows.filter((row) => !row.hidden);
  folds.forEach((fold, i) => {
    fold.open = words.length ? shown.some((row) => fold.contains(row)) : before[i];
  });
  found.textContent = words.length ? `${shown.length} of ${rows.length} rows` : "";
}
field.addEventListener("input", search);
field.closest("form").addEventListener("submit", (event) => event.preventDefault());
field.closest("form").hidden = false;
