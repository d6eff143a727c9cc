// A form for one command: common options on top, the others folded by group, a search, the command line, start.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { t, el, button } = UI;

  class Form {
    constructor(element, server, commands, tab) {
      this.root = element;
      this.call = UI.caller(server);
      this.commands = commands;
      this.tab = tab;
      this.command = localStorage.getItem(`swift.command.${tab}`) || commands[0];
      if (!commands.includes(this.command)) this.command = commands[0];
      this.wait = null;
      this.draw();
    }

    async draw(fields) {
      this.schema = await this.call("form", { command: this.command });
      this.fields = fields || this.draft();
      this.inputs = {};
      const all = [...this.schema.common, ...this.schema.groups.flatMap((g) => g.fields)];
      this.specs = Object.fromEntries(all.map((f) => [f.name, f]));
      this.error = el("div.sw-error", { role: "alert", hidden: true });
      this.line = el("pre.sw-command", { tabIndex: 0 });
      this.start = button(t(`start_${this.tab}`), () => UI.busy(this.start, () => this.begin()), { kind: "primary" });
      this.start.id = `start-${this.tab}`;
      this.result = el("div.sw-result", { ariaLive: "polite" });
      this.groups = this.schema.groups.map((group) => this.group(group));
      UI.replace(
        this.root,
        this.toolbar(),
        el("div.sw-grid", {}, this.schema.common.map((f) => this.field(f))),
        this.search(all.length),
        this.groups,
        this.error,
        el("div.sw-line", {}, el("div.sw-label", {}, t("command_line"), button(t("copy"), () => UI.copy(this.text), { kind: "small" })), this.line),
        el("div.sw-actions", {}, this.start, this.checks()),
        this.result,
      );
      this.suggest();
      await this.preview();
      UI.receive(this.tab, this.root, (message) => this.take(message));
    }

    draft() {
      try {
        const kept = JSON.parse(localStorage.getItem(`swift.form.${this.command}`) || "{}");
        return kept && typeof kept === "object" ? kept : {};
      } catch {
        return {};
      }
    }

    keep() {
      const kept = Object.fromEntries(Object.entries(this.fields).filter(([n]) => this.specs[n] && !this.specs[n].secret));
      localStorage.setItem(`swift.form.${this.command}`, JSON.stringify(kept));
    }

    async take(message) {
      const command = message.command || this.command;
      if (!this.commands.includes(command)) return;
      this.command = command;
      await this.draw(message.merge ? { ...this.draft(), ...message.fields } : message.fields);
      this.keep();
      this.root.scrollIntoView({ block: "start" });
    }

    toolbar() {
      const file = el("input", { type: "file", accept: ".yaml,.yml,.json", hidden: true, onchange: () => this.load(file) });
      const kinds = this.commands.length > 1 && el("label.sw-kind", {}, el("span", {}, t("method")), this.kinds());
      return el(
        "div.sw-toolbar", {}, kinds || null, el("span.sw-hint", {}, this.schema.title), el("span.sw-space"), file,
        button(t("load_yaml"), () => file.click(), { kind: "small" }),
        button(t("save_yaml"), () => this.save(), { kind: "small" }),
        button(t("clear_form"), () => { this.fields = {}; this.keep(); this.draw({}); }, { kind: "small" }),
      );
    }

    kinds() {
      const select = el("select", {
        onchange: () => {
          this.command = select.value;
          localStorage.setItem(`swift.command.${this.tab}`, this.command);
          this.draw();
        },
      }, this.commands.map((c) => el("option", { value: c, selected: c === this.command }, c)));
      return select;
    }

    group(group) {
      this.counts = this.counts || {};
      const count = el("span.sw-count");
      const node = el("details.sw-group", {}, el("summary", {}, group.title, count));
      node.append(el("div.sw-grid", {}, group.fields.map((f) => this.field(f))));
      node.count = count;
      node.names = group.fields.map((f) => f.name);
      return node;
    }

    field(spec) {
      const id = `${this.tab}-${spec.name}`;
      const input = this.input(spec, id);
      const wrong = el("div.sw-wrong", { id: `${id}-wrong`, hidden: true });
      input.setAttribute("aria-describedby", `${id}-help ${id}-wrong`);
      const node = el(
        `div.sw-field${spec.kind === "list" || spec.long ? ".wide" : ""}`, {},
        el("label", { htmlFor: id }, spec.name), input, el("div.sw-help", { id: `${id}-help` }, spec.help), wrong,
      );
      this.inputs[spec.name] = { node, input, wrong };
      return node;
    }

    input(spec, id) {
      const value = this.fields[spec.name] ?? "";
      const shown = spec.default || t("automatic");
      if (spec.kind === "bool" || spec.kind === "choice") {
        const choices = spec.kind === "bool" ? ["true", "false"] : spec.choices;
        const word = (c) => (spec.kind === "bool" ? t(`bool_${c}`) : c);
        const first = t("default_is", { value: spec.kind === "bool" && spec.default ? word(spec.default) : shown });
        const options = [["", first], ...choices.map((c) => [c, word(c)])];
        const pick = () => {
          select.classList.toggle("unset", !select.value);
          this.set(spec.name, select.value);
        };
        const select = el("select", { id, onchange: pick },
          options.map(([v, label]) => el("option", { value: v, selected: String(value) === v }, label)));
        select.classList.toggle("unset", !select.value);
        return select;
      }
      const common = { id, value: String(value), autocomplete: "off", spellcheck: false, placeholder: spec.default || "" };
      if (spec.long || spec.kind === "dict") {
        const area = el("textarea", { ...common, rows: 2, oninput: () => this.set(spec.name, area.value) });
        return area;
      }
      const number = spec.kind === "int" || spec.kind === "float";
      const input = el("input", {
        ...common,
        type: spec.secret ? "password" : "text",
        inputMode: number ? "decimal" : "text",
        list: ["model", "adapters", "dataset", "val_dataset", "eval_dataset"].includes(spec.name) ? `list-${this.tab}-${spec.name}` : null,
        oninput: () => this.set(spec.name, input.value),
      });
      return input;
    }

    async suggest() {
      const found = await this.call("suggest", { command: this.command }).catch(() => ({}));
      for (const [name, values] of Object.entries(found)) {
        if (this.inputs[name])
          this.inputs[name].node.append(el("datalist", { id: `list-${this.tab}-${name}` }, values.map((value) => el("option", { value }))));
      }
    }

    set(name, value) {
      if (value === "") delete this.fields[name];
      else this.fields[name] = value;
      this.keep();
      clearTimeout(this.wait);
      this.wait = setTimeout(() => this.preview(), 200);
    }

    search(count) {
      const none = el("div.sw-empty", { hidden: true }, t("no_option"));
      const box = el("input.sw-search", {
        type: "search", placeholder: t("search_options", { n: count }), ariaLabel: t("search_options", { n: count }),
        oninput: () => {
          const query = box.value.trim().toLowerCase();
          let hits = 0;
          for (const group of this.groups) {
            let inside = 0;
            for (const name of group.names) {
              const spec = this.specs[name];
              const text = `${name} ${spec.also.join(" ")} ${spec.help}`.toLowerCase();
              const hit = !query || query.split(/\s+/).every((word) => text.includes(word));
              this.inputs[name].node.hidden = !hit;
              inside += hit ? 1 : 0;
            }
            group.hidden = inside === 0;
            group.open = Boolean(query) && inside > 0;
            hits += inside;
          }
          none.hidden = hits > 0;
        },
      });
      return el("div.sw-searchline", {}, box, none);
    }

    async preview() {
      const number = (this.asked = (this.asked || 0) + 1);
      try {
        const answer = await this.call("preview", { command: this.command, fields: this.fields });
        if (number !== this.asked) return;
        this.text = answer.line;
        this.yaml = answer.yaml;
        this.line.textContent = answer.line;
        this.mark(answer.mistakes);
      } catch (error) {
        this.mark({ "": error.message });
      }
    }

    mark(mistakes, reveal) {
      let first = null;
      for (const [name, { node, input, wrong }] of Object.entries(this.inputs)) {
        const said = mistakes[name];
        wrong.hidden = !said;
        wrong.textContent = said || "";
        node.classList.toggle("bad", Boolean(said));
        input.setAttribute("aria-invalid", said ? "true" : "false");
        if (said && !first) first = node;
      }
      this.error.hidden = !mistakes[""];
      this.error.textContent = mistakes[""] || "";
      for (const group of this.groups) {
        const given = group.names.filter((n) => this.fields[n] !== undefined).length;
        group.count.textContent = given ? t("n_set", { n: given }) : "";
        const wrong = group.names.some((n) => mistakes[n]);
        group.classList.toggle("bad", wrong);
        if (wrong) group.open = true;
      }
      if (reveal && (first || mistakes[""])) (first || this.error).scrollIntoView({ block: "center", behavior: "smooth" });
      return Object.keys(mistakes).length > 0;
    }

    async begin() {
      const answer = await this.call("start", { command: this.command, fields: this.fields });
      if (answer.mistakes && this.mark(answer.mistakes, true)) return;
      UI.note(t("started"));
      if (this.tab !== "train") return UI.send(`${this.tab}-list`, { select: answer.job });
      UI.send("runs", { select: answer.job });
      UI.goTab("runs");
    }

    checks() {
      return this.tab === "train" ? UI.checks(this) : null;
    }

    save() {
      if (this.yaml) UI.download(`${this.command}.yaml`, this.yaml, "application/yaml");
    }

    async load(file) {
      if (!file.files.length) return;
      try {
        const answer = await this.call("load_yaml", { command: this.command, content: await file.files[0].text() });
        await this.draw(answer.fields);
        this.keep();
        UI.note(t("loaded"));
      } catch (error) {
        this.mark({ "": error.message }, true);
      }
      file.value = "";
    }
  }

  UI.form = (element, server, commands, tab) => new Form(element, server, commands, tab);
})();
