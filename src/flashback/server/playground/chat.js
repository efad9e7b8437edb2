"use strict";
/* The conversation view: a column for each turn, with its sources and its meter. Loaded before app.js,
   whose parts it uses once the page runs. */

let messages = []; // of the conversation so far, as the API takes them

function chatting() {
  return $("chat").checked;
}

/* Show what belongs to the chosen view, and begin anew. */
function look() {
  const view = chatting() ? "chat" : "text";
  document.body.classList.toggle("chat", chatting());
  for (const one of document.querySelectorAll("[data-view]")) one.hidden = one.dataset.view !== view;
  $("prompt-label").textContent = chatting() ? "Message" : "Prompt";
  $("prompt").placeholder = chatting()
    ? "Ask about the indexed texts."
    : "Type the beginning of a text, or pick one below.";
  $("write").textContent = chatting() ? "Send" : "Write";
  forget();
}

function forget() {
  messages = [];
  $("columns").className = "";
  $("columns").replaceChildren(EMPTY);
  $("status").textContent = "";
}

function conversation(said) {
  const system = $("system").value.trim();
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...messages,
    { role: "user", content: said },
  ];
}

/* What was said becomes part of the conversation once it is answered, in part if it was stopped. */
async function say() {
  if (running || !model) return;
  const said = $("prompt").value.trim();
  if (!said) {
    $("status").textContent = "Type a message first.";
    $("prompt").focus();
    return;
  }
  const pattern = $("pattern").value;
  const turn = new Column(pattern, "");
  turn.root.prepend(element("p", "said", said));
  EMPTY.remove();
  $("columns").append(turn.root);
  $("prompt").value = "";
  begin();
  $("status").textContent = "answering …";
  try {
    const body = { ...common(pattern), messages: conversation(said) };
    body.flashback.truncate = true;
    const whole = await writeOne(turn, "v1/chat/completions", body);
    $("status").textContent = whole ? "finished" : "not answered";
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    $("status").textContent = "stopped";
  } finally {
    end();
  }
  if (turn.written.trim())
    messages.push({ role: "user", content: said }, { role: "assistant", content: turn.written });
  else $("prompt").value = said;
  $("form").scrollIntoView({ block: "end" });
  $("prompt").focus();
}
