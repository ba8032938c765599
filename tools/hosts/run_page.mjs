// onnxruntime-web in Chromium: opens the file once and runs it on every input, without a page of its own.
//
//   node run_page.mjs EXAMPLES URL CHROMIUM < {"model": ..., "data": null | ..., "provider": ..., "tokens": [[...], ...]}
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , examples, url, executablePath] = process.argv;
const { chromium } = createRequire(`${examples}/package.json`)("playwright-core");
const given = JSON.parse(readFileSync(0, "utf8"));
const args = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"];
// Without a GPU, Chromium's own software stands for one.
if (given.provider === "webgpu") args.push("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader");
else args.push("--disable-gpu");
const browser = await chromium.launch({ executablePath, headless: true, args });
try {
  const page = await browser.newPage();
  await page.goto(url);
  const found = await page.evaluate(async ({ model, data, provider, tokens }) => {
    const ort = await import("/node_modules/onnxruntime-web/dist/ort.bundle.min.mjs");
    const beside = data ? { externalData: [{ path: data, data: `/${data}` }] } : {};
    const session = await ort.InferenceSession.create(`/${model}`, { executionProviders: [provider], ...beside });
    const runs = [];
    for (const ids of tokens) {
      const array = BigInt64Array.from(ids, BigInt);
      const began = performance.now();
      const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("int64", array, [1, array.length]) });
      const values = await outputs[session.outputNames.at(-1)].getData();
      runs.push({ seconds: (performance.now() - began) / 1000, data: [...values] });
    }
    return runs;
  }, given);
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
}
