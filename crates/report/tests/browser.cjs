// Opens a sweep's page in a browser, looks whether figures have a size and text, sorts a table by clicks, fails on any error in
// the console, and keeps a picture.
const puppeteer = require("puppeteer-core");

const check = (holds, what) => {
  if (!holds) throw new Error(what);
};

(async () => {
  const [, , program, page, picture] = process.argv;
  const browser = await puppeteer.launch({ executablePath: program, args: ["--no-sandbox"] });
  try {
    const tab = await browser.newPage();
    const errors = [];
    tab.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    tab.on("pageerror", (error) => errors.push(error.message));
    tab.on("requestfailed", (request) => errors.push(`failed: ${request.url()}`));
    await tab.setViewport({ width: 1200, height: 900 });
    await tab.goto(`file://${page}`);
    const figures = await tab.$$eval("svg", (all) =>
      all.map((svg) => [svg.getBoundingClientRect().width, svg.querySelectorAll("text").length]),
    );
    check(figures.length >= 2, `${figures.length} figures`);
    check(figures.every(([width, texts]) => width > 200 && texts > 3), `a figure without size or text: ${figures}`);
    const column = () =>
      tab.$eval("table.sortable", (table) => {
        const heads = [...table.querySelectorAll("th")];
        const n = heads.findIndex((head) => head.textContent === "bytes");
        return [...table.tBodies[0].rows].map((row) => Number(row.cells[n].dataset.v));
      });
    const head = (await tab.$$("table.sortable th"))[(await tab.$$eval("table.sortable", (all) =>
      [...all[0].querySelectorAll("th")].findIndex((head) => head.textContent === "bytes"),
    ))];
    for (const direction of [1, -1]) {
      await head.click();
      const values = await column();
      const sorted = [...values].sort((a, b) => direction * (a - b));
      check(values.length > 1 && values.every((v, i) => v === sorted[i]), `not sorted: ${values}`);
    }
    await tab.screenshot({ path: picture, fullPage: true });
    check(errors.length === 0, errors.join("; "));
    console.log(`${await browser.version()}: ${figures.length} figures, a table sorted both ways, no errors; ${picture}`);
  } finally {
    await browser.close();
  }
})().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
