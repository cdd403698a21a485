// Opens a sweep's page, sorts its tables by every column, and fails on any error of its script.
const { readFileSync } = require("node:fs");
const { JSDOM, VirtualConsole } = require("jsdom");

const errors = [];
const told = new VirtualConsole();
told.on("jsdomError", (error) => errors.push(error.message));
told.on("error", (...all) => errors.push(all.join(" ")));
const { window } = new JSDOM(readFileSync(process.argv[2], "utf8"), { runScripts: "dangerously", virtualConsole: told });
const { document } = window;
const check = (holds, what) => {
  if (!holds) throw new Error(what);
};
check(document.querySelector("h1").textContent.length > 0, "no title");
check(document.querySelectorAll("svg").length >= 2, "fewer than two figures");
check(document.querySelectorAll("[src], link[href], a[href^=http]").length === 0, "something from outside");
const tables = [...document.querySelectorAll("table.sortable")];
check(tables.length >= 2, `${tables.length} tables`);
let columns = 0;
for (const table of tables) {
  const rows = () => [...table.tBodies[0].rows];
  const count = rows().length;
  check(count >= 4, `${count} rows`);
  [...table.querySelectorAll("th")].forEach((head, n) => {
    columns += 1;
    for (const order of ["ascending", "descending"]) {
      head.dispatchEvent(new window.Event("click"));
      check(head.getAttribute("aria-sort") === order, `${head.textContent}: ${head.getAttribute("aria-sort")}`);
      check(rows().length === count, "rows are lost");
      const values = rows().map((row) => row.cells[n].dataset.v).filter((v) => v !== undefined).map(Number);
      const sorted = [...values].sort((a, b) => (order === "ascending" ? a - b : b - a));
      check(values.every((v, i) => v === sorted[i]), `${head.textContent} is not sorted ${order}`);
    }
  });
}
check(errors.length === 0, errors.join("; "));
console.log(`${tables.length} tables, ${columns} columns sorted both ways, ${document.querySelectorAll("svg").length} figures, no errors`);
