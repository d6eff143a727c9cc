// The runs: a list, and of the chosen one its state, figures, curves, log, checkpoints and what can be done with it.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { t, el, button } = UI;
  const ALIVE = ["starting", "running", "stopping"];
  const SHOWN_POINTS = 4; // the others are folded
  const CHARTS = [
    ["loss", ["loss", "eval_loss"]],
    ["learning_rate", ["learning_rate"]],
    ["tokens_per_second", ["tokens_per_second"]],
    ["mfu", ["mfu"]],
    ["token_acc", ["token_acc", "eval_token_acc"]],
    ["grad_norm", ["grad_norm"]],
    ["memory_gib", ["memory_gib"]],
  ];

  class Runs {
    constructor(element, server, only, part) {
      Object.assign(this, { root: element, call: UI.caller(server), only, part, chosen: null, compared: new Set(), shown: "" });
      this.list = el("div.sw-list", { role: "listbox", ariaLabel: t("tab_runs") });
      this.detail = el("div.sw-detail");
      UI.replace(this.root, el("div.sw-split", {}, this.list, this.detail));
      UI.receive(part, this.root, (message) => this.choose(message.select));
      UI.every(1.5, this.root, () => this.refresh());
      this.refresh();
    }

    choose(id) {
      this.chosen = id;
      this.view = null;
      this.shown = "";
      this.refresh();
    }

    async refresh() {
      let answer;
      try {
        const compare = [...this.compared];
        answer = await this.call("runs", { chosen: this.chosen, only: this.only, compare });
      } catch (error) {
        this.root.classList.add("offline");
        return;
      }
      this.root.classList.remove("offline");
      this.drawList(answer.runs);
      if (answer.detail) {
        this.chosen = answer.detail.id;
        this.drawDetail(answer.detail, answer.compared || []);
      } else UI.replace(this.detail, answer.runs.length ? el("div.sw-empty", {}, t("choose_run")) : null);
    }

    drawList(runs) {
      const seen = JSON.stringify([runs, this.chosen, [...this.compared]]);
      if (seen === this.seenList) return;
      this.seenList = seen;
      if (!runs.length) {
        UI.replace(this.list, el("div.sw-empty", {}, t(this.only ? `no_${this.part}` : "no_runs"),
          this.only ? null : button(t("go_train"), () => UI.goTab("train"), { kind: "primary" })));
        return;
      }
      const focused = document.activeElement?.dataset?.run;
      UI.replace(this.list, runs.map((run) => this.card(run)));
      if (focused) this.list.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
    }

    card(run) {
      const chosen = run.id === this.chosen || run.jobs.includes(this.chosen);
      const bar = run.max_steps ? el("div.sw-bar", {}, el("i", { style: `width:${(100 * run.step) / run.max_steps}%` })) : null;
      const facts = [UI.when(run.created), run.loss !== null && run.loss !== undefined ? `loss ${UI.figure(run.loss)}` : null,
        run.max_steps ? `${run.step}/${run.max_steps}` : null].filter(Boolean).join(" · ");
      const card = el(`button.sw-card${chosen ? ".chosen" : ""}`, { type: "button", role: "option", ariaSelected: String(chosen), onclick: () => this.choose(run.id) },
        el("span.sw-row", {}, el("b", {}, run.name), state(run.state)), el("span.sw-facts", {}, `${run.command} · ${facts}`), bar);
      card.dataset.run = run.id;
      if (this.only || !run.has_curves) return el("div.sw-cardline", {}, card);
      const box = el("input", { type: "checkbox", checked: this.compared.has(run.id), ariaLabel: t("compare_with", { name: run.name }), title: t("compare_with", { name: run.name }),
        onchange: () => { box.checked ? this.compared.add(run.id) : this.compared.delete(run.id); this.shown = ""; this.refresh(); } });
      return el("div.sw-cardline", {}, el("label.sw-tick", {}, box), card);
    }

    drawDetail(run, compared) {
      if (this.drawn !== run.id || !this.detail.contains(this.log)) this.frame(run);
      const put = (node, key, make) => {
        if (node.seen === key) return;
        node.seen = key;
        UI.replace(node, make());
      };
      put(this.head, JSON.stringify([run.state, run.code, run.actions]), () => this.header(run));
      put(this.figures, JSON.stringify(run.figures), () => run.figures.map(([name, value]) => el("div.sw-figurebox", {}, el("span", {}, t(`figure_${name}`)), el("b", {}, value))));
      this.bar.parentNode.hidden = !run.max_steps;
      this.bar.style.width = run.max_steps ? `${(100 * run.step) / run.max_steps}%` : "0";
      put(this.charts, JSON.stringify([run.curves, compared]), () => this.drawCharts(run, compared));
      put(this.points, JSON.stringify(run.checkpoints), () => this.checkpoints(run));
      if (this.log.textContent !== run.log) {
        const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 20;
        this.log.textContent = run.log;
        if (atEnd) this.log.scrollTop = this.log.scrollHeight;
      }
      for (const node of [this.log, this.logHead]) node.hidden = !run.log;
      this.cut.hidden = !run.log_cut;
      this.failed.hidden = !run.failure;
      this.failed.textContent = run.failure || "";
    }

    frame(run) {
      this.drawn = run.id;
      for (const name of ["head", "figures", "charts", "points", "extra"]) this[name] = el(`div.sw-${name}`);
      this.bar = el("i");
      this.log = el("pre.sw-log", { tabIndex: 0, ariaLabel: t("log") });
      this.cut = el("div.sw-hint", { hidden: true }, t("log_cut"));
      this.failed = el("div.sw-error", { hidden: true, role: "alert" });
      UI.replace(this.detail,
        el("h3", {}, run.name), this.head, this.failed, el("div.sw-bar.big", {}, this.bar), this.figures, this.charts, this.extra, this.points,
        (this.logHead = el("div.sw-label", {}, t("log"))), this.cut, this.log,
        run.line ? [el("div.sw-label", {}, t("command_line"), button(t("copy"), () => UI.copy(run.line), { kind: "small" })), el("pre.sw-command", { tabIndex: 0 }, run.line)] : null);
    }

    header(run) {
      const act = (name, work, kind) => {
        const node = button(t(name), () => UI.busy(node, work), { kind });
        node.dataset.action = name;
        return node;
      };
      const does = {
        stop: () => this.ask("stop", run),
        kill: () => this.ask("kill", run),
        resume: async () => this.choose((await this.call("resume", { id: run.id })).job),
        data_report: () => this.toggle("data_report", run),
        folder: () => this.toggle("folder", run),
        eval_report: () => this.toggle("eval_report", run),
        again: () => { UI.send(run.form.tab, run.form); UI.goTab(run.form.tab); },
        talk: () => { UI.send("chat", run.talk); UI.goTab("chat"); },
      };
      const kinds = { stop: "stop", kill: "stop", resume: "primary" };
      const code = run.code !== null && run.code !== undefined && run.code !== 0 && run.state === "failed" ? el("span.sw-hint", {}, t("exit_code", { code: run.code })) : null;
      return [el("div.sw-row", {}, state(run.state), code, run.address ? el("a", { href: `${run.address}/v1/models`, target: "_blank", rel: "noopener" }, run.address) : null),
        el("div.sw-actions", {}, run.actions.map((name) => act(name, does[name], kinds[name])))];
    }

    async ask(what, run) {
      await this.call(what, { id: run.id });
      UI.note(t(`asked_${what}`));
      await this.refresh();
    }

    async toggle(what, run) {
      if (this.extra.dataset.shows === what) {
        delete this.extra.dataset.shows;
        UI.replace(this.extra);
        return;
      }
      const answer = await this.call(what, { id: run.id });
      this.extra.dataset.shows = what;
      if (answer.html !== undefined) UI.replace(this.extra, el("iframe.sw-report", { srcdoc: answer.html, title: t(what), sandbox: "" }));
      else UI.replace(this.extra, el("div.sw-label", {}, answer.path, button(t("copy"), () => UI.copy(answer.path), { kind: "small" })),
        el("table.sw-table", {}, el("tbody", {}, answer.files.map(([name, size]) => el("tr", {}, el("td", {}, name), el("td.number", {}, size))))));
    }

    drawCharts(run, compared) {
      const drawn = [];
      for (const [name, keys] of CHARTS) {
        const series = compared.length
          ? [run, ...compared.filter((c) => c.id !== run.id)].flatMap((r) => keys.slice(0, 1).map((k) => ({ name: r.name, points: r.curves[k] || [] })))
          : keys.map((k) => ({ name: t(`curve_${k}`), points: run.curves[k] || [] }));
        const chart = UI.chart(series, { title: t(`curve_${name}`), smooth: name === "loss" });
        if (chart) drawn.push(chart);
      }
      if (!drawn.length && ALIVE.includes(run.state) && run.trains) return el("div.sw-empty", {}, t("no_curves_yet"));
      return drawn;
    }

    checkpoints(run) {
      if (!run.checkpoints.length) return null;
      const hand = (tab, command, fields) => { UI.send(tab, { command, fields }); UI.goTab(tab); };
      const row = (c) => el("div.sw-point", {}, el("b", {}, c.name),
        button(t("talk"), () => { UI.send("chat", c.options); UI.goTab("chat"); }, { kind: "small" }),
        c.options.adapters ? button(t("merge"), () => hand("export", "export", { ...c.options, merge_lora: "true", output_dir: c.merged }), { kind: "small" }) : null,
        button(t("deploy"), () => hand("deploy", "deploy", c.options), { kind: "small" }),
        button(t("evaluate"), () => hand("eval", "eval", c.options), { kind: "small" }));
      const [newest, older] = [run.checkpoints.slice(0, SHOWN_POINTS), run.checkpoints.slice(SHOWN_POINTS)];
      return [el("div.sw-label", {}, t("checkpoints")), el("div.sw-points", {}, newest.map(row)),
        older.length ? el("details", {}, el("summary.sw-hint", {}, t("older_points", { n: older.length })), el("div.sw-points", {}, older.map(row))) : null];
    }
  }

  const state = (name) => el(`span.sw-state.${name}`, {}, t(`state_${name}`));

  UI.runs = (element, server, only, part) => new Runs(element, server, only, part);
})();
