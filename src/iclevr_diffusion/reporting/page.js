"use strict";
// Headings become buttons that sort their table. Without this script the tables are complete.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const headings = [...table.querySelectorAll("th.sortable")];
  const value = (row, column) => {
    const text = row.cells[column].dataset.sort;
    return headings[column].classList.contains("number") && text !== undefined ? Number(text) : text;
  };
  const sort = (column, direction) => {
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    const order = new Intl.Collator("en", { numeric: true }).compare;
    rows.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return direction * (typeof a === "number" ? a - b : order(a, b));
    });
    body.append(...rows.map(([, row]) => row));
    for (const heading of headings) heading.removeAttribute("aria-sort");
    headings[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    // Figures begin with the largest, words with the first.
    const first = heading.classList.contains("number") ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const again = heading.getAttribute("aria-sort") === first;
      sort(column, (first === "ascending") !== again ? 1 : -1);
    });
  });
}
