"use strict";
/* The playground: writes with /v1/completions, or answers with /v1/chat/completions (chat.js), and shows
   each stride with its passages. A link such as ?prompt=The json module&compare&run fills in the form and
   starts; ?chat is the conversation. */

const $ = (id) => document.getElementById(id);
const EMPTY = document.querySelector(".empty");
const TINTS = 6;
/* Without an index there are no passages to take beginnings of. */
const EXAMPLES = ["Once upon a time", "The difference between a list and a tuple is"];
const LABEL = 60;

let model = null;
let running = null; // the AbortController of what is being written

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/* What went wrong, in words, and what can be done. */
class Trouble extends Error {
  constructor(message, advice) {
    super(message);
    this.advice = advice || "";
  }
}

function troubleOf(status, error, retryAfter) {
  const message = (error && error.message) || `the server answered ${status}`;
  if (status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
    return new Trouble("This server asks for a key.", "Type it into the field API key.");
  }
  if (status === 429) return new Trouble("The server is busy.", `Try again in ${retryAfter || 5} seconds.`);
  if (error && error.code === "shutting_down")
    return new Trouble("The server is shutting down.", "What was written so far stays here.");
  if (error && error.code === "context_length_exceeded") return new Trouble(message, "Shorten the prompt.");
  return new Trouble(message);
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached.", "Is it still running? Start it and write again.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw troubleOf(answer.status, body && body.error, answer.headers.get("Retry-After"));
}

/* The records of a stream of server-sent events. */
async function* records(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The connection was lost.", "What was written so far stays here.");
    }
    if (part.done) throw new Trouble("The stream ended early.", "What was written so far stays here.");
    const events = (held + part.value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const record = JSON.parse(data);
      if (record.error) throw troubleOf(0, record.error);
      yield record;
    }
  }
}

/* The end of a prompt, so that what is written behind it is in sight. */
function ending(prompt) {
  return prompt.length > 160 ? "… " + prompt.slice(-140).replace(/^\S*\s/, "") : prompt;
}

/* One text and everything that is shown of it. */
class Column {
  constructor(pattern, prompt) {
    this.counts = { reused: 0, prefilled: 0, tokens: 0, seconds: 0 };
    this.card = null; // of the last stride
    this.shown = null; // the passages of that card, as a key
    this.cards = 0;
    this.written = "";
    this.root = element("article", "column");
    const head = element("div", "head");
    head.append(element("h2", "", pattern), element("p", "kind", model.flashback.pattern_summaries[pattern]));
    this.meter = element("div", "meter");
    this.meter.setAttribute("role", "img");
    this.bars = { reused: element("span", "reused"), prefilled: element("span", "prefilled") };
    this.meter.append(this.bars.reused, this.bars.prefilled);
    this.facts = element("p", "facts");
    const body = element("div", "body");
    this.text = element("div", "text");
    this.text.append(element("span", "prompt", ending(prompt)));
    this.passages = element("ol", "passages");
    body.append(this.text, this.passages);
    this.root.append(head, this.meter, this.facts, body);
    this.count();
  }

  begin(event) {
    const key = event.passages.map((one) => one.id).join("\n");
    if (this.card === null || key !== this.shown) this.addCard(event.passages, key);
    this.span = element("span", `stride ${this.tint}`);
    this.span.tabIndex = 0;
    const titles = event.passages.map((one) => one.source).join("; ");
    this.span.setAttribute("aria-label", `stride ${event.stride + 1}, ${titles || "no passage"}`);
    this.span.title = titles || "no passage";
    const card = this.card;
    card.spans.push(this.span);
    this.span.addEventListener("focus", () => light(card, true, true));
    this.span.addEventListener("blur", () => light(card, false));
    this.span.addEventListener("mouseenter", () => light(card, true));
    this.span.addEventListener("mouseleave", () => light(card, false));
    this.text.append(this.span);
  }

  addCard(passages, key) {
    const item = element("li");
    this.tint = passages.length ? `t${this.cards++ % TINTS}` : "tnone";
    item.classList.add(this.tint);
    if (!passages.length) item.append(element("span", "", "No passage: nothing was found or asked for."));
    for (const one of passages) {
      item.append(element("strong", "", one.source));
      item.append(element("span", "facts", `  score ${one.score.toFixed(1)}`));
      item.append(element("p", "", one.excerpt));
    }
    const card = { item, spans: [] };
    item.addEventListener("mouseenter", () => light(card, true));
    item.addEventListener("mouseleave", () => light(card, false));
    this.passages.append(item);
    this.card = card;
    this.shown = key;
  }

  end(event) {
    this.counts.reused += event.reused;
    this.counts.prefilled += event.prefilled;
    this.counts.tokens += event.tokens;
    this.counts.seconds += event.seconds;
    this.count();
  }

  count() {
    const { reused, prefilled, tokens, seconds } = this.counts;
    const share = reused + prefilled ? (100 * reused) / (reused + prefilled) : 0;
    this.bars.reused.style.width = `${share}%`;
    this.bars.prefilled.style.width = `${reused + prefilled ? 100 - share : 0}%`;
    const speed = seconds ? (tokens / seconds).toFixed(1) : "–";
    this.meter.setAttribute("aria-label", `${reused} tokens reused, ${prefilled} prefilled`);
    this.facts.replaceChildren(
      fact(reused.toLocaleString("en"), " reused · ", "reused"),
      fact(prefilled.toLocaleString("en"), " prefilled · ", "prefilled"),
      fact(speed, " tokens/s · "),
      fact(String(tokens), " tokens · "),
      fact(seconds.toFixed(2), " s"),
    );
  }

