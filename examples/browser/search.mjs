// Similarity search with an embedding model that `twoheads export` wrote: nothing leaves the page.
//
// The file takes texts up to the model's own limit in one call (MiniLM: 512 tokens); longer ones are cut into passages
// of as many tokens, and a text is as similar to the query as its best passage.
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const options = new URLSearchParams(location.search);
const MODEL = options.get("model") ?? "minilm.onnx";
const TOKENIZER = options.get("tokenizer") ?? "tokenizer.json";
const PROVIDER = options.get("ep") ?? "wasm"; // or webgpu
const LIMIT = Number(options.get("limit") ?? 512); // tokens that the model takes

const show = (id) => document.getElementById(id);
const status = (text) => (show("status").textContent = text);

async function load() {
  const response = await fetch(TOKENIZER);
  if (!response.ok) throw new Error(`${TOKENIZER}: ${response.status} ${response.statusText}`);
  const tokenizer = new Tokenizer(await response.json(), {});
  const session = await ort.InferenceSession.create(MODEL, { executionProviders: [PROVIDER] });
  return { tokenizer, session };
}

/** Token numbers in parts that the model takes, each with the marks that it wants around a text. */
function passages({ tokenizer }, text) {
  const [first, last] = [tokenizer.encode("").ids[0], tokenizer.encode("").ids.at(-1)];
  const inner = tokenizer.encode(text, { add_special_tokens: false }).ids;
  const parts = [];
  for (let at = 0; at < inner.length || !parts.length; at += LIMIT - 2) {
    parts.push([first, ...inner.slice(at, at + LIMIT - 2), last]);
  }
  return parts;
}

/** The embedding of a passage, of unit length. */
async function embed({ session }, ids) {
  const tokens = BigInt64Array.from(ids, BigInt);
  const feeds = { [session.inputNames[0]]: new ort.Tensor("int64", tokens, [1, tokens.length]) };
  const { embedding } = await session.run(feeds);
  return embedding.data;
}

const dot = (a, b) => a.reduce((sum, x, at) => sum + x * b[at], 0);

/** Texts with their similarity to the query, the most similar first. */
async function search(loaded, query, texts) {
  const [wanted] = passages(loaded, query);
  const target = await embed(loaded, wanted);
  const found = [];
  for (const text of texts) {
    const scores = [];
    for (const part of passages(loaded, text)) scores.push(dot(target, await embed(loaded, part)));
    found.push({ text, score: Math.max(...scores), passages: scores.length });
  }
  return found.sort((a, b) => b.score - a.score);
}

function list(found) {
  show("results").replaceChildren(
    ...found.map(({ text, score }) => {
      const item = document.createElement("li");
      const number = document.createElement("span");
      number.className = "score";
      number.textContent = score.toFixed(3);
      item.append(number, text.length > 300 ? `${text.slice(0, 300)} ...` : text);
      return item;
    }),
  );
}

async function main() {
  const began = performance.now();
  const loaded = await load();
  status(`Ready after ${((performance.now() - began) / 1000).toFixed(1)} s, on ${PROVIDER}.`);
  const run = async () => {
    show("search").disabled = true;
    try {
      const start = performance.now();
      const texts = show("texts").value.split(/\n\s*\n/).map((text) => text.trim()).filter(Boolean);
      const found = await search(loaded, show("query").value, texts);
      list(found);
      const parts = found.reduce((sum, text) => sum + text.passages, 0);
      status(`${texts.length} texts, ${parts} passages, ${((performance.now() - start) / 1000).toFixed(1)} s.`);
    } catch (error) {
      status(error.message);
    } finally {
      show("search").disabled = false;
    }
  };
  show("search").addEventListener("click", run);
  show("query").addEventListener("keydown", (event) => event.key === "Enter" && run());
  show("search").disabled = false;
  window.twoheads = { embed: (ids) => embed(loaded, ids), passages: (text) => passages(loaded, text) };
}

main().catch((error) => status(`Could not load: ${error.message}`));
