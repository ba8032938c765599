// Similarity search with an embedding model that `twoheads export` wrote: nothing leaves the page.
//
// The file takes texts up to the model's own limit in one call (MiniLM: 512 tokens); longer ones are cut into passages
// of as many tokens, and a text is as similar to the query as its best passage.
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const options = new URLSearchParams(location.search);
const MODEL = options.get("model") ?? "minilm.onnx";
const TOKENIZER = options.get("tokenizer") ?? "tokenizer.json";
const LIMIT = Number(options.get("limit") ?? 512); // tokens that the model takes

const show = (id) => document.getElementById(id);
const status = (text) => (show("status").textContent = text);

async function fetchTokenizer() {
  const response = await fetch(TOKENIZER);
  if (!response.ok) throw new Error(`${TOKENIZER}: ${response.status} ${response.statusText}`);
  return new Tokenizer(await response.json(), {});
}

/** What runs the model where `wanted` is asked for, and why, if it is something else. */
async function provider(wanted) {
  if (wanted !== "webgpu") return { name: "wasm", note: "" };
  if (!navigator.gpu) return { name: "wasm", note: " This browser has no WebGPU here (it needs https or localhost)." };
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return { name: "wasm", note: " WebGPU finds no GPU that it may use." };
  const { vendor, architecture } = adapter.info;
  return { name: "webgpu", note: ` The GPU is ${[vendor, architecture].filter(Boolean).join(" ") || "unnamed"}.` };
}

/** The model on what was chosen. A GPU that can't run it is told with the reason; WASM can always be chosen. */
async function load(tokenizer, wanted) {
  const { name, note } = await provider(wanted);
  try {
    const session = await ort.InferenceSession.create(MODEL, { executionProviders: [name] });
    await embed({ session }, [0]); // what an operator lacks shows in a run
    return { tokenizer, session, name, note };
  } catch (error) {
    throw name === "webgpu" ? new Error(`WebGPU can't run this model, choose WASM: ${error.message}`) : error;
  }
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

/** Searches on click, on what was chosen last. */
function connect(tokenizer) {
  let loaded = null;
  const open = async () => {
    show("search").disabled = show("provider").disabled = true;
    status("Loading the model ...");
    const began = performance.now();
    try {
      await loaded?.session.release();
      loaded = null;
      loaded = await load(tokenizer, show("provider").value);
      window.twoheads = { embed: (ids) => embed(loaded, ids), passages: (text) => passages(loaded, text) };
      show("search").disabled = false;
      status(`Ready after ${((performance.now() - began) / 1000).toFixed(1)} s, on ${loaded.name}.${loaded.note}`);
    } catch (error) {
      status(`Could not load: ${error.message}`);
    }
    show("provider").disabled = false;
  };
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
  show("query").addEventListener("keydown", (event) => event.key === "Enter" && !show("search").disabled && run());
  show("provider").addEventListener("change", open);
  return open();
}

show("provider").value = options.get("ep") === "webgpu" ? "webgpu" : "wasm";
fetchTokenizer()
  .then(connect)
  .catch((error) => status(`Could not load: ${error.message}`));
