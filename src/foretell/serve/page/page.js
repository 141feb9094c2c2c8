"use strict";
const $ = (id) => document.getElementById(id);
const DEEPEST = 5; // colours there are; deeper ones share the last
const SEEN = "foretell-seen"; // kept by the browser: whether somebody has been here
const FIRST_TOKENS = 48;
const MESSAGE = "Explain in three sentences why the sky is blue.";
let model = null;
let running = null; // AbortController of what is being generated

class Run {
  constructor(section, drafted) {
    this.section = section;
    this.drafted = drafted;
    this.text = section.querySelector(".text");
    this.figures = Object.fromEntries(
      [...section.querySelectorAll("[data-figure]")].map((cell) => [cell.dataset.figure, cell]));
    this.counts = [...section.querySelectorAll(".legend span")];
    this.clear("");
  }

  clear(prompt) {
    this.by = this.counts.map(() => 0);
    this.written = "";
    this.forward = this.speed = 0;
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = prompt;
    this.text.replaceChildren(given);
    this.show(null);
  }

  add(drafts) {
    const atEnd = this.text.scrollTop + this.text.clientHeight > this.text.scrollHeight - 24;
    for (const [text, depth] of drafts) {
      const token = document.createElement("span");
      token.textContent = text;
      if (depth) token.className = `d${Math.min(depth, DEEPEST)}`;
      if (!text.trim()) token.classList.add("blank");
      token.title = depth ? `drafted at depth ${depth}` : "the backbone's own";
      this.text.append(token);
      this.written += text;
      this.by[Math.min(depth, this.by.length - 1)] += 1;
    }
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
  }

  show(taken) {
    const tokens = taken ? taken.tokens_per_forward * taken.forwards : 0;
    this.forward = taken ? taken.tokens_per_forward : 0;
    this.speed = taken && taken.seconds ? tokens / taken.seconds : 0;
    this.figures.forward.textContent = taken ? this.forward.toFixed(2) : "–";
    this.figures.speed.textContent = this.speed ? this.speed.toFixed(this.speed < 10 ? 1 : 0) : "–";
    this.figures.count.textContent = taken ? Math.round(tokens) : "–";
    this.counts.forEach((cell, depth) => { cell.textContent = this.by[depth]; });
  }

  async go(given, path, asked, signal) {
    this.clear(given);
    this.section.classList.add("running");
    this.text.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of stream(path, { ...asked, drafter: this.drafted ? "default" : "none" }, signal)) {
        if (chunk.error) throw new Error(chunk.error.message);
        if (!chunk.foretell) continue;
        this.add(chunk.choices[0].drafts ?? []);
        this.show(chunk.foretell);
        bars();
      }
    } finally {
      this.section.classList.remove("running");
      this.text.removeAttribute("aria-busy");
    }
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-field").hidden = false;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answered ${answer.status}.`);
}

async function* stream(path, asked, signal) {
  const answer = await call(path, { method: "POST", body: JSON.stringify(asked), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function bars() {
  const fastest = Math.max(plain.speed, drafted.speed) || 1;
  for (const run of [plain, drafted]) {
    run.section.querySelector(".bar i").style.width = `${(100 * run.speed) / fastest}%`;
  }
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function verdict(greedy) {
  const ratio = drafted.speed / plain.speed;
  let speed = "Multi-token prediction is as fast as plain decoding here";
  if (ratio > 1.03) speed = `Multi-token prediction is ${ratio.toFixed(2)}× as fast as plain decoding here`;
  if (ratio < 0.97) speed = `Multi-token prediction is slower here, ${ratio.toFixed(2)}× plain decoding`;
  const forward = `${drafted.forward.toFixed(2)} tokens per forward pass`;
  let text = "sampled, so another text of the same distribution";
  if (greedy) text = drafted.written === plain.written ? "the same text" : "texts that part at a near-tie";
  say(`${speed}: ${forward}, ${text}.`);
}

async function known() {
  if (model) return;
  model = (await (await call("/v1/models")).json()).data[0];
  const drafts = model.depth ? `${model.drafter}, drafts up to ${model.depth} tokens` : "no heads";
  $("model").textContent = `${model.id} · ${drafts}`;
  $("tokens").max = model.max_tokens;
  if ($("tokens").valueAsNumber > model.max_tokens) $("tokens").value = model.max_tokens;
  if (!model.depth) {
    $("mtp").checked = false;
    $("mtp").disabled = true;
  }
  $("raw-field").hidden = !model.chat;
  if (model.chat && $("prompt").value === $("prompt").defaultValue) $("prompt").value = MESSAGE;
  legend(model.depth);
  arrange();
}

function chats() {
  return model?.chat && !$("raw").checked;
}

function legend(depth) {
  const names = ["backbone", ...Array.from({ length: depth }, (_, k) => `depth ${k + 1}`)];
  $("legend").replaceChildren(...names.slice(0, DEEPEST + 1).map((name, k) => {
    const item = document.createElement("li");
    const [label, count] = [document.createElement("b"), document.createElement("span")];
    item.className = `d${k}`;
    label.textContent = k === DEEPEST && depth > DEEPEST ? `${name} and deeper` : name;
    count.textContent = "0";
    item.append(label, " ", count);
    return item;
  }));
  drafted.counts = [...$("legend").querySelectorAll("span")];
  drafted.clear("");
}

function arrange() {
  $("with").hidden = !$("mtp").checked;
  $("asked").textContent = chats() ? "Message" : "Prompt";
}

async function generate(tokens = $("tokens").valueAsNumber) {
  if (running) return;
  running = new AbortController();
  $("run").disabled = true;
  $("stop").disabled = false;
  try {
    await known();
    const temperature = $("temperature").valueAsNumber;
    const given = $("prompt").value;
    const what = chats() ? { messages: [{ role: "user", content: given }] } : { prompt: given };
    const path = chats() ? "/v1/chat/completions" : "/v1/completions";
    const shown = chats() ? `${given}\n\n` : given;
    const asked = {
      model: model.id, ...what, max_tokens: tokens, temperature, seed: 0, stream: true, show_drafts: true,
    };
    const both = $("mtp").checked;
    plain.clear("");
    drafted.clear("");
    bars();
    if (both) {
      say("Generating with multi-token prediction…");
      await drafted.go(shown, path, asked, running.signal);
    }
    say("Generating plainly…");
    await plain.go(shown, path, asked, running.signal);
    if (both) verdict(temperature < 0.01);
    else say(`Done: ${plain.speed.toFixed(0)} tokens/s.`);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop").disabled = true;
  }
}

const plain = new Run($("plain"), false);
const drafted = new Run($("with"), true);
$("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("stop").addEventListener("click", () => running?.abort());
$("mtp").addEventListener("change", arrange);
$("raw").addEventListener("change", arrange);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
known().then(() => { // a first visit shows a result at once
  if (localStorage.getItem(SEEN)) return undefined;
  localStorage.setItem(SEEN, "yes");
  return generate(Math.min(FIRST_TOKENS, model.max_tokens));
}).catch((error) => say(error.message, true));
