// Runs a file that `twoheads export` wrote on a text, and prints every output, and the time, as one line of
// JSON.
//
//   node run.mjs FILE.onnx tokenizer.json "a text"
//   node run.mjs FILE.onnx - 101 7592 102            token numbers instead of a text
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

/** The token numbers of a text, with the marks that the model wants around it. */
function encode(file, text) {
  const tokenizer = new Tokenizer(JSON.parse(readFileSync(file, "utf8")), {});
  return tokenizer.encode(text).ids;
}

/** All outputs of the model for these tokens, by name, and the seconds that they took. */
export async function run(file, ids) {
  const session = await ort.InferenceSession.create(file, {
    logSeverityLevel: 4, // what goes wrong is an error, told below
    extra: { session: { intra_op: { allow_spinning: "0" } } }, // leaves the cores to others between operators
  });
  const [input] = session.inputNames;
  const tokens = BigInt64Array.from(ids, BigInt);
  const began = performance.now();
  const outputs = await session.run({ [input]: new ort.Tensor("int64", tokens, [1, tokens.length]) });
  return { outputs, seconds: (performance.now() - began) / 1000 };
}

const [, , file, tokenizer, ...rest] = process.argv;
if (!rest.length) {
  console.error('usage: node run.mjs FILE.onnx tokenizer.json "a text" | node run.mjs FILE.onnx - TOKEN...');
  process.exit(2);
}
try {
  const ids = tokenizer === "-" ? rest.map(Number) : encode(tokenizer, rest.join(" "));
  const { outputs, seconds } = await run(file, ids);
  const plain = Object.entries(outputs).map(([name, tensor]) => [name, { shape: tensor.dims, data: [...tensor.data] }]);
  console.log(JSON.stringify({ tokens: ids, seconds, ...Object.fromEntries(plain) }));
} catch (error) {
  console.error(`run.mjs: ${error.message}`); // the model's own limits come with the reason in them
  process.exitCode = 1;
}