  take(record) {
    const event = record.flashback;
    if (event && event.event === "stride_start") this.begin(event);
    else if (event && event.event === "stride_end") this.end(event);
    else if (event && event.message) this.note(event.message);
    const choice = record.choices.length ? record.choices[0] : { text: "" };
    const text = choice.delta ? choice.delta.content : choice.text;
    if (!text) return;
    this.written += text;
    this.span.append(text);
  }

  note(message) {
    this.root.append(element("p", "note", message));
  }

  complain(trouble) {
    const box = element("div", "error");
    box.setAttribute("role", "alert");
    box.append(element("b", "", trouble.message), element("p", "", trouble.advice || ""));
    this.root.append(box);
  }
}

function fact(number, unit, className) {
  const made = element("span", className);
  made.append(element("b", "", number), unit);
  return made;
}

function light(card, on, scroll) {
  for (const one of [card.item, ...card.spans]) one.classList.toggle("lit", on);
  if (on && scroll) card.item.scrollIntoView({ block: "nearest" });
}

/* What requests of both kinds have. */
function common(pattern) {
  const body = {
    model: model.id,
    max_tokens: Number($("tokens").value) || 96,
    temperature: Number($("temperature").value) || 0,
    stream: true,
    flashback: { pattern },
  };
  for (const name of ["stride", "passages"])
    if ($(name).value) body.flashback[name] = Number($(name).value);
  return body;
}

/* Whether nothing went wrong. */
async function writeOne(column, path, body) {
  column.root.classList.add("writing");
  column.root.setAttribute("aria-busy", "true");
  try {
    const signal = running.signal;
    const answer = await call(path, { method: "POST", body: JSON.stringify(body), signal });
    for await (const record of records(answer)) column.take(record);
    return true;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    column.complain(error instanceof Trouble ? error : new Trouble(String(error)));
    return false;
  } finally {
    column.root.classList.remove("writing");
    column.root.removeAttribute("aria-busy");
  }
}

async function write() {
  if (running || !model) return;
  const prompt = $("prompt").value;
  if (!prompt.trim()) {
    $("status").textContent = "Type a prompt first, or pick one.";
    $("prompt").focus();
    return;
  }
  const compare = $("compare").checked;
  const patterns = compare ? model.flashback.patterns : [$("pattern").value];
  const seed = Math.floor(Math.random() * 2 ** 31);
  const columns = patterns.map((pattern) => new Column(pattern, prompt));
  $("columns").className = compare ? "compared" : "";
  $("columns").replaceChildren(...columns.map((column) => column.root));
  begin();
  try {
    for (const [at, column] of columns.entries()) {
      $("status").textContent = `writing: ${patterns[at]} …`;
      const body = { ...common(patterns[at]), prompt, seed };
      body.flashback.fresh_cache = compare;
      await writeOne(column, "v1/completions", body);
    }
    $("status").textContent = "finished";
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    $("status").textContent = "stopped";
  } finally {
    end();
  }
}

function begin() {
  running = new AbortController();
  $("write").disabled = true;
  $("stop").disabled = false;
  for (const one of $("views").elements) one.disabled = true;
}

function end() {
  running = null;
  $("write").disabled = false;
  $("stop").disabled = true;
  for (const one of $("views").elements) one.disabled = false;
  $("chat").disabled = !model.flashback.chat;
}

function stop() {
  if (running) running.abort();
}

async function connect() {
  try {
    const answer = await call("v1/models");
    model = (await answer.json()).data[0];
  } catch (error) {
    $("model").className = "off";
    $("model").textContent = `${error.message} ${error.advice || ""}`;
    return;
  }
  const { patterns, defaults, passages, window: size } = model.flashback;
  const count = passages === null ? "no index" : `${passages.toLocaleString("en")} passages`;
  $("model").className = "";
  $("model").textContent = `${model.id} · ${count} · window ${size.toLocaleString("en")} tokens`;
  $("pattern").replaceChildren(...patterns.map((one) => new Option(one)));
  $("pattern").value = defaults.pattern;
  $("stride").value = defaults.stride;
  $("passages").value = defaults.passages;
  $("compare").disabled = patterns.length < 2;
  $("chat").disabled = !model.flashback.chat;
  offer(model.flashback.examples);
  $("views").title = model.flashback.chat ? "" : "This model has no chat template.";
}

function fillIn() {
  const given = new URLSearchParams(location.search);
  if (given.has("long")) $("prompt").value = model.flashback.examples.at(-1) || "";
  $("chat").checked = given.has("chat") && !$("chat").disabled;
  look();
  for (const name of ["prompt", "system", "tokens", "temperature", "stride", "passages", "pattern"])
    if (given.has(name)) $(name).value = given.get(name);
  $("compare").checked = given.has("compare");
  return given.has("run");
}

function offer(examples) {
  $("examples").replaceChildren();
  for (const text of examples.length ? examples : EXAMPLES) {
    const long = text.length > 300;
    const label = long ? "A long text (see the difference)" : `${text.slice(0, LABEL)} …`;
    const chip = element("button", "", label);
    chip.type = "button";
    chip.addEventListener("click", () => {
      $("prompt").value = text;
      $("prompt").focus();
    });
    $("examples").append(chip);
  }
}

function submit() {
  if (chatting()) say();
  else write();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("views").addEventListener("change", look);
$("new").addEventListener("click", () => {
  if (running) return;
  forget();
  $("prompt").focus();
});
$("stop").addEventListener("click", stop);
$("key").addEventListener("change", connect);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  const sends = chatting() && event.target === $("prompt") && !event.shiftKey && !event.isComposing;
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey || sends)) return;
  event.preventDefault();
  $("form").requestSubmit();
});
connect().then(() => {
  if (fillIn()) submit();
});
