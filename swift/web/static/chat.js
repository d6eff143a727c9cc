// The chat: one model or two side by side, answers as they come, stop, edit, regenerate, images, export.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { t, el, button } = UI;
  const SETTINGS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed"];
  const SIDES = ["a", "b"];
  const KEPT = "swift.chat";
  const LARGEST_SIDE = 1536;

  class Chat {
    constructor(element, server, fixed) {
      Object.assign(this, { root: element, call: UI.caller(server), fixed, answers: {}, states: {}, images: [] });
      const kept = read();
      this.turns = kept.turns || []; // [{text, images, a: {text, ...}, b: {...}}]
      this.options = { models: { a: fixed || "", b: "" }, extra: "", system: "", sampling: {}, ...(kept.options || {}) };
      if (fixed) this.options.models = { a: fixed, b: "" };
      this.draw();
      UI.receive("chat", this.root, (message) => this.talkTo(message.model || message.adapters));
      if (fixed) this.load("a");
      UI.every(1, this.root, () => this.look());
    }

    // ---- layout ----
    draw() {
      this.feed = el("div.sw-feed", { role: "log", ariaLabel: t("tab_chat"), ariaLive: "off" });
      this.status = {};
      this.pick = {};
      this.box = el("textarea", { id: "chat-message", rows: 2, placeholder: t("message"), ariaLabel: t("message"), onkeydown: (e) => {
        if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); this.submit(); }
      }, onpaste: (e) => this.paste(e) });
      this.sender = button(t("send"), () => (this.running() ? this.stop() : this.submit()), { kind: "primary", id: "chat-send" });
      const file = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => { this.attach([...file.files]); file.value = ""; } });
      this.thumbs = el("div.sw-thumbs");
      UI.replace(this.root, el("div.sw-chat", {},
        el("div.sw-side", {}, this.fixed ? this.fixedHead() : this.models(), this.settings()),
        el("div.sw-main", {},
          this.feed,
          el("div.sw-compose", {}, this.thumbs, el("div.sw-composeline", {}, file,
            button(t("add_image"), () => file.click(), { kind: "small", title: t("add_image_help") }), this.box, this.sender)),
          el("div.sw-actions", {},
            button(t("regenerate"), () => this.regenerate(), { kind: "small", id: "chat-regenerate" }),
            button(t("new_chat"), () => this.clear(), { kind: "small", id: "chat-clear" }),
            button(t("export_chat"), () => this.save(), { kind: "small", id: "chat-export" })))));
      this.show();
    }

    fixedHead() {
      this.status.a = el("div.sw-hint");
      return el("div.sw-panel", {}, el("b", {}, this.fixed), this.status.a);
    }

    models() {
      const lists = el("datalist", { id: "chat-models" });
      this.call("suggest", { command: "deploy" }).then((found) => {
        lists.append(...[...(found.adapters || []), ...(found.model || [])].map((value) => el("option", { value })));
      }).catch(() => {});
      const field = (side) => {
        const input = (this.pick[side] = el("input", { id: `chat-model-${side}`, value: this.options.models[side], list: "chat-models", autocomplete: "off", spellcheck: false,
          placeholder: t(`model_${side}_hint`), onchange: () => { this.options.models[side] = input.value.trim(); this.keep(); this.show(); } }));
        const load = button(t("load"), () => { this.options.models[side] = input.value.trim(); this.keep(); this.show(); UI.busy(load, () => this.load(side)); }, { kind: "small" });
        const base = side === "b" ? button(t("base_model"), () => UI.busy(base, () => this.base()), { kind: "small", title: t("base_model_help") }) : null;
        this.status[side] = el("div.sw-hint", { ariaLive: "polite" });
        return el("div.sw-field", {}, el("label", { htmlFor: input.id }, t(`model_${side}`)), input,
          el("div.sw-row", {}, load, button(t("unload"), () => this.unload(side), { kind: "small" }), base), this.status[side]);
      };
      const extra = el("input", { id: "chat-extra", value: this.options.extra, placeholder: "--torch_dtype float32", spellcheck: false, onchange: () => { this.options.extra = extra.value.trim(); this.keep(); } });
      return el("div.sw-panel", {}, lists, SIDES.map(field), el("details", {}, el("summary", {}, t("more_options")), el("div.sw-field", {}, extra, el("div.sw-help", {}, t("more_options_help")))));
    }

    settings() {
      const system = el("textarea", { id: "chat-system", rows: 3, value: this.options.system, oninput: () => { this.options.system = system.value; this.keep(); } });
      const field = (name) => {
        const input = el("input", { id: `chat-${name}`, inputMode: "decimal", value: this.options.sampling[name] || "", placeholder: t("automatic"),
          oninput: () => { this.options.sampling[name] = input.value.trim(); this.keep(); } });
        return el("div.sw-field", {}, el("label", { htmlFor: input.id }, name), input);
      };
      return el("details.sw-panel", { open: window.innerWidth > 760 }, el("summary", {}, t("settings")),
        el("div.sw-field", {}, el("label", { htmlFor: "chat-system" }, t("system_prompt")), system), el("div.sw-grid.two", {}, SETTINGS.map(field)));
    }

    // ---- models ----
    spec(side) {
      return { model: this.options.models[side], options: this.fixed ? "" : this.options.extra };
    }

    sides() {
      return SIDES.filter((side) => this.options.models[side]);
    }

    talkTo(model) {
      if (!model) return;
      this.options.models.a = model;
      if (this.pick.a) this.pick.a.value = model;
      this.keep();
      this.load("a").catch((error) => UI.note(error.message, "bad"));
    }

    async load(side) {
      if (!this.options.models[side]) throw new Error(t("choose_model"));
      const keep = this.sides().map((s) => this.spec(s));
      this.told(side, await this.call("chat_load", { spec: this.spec(side), keep }));
    }

    async unload(side) {
      if (!this.options.models[side]) return;
      await this.call("chat_unload", { spec: this.spec(side) }).catch((error) => UI.note(error.message, "bad"));
      this.told(side, { state: "none" });
    }

    async base() {
      const { model } = await this.call("chat_base", { spec: this.spec("a") });
      if (!model) throw new Error(t("no_base"));
      this.options.models.b = this.pick.b.value = model;
      this.keep();
      this.show();
      await this.load("b");
    }

    told(side, answer) {
      this.states[side] = answer.state;
      const node = this.status[side];
      if (!node) return;
      const key = JSON.stringify(answer);
      if (node.seen === key) return;
      node.seen = key;
      UI.replace(node, answer.state === "none" ? t("not_loaded") : el(`span.sw-state.${{ ready: "finished", loading: "running", failed: "failed" }[answer.state]}`, {}, t(`model_${answer.state}`)),
        answer.state === "failed" ? el("pre.sw-log", {}, answer.said) : null);
    }

    async look() {
      for (const side of this.sides()) {
        if (this.states[side] === "ready" && Math.random() > 0.2) continue;
        try {
          this.told(side, await this.call("chat_state", { spec: this.spec(side) }));
        } catch { /* shown when something is asked */ }
      }
    }

    // Loads what is needed and waits until it can answer.
    async ready(side) {
      for (;;) {
        const answer = await this.call("chat_load", { spec: this.spec(side), keep: this.sides().map((s) => this.spec(s)) });
        this.told(side, answer);
        if (answer.state === "ready") return;
        if (answer.state === "failed") throw new Error(t("load_failed"));
        if (this.halted) throw new Error(t("stopped_here"));
        await new Promise((done) => setTimeout(done, 500));
      }
    }

    // ---- conversation ----
    running() {
      return Object.keys(this.answers).length > 0;
    }

    async submit() {
      const text = this.box.value.trim();
      if ((!text && !this.images.length) || this.running()) return;
      if (!this.sides().length) return UI.note(t("choose_model"), "bad");
      this.box.value = "";
      this.turns.push({ text, images: this.images });
      this.images = [];
      this.drawThumbs();
      await this.answer(this.turns.length - 1);
    }

    async answer(index) {
      const turn = this.turns[index];
      this.halted = false;
      await Promise.all(this.sides().map((side) => this.answerSide(turn, index, side)));
      this.keep();
      this.show();
      this.box.focus();
    }

    async answerSide(turn, index, side) {
      const reply = (turn[side] = { text: "", model: this.options.models[side], working: true });
      this.answers[side] = "";
      this.show();
      try {
        await this.ready(side);
        const { id } = await this.call("chat_send", { spec: this.spec(side), messages: this.messages(index, side), system: this.options.system, sampling: this.options.sampling });
        this.answers[side] = id;
        for (;;) {
          const got = await this.call("chat_fetch", { id, have: [...reply.text].length });
          reply.text += got.more;
          Object.assign(reply, { tokens: got.tokens, seconds: got.seconds, reason: got.reason });
          if (got.more) this.redraw(turn, side);
          if (got.done) {
            if (got.failure) throw new Error(got.failure);
            break;
          }
          if (this.halted) await this.call("chat_stop", { id });
          await new Promise((done) => setTimeout(done, 80));
        }
      } catch (error) {
        reply.error = error.message;
      }
      delete reply.working;
      delete this.answers[side];
      this.redraw(turn, side);
      this.buttons();
    }

    messages(index, side) {
      const found = [];
      for (const turn of this.turns.slice(0, index + 1)) {
        found.push({ role: "user", content: turn.text, images: turn.images || [] });
        if (turn === this.turns[index]) break;
        const reply = turn[side] || turn.a || turn.b;
        found.push({ role: "assistant", content: reply ? UI.thought(reply.text).text : "" });
      }
      return found;
    }

    stop() {
      this.halted = true;
    }

    async regenerate() {
      if (!this.turns.length || this.running()) return;
      await this.answer(this.turns.length - 1);
    }

    edit(index) {
      if (this.running()) return;
      const turn = this.turns[index];
      this.box.value = turn.text;
      this.images = turn.images || [];
      this.drawThumbs();
      this.turns = this.turns.slice(0, index);
      this.keep();
      this.show();
      this.box.focus();
    }

    clear() {
      if (this.running()) return;
      this.turns = [];
      this.keep();
      this.show();
    }

    // One conversation a line, in the form that training reads.
    save() {
      if (!this.turns.length) return UI.note(t("nothing_to_export"));
      const lines = this.sides().map((side) => {
        const messages = this.options.system ? [{ role: "system", content: this.options.system }] : [];
        for (const turn of this.turns) {
          messages.push({ role: "user", content: turn.text });
          if (turn[side]) messages.push({ role: "assistant", content: turn[side].text });
        }
        return JSON.stringify({ messages, model: this.options.models[side] });
      });
      UI.download("conversation.jsonl", `${lines.join("\n")}\n`, "application/jsonl");
    }

    // ---- what is shown ----
    show() {
      const two = this.sides().length > 1;
      if (!this.turns.length) {
        UI.replace(this.feed, el("div.sw-empty", {}, t(this.sides().length ? "say_something" : "choose_model")));
        return this.buttons();
      }
      UI.replace(this.feed, this.turns.map((turn, i) => {
        const sides = SIDES.filter((side) => turn[side] && (two || !this.options.models.b || side === "a" || !turn.a));
        const edit = button(t("edit"), () => this.edit(i), { kind: "small" });
        return el("div.sw-turn", {},
          el("div.sw-user", {}, (turn.images || []).map((src) => el("img", { src, alt: "" })), el("div.sw-text", {}, turn.text), edit),
          el(`div.sw-replies${sides.length > 1 ? ".two" : ""}`, {}, sides.map((side) => (turn[side].node = this.reply(turn[side], sides.length > 1)))));
      }));
      this.feed.scrollTop = this.feed.scrollHeight;
      this.buttons();
    }

    redraw(turn, side) {
      const reply = turn[side];
      if (!reply.node || !reply.node.isConnected) return this.show();
      const atEnd = this.feed.scrollTop + this.feed.clientHeight >= this.feed.scrollHeight - 60;
      const fresh = this.reply(reply, this.sides().length > 1);
      const folded = reply.node.querySelector("details.sw-think");
      if (folded && fresh.querySelector("details.sw-think")) fresh.querySelector("details.sw-think").open = folded.open;
      reply.node.replaceWith(fresh);
      reply.node = fresh;
      if (atEnd) this.feed.scrollTop = this.feed.scrollHeight;
    }

    reply(reply, named) {
      const { thinking, open, text } = UI.thought(reply.text);
      const wait = reply.working && !reply.text ? el("span.sw-hint", {}, t(this.states.a === "loading" || this.states.b === "loading" ? "model_loading" : "working")) : null;
      const facts = reply.working || !reply.seconds ? null : [t(reply.tokens ? "facts" : "facts_time", { tokens: reply.tokens, seconds: reply.seconds.toFixed(1) }),
        reply.reason === "length" ? t("cut_short") : reply.reason === "cancelled" ? t("stopped_here") : null].filter(Boolean).join(" · ");
      return el("div.sw-reply", {}, named ? el("div.sw-hint", {}, reply.model) : null,
        thinking ? el("details.sw-think", {}, el("summary", {}, t(open ? "thinking" : "thoughts")), el("div.sw-text", {}, thinking)) : null,
        el("div.sw-markdown", {}, UI.markdown(text)), wait,
        !reply.working && !reply.text.trim() && !reply.error ? el("span.sw-hint", {}, t("empty_answer")) : null,
        reply.error ? el("div.sw-error", { role: "alert" }, reply.error) : null,
        facts ? el("div.sw-row.sw-facts", {}, facts, button(t("copy"), () => UI.copy(text), { kind: "small" })) : null);
    }

    buttons() {
      const running = this.running();
      this.sender.textContent = t(running ? "stop" : "send");
      this.sender.classList.toggle("stop", running);
      for (const name of ["regenerate", "clear", "export"]) {
        const node = this.root.querySelector(`#chat-${name}`);
        if (node) node.disabled = running || !this.turns.length;
      }
    }

    // ---- images ----
    paste(event) {
      const files = [...(event.clipboardData?.files || [])].filter((f) => f.type.startsWith("image/"));
      if (files.length) {
        event.preventDefault();
        this.attach(files);
      }
    }

    async attach(files) {
      for (const file of files) {
        try {
          this.images = [...this.images, await smaller(file)];
        } catch {
          UI.note(t("no_image", { name: file.name }), "bad");
        }
      }
      this.drawThumbs();
    }

    drawThumbs() {
      UI.replace(this.thumbs, this.images.map((src, i) => el("button.sw-thumb", { type: "button", title: t("remove_image"), ariaLabel: t("remove_image"), onclick: () => { this.images = this.images.filter((_, k) => k !== i); this.drawThumbs(); } }, el("img", { src, alt: "" }))));
    }

    keep() {
      const turns = this.turns.map((turn) => Object.fromEntries(Object.entries(turn).map(([k, v]) => [k, v && v.node ? { ...v, node: undefined, working: undefined } : v])));
      try {
        localStorage.setItem(KEPT, JSON.stringify({ turns, options: this.options }));
      } catch { // images may be more than a browser keeps
        localStorage.setItem(KEPT, JSON.stringify({ turns: turns.map((turn) => ({ ...turn, images: [] })), options: this.options }));
      }
    }
  }

  function read() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEPT) || "{}");
      return kept && typeof kept === "object" ? kept : {};
    } catch {
      return {};
    }
  }

  async function smaller(file) {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(picture.width, picture.height));
    const canvas = el("canvas", { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL(file.type === "image/png" ? "image/png" : "image/jpeg", 0.9);
  }

  UI.chat = (element, server, fixed) => new Chat(element, server, fixed);
})();
