// Opens the example's page in Chromium, searches, and prints what it shows and computes as JSON.
//
//   node drive_page.mjs EXAMPLES URL CHROMIUM < {"query": ..., "texts": [...], "tokens": [[...], ...]}
//
// With "gpu", Chromium's own software stands for a GPU; "choose" is what is chosen once the page is loaded.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , examples, url, executablePath] = process.argv;
const { chromium } = createRequire(`${examples}/package.json`)("playwright-core");
const { query, texts, tokens, gpu, choose } = JSON.parse(readFileSync(0, "utf8"));
const args = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"];
args.push("--disable-component-update", "--disable-sync");
if (gpu) args.push("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader");
else args.push("--disable-gpu");
const browser = await chromium.launch({ executablePath, headless: true, args });
try {
  const page = await browser.newPage();
  const console_ = [];
  page.on("console", (message) => console_.push(message.text()));
  page.on("pageerror", (error) => console_.push(String(error)));
  await page.goto(url);
  const settled = () => !document.getElementById("status").textContent.startsWith("Loading");
  await page.waitForFunction(settled, null, { timeout: 120_000 });
  let loaded = await page.textContent("#status");
  if (choose) {
    await page.selectOption("#provider", choose);
    await page.waitForFunction(settled, null, { timeout: 120_000 });
    loaded = await page.textContent("#status");
  }
  let shown = [];
  let embeddings = [];
  let failed = "";
  let searched = "";
  const search = async () => {
    await page.fill("#texts", texts.join("\n\n"));
    await page.fill("#query", query);
    await page.click("#search");
    await page.waitForFunction(() => !document.getElementById("search").disabled, null, { timeout: 120_000 });
    searched = await page.textContent("#status");
    shown = await page.$$eval("#results li", (items) => items.map((item) => item.textContent));
  };
  if (loaded.startsWith("Ready")) {
    if (query) await search();
    embeddings = await page.evaluate(async (all) => {
      const found = [];
      for (const ids of all) found.push([...(await window.twoheads.embed(ids))]);
      return found;
    }, tokens);
    failed = await page.evaluate(async () => window.twoheads.embed([101, -5, 102]).catch((error) => String(error)));
  }
  console.log(JSON.stringify({ loaded, searched, shown, embeddings, failed: String(failed), console: console_ }));
} finally {
  await browser.close();
}
