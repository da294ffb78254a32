/* A search over the rows of each long table but those of charts. `/` leads to the first one. */

const LONG = 20; // rows

function addSearch(table) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const input = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const status = element("span", { role: "status" });
  const search = () => {
    const wanted = input.value.trim().toLowerCase();
    rows.forEach((row, place) => (row.hidden = !texts[place].includes(wanted)));
    const found = rows.filter((row) => !row.hidden).length;
    status.textContent = `${found.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
  };
  input.addEventListener("input", search);
  const label = element("label", { class: "search" }, `Search ${table.caption.textContent}`, input);
  table.parentElement.before(element("p", { class: "filters quiet screen" }, label, status));
  search();
}

for (const table of document.querySelectorAll(".scroll > table")) {
  if (table.tBodies[0].rows.length >= LONG && !table.closest("figure")) addSearch(table);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  const first = [...document.querySelectorAll("input")].find((input) => input.checkVisibility());
  if (!first || event.target.matches("input")) return;
  first.focus();
  event.preventDefault();
});
