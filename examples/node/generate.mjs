// Continues token numbers, or a text, by a file that `twoheads export --step` wrote.
//
//   node generate.mjs FILE.onnx COUNT - 504 2430 314            COUNT new tokens behind these
//   node generate.mjs FILE.onnx COUNT tokenizer.json "a text"
//
// Every run takes the tokens that are new and what the last run kept of those before. Prints the new tokens (and their
// text) and the seconds of the prompt and of a step as one line of JSON.
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

/** What there is of an input before the first token: no keys and values, states of zeros. */
function empty({ shape }) {
  const dims = shape.map((dim) => (typeof dim === "string" ? 0 : dim));
  return new ort.Tensor("float32", new Float32Array(dims.reduce((size, dim) => size * dim, 1)), dims);
}

const mostLikely = (logits) => logits.reduce((best, value, at) => (value > logits[best] ? at : best), 0);

/** The `count` most likely tokens behind `tokens`, and the seconds of every run. */
async function generate(session, tokens, count) {
  const [input, ...kept] = session.inputMetadata;
  const [last, ...present] = session.outputNames;
  if (last !== "last" || kept.length !== present.length) {
    throw new Error("the file does not extend a sequence: export it with --step");
  }
  let past = Object.fromEntries(kept.map((port) => [port.name, empty(port)]));
  const found = [];
  const seconds = [];
  let fresh = tokens;
  for (let at = 0; at < count; at += 1) {
    const ids = new ort.Tensor("int64", BigInt64Array.from(fresh, BigInt), [1, fresh.length]);
    const began = performance.now();
    const outputs = await session.run({ [input.name]: ids, ...past });
    seconds.push((performance.now() - began) / 1000);
    past = Object.fromEntries(kept.map(({ name }, port) => [name, outputs[present[port]]])); // in the same order
    fresh = [mostLikely(outputs.last.data)];
    found.push(...fresh);
  }
  return { found, seconds };
}

const [, , file, count, tokenizerFile, ...rest] = process.argv;
if (!rest.length) {
  console.error("usage: node generate.mjs FILE.onnx COUNT - TOKEN... | FILE.onnx COUNT tokenizer.json \"a text\"");
  process.exit(2);
}
try {
  const tokenizer = tokenizerFile === "-" ? null : new Tokenizer(JSON.parse(readFileSync(tokenizerFile, "utf8")), {});
  const session = await ort.InferenceSession.create(file, {
    logSeverityLevel: 4, // what goes wrong is an error, told below
    extra: { session: { intra_op: { allow_spinning: "0" } } }, // leaves the cores to others between operators
  });
  const tokens = tokenizer ? tokenizer.encode(rest.join(" ")).ids : rest.map(Number);
  const { found, seconds } = await generate(session, tokens, Number(count));
  const steps = seconds.slice(1).reduce((sum, one) => sum + one, 0) / Math.max(1, seconds.length - 1);
  const text = tokenizer ? { text: tokenizer.decode(found) } : {};
  console.log(JSON.stringify({ tokens: found, ...text, prompt_seconds: seconds[0], step_seconds: steps }));
} catch (error) {
  console.error(`generate.mjs: ${error.message}`); // the model's own limits come with the reason in them
  process.exitCode = 1;
}
