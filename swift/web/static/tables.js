// Tables of the catalog: a search, filters, pages; what is chosen goes into the forms.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { t, el, button } = UI;
  const PAGE = 50;

  class Table {
    constructor(element, server, kind) {
      Object.assign(this, { root: element, call: UI.caller(server), kind, args: {}, offset: 0 });
      this.body = el("div.sw-scroll");
      this.foot = el("div.sw-actions");
      this.search = el("input.sw-search", { id: `search-${kind}`, type: "search", placeholder: t(`search_${kind}`), ariaLabel: t(`search_${kind}`), oninput: () => this.later({ query: this.search.value }) });
      this.filters = el("div.sw-row");
      UI.replace(this.root, el("div.sw-searchline", {}, this.search, this.filters), this.body, this.foot);
      this.load(true);
    }

    later(args) {
      Object.assign(this.args, args);
      clearTimeout(this.wait);
      this.wait = setTimeout(() => { this.offset = 0; this.load(); }, 200);
    }

    async load(first) {
      const number = (this.asked = (this.asked || 0) + 1);
      let answer;
      try {
        answer = await this.call(this.kind, { ...this.args, offset: this.offset });
      } catch (error) {
        UI.replace(this.body, el("div.sw-empty", {}, error.message));
        UI.replace(this.foot);
        return;
      }
      if (number !== this.asked) return;
      if (first) this.drawFilters(answer);
      UI.replace(this.body, answer.rows.length ? this[this.kind](answer.rows) : el("div.sw-empty", {}, t(`no_${this.kind}`)));
      const last = Math.min(answer.offset + PAGE, answer.count);
      const go = (offset) => { this.offset = offset; this.load(); };
      UI.replace(this.foot, el("span.sw-hint", {}, answer.count ? t("shown_of", { from: answer.offset + 1, to: last, n: answer.count }) : ""),
        answer.count > PAGE ? [button("‹", () => go(answer.offset - PAGE), { kind: "small", disabled: answer.offset === 0, ariaLabel: t("page_back") }),
          button("›", () => go(answer.offset + PAGE), { kind: "small", disabled: last >= answer.count, ariaLabel: t("page_on") })] : null);
    }

    drawFilters(answer) {
      const pick = (name, values) => {
        const select = el("select.narrow", { ariaLabel: t(`filter_${name}`), onchange: () => this.later({ [name]: select.value }) },
          el("option", { value: "" }, t(`filter_${name}`)), values.map((v) => (Array.isArray(v) ? el("option", { value: v[0] }, v[1]) : el("option", { value: v }, v))));
        return select;
      };
      const words = (...names) => names.map((n) => [n, t(`only_${n}`)]);
      UI.replace(this.filters, this.kind === "models"
        ? [pick("family", answer.families), pick("modality", ["text", "image", "video", "audio"]), pick("size", ["<1B", "<4B", "<8B", "<15B", "<40B", ">=40B"]), pick("only", words("here", "thinking", "tools"))]
        : [pick("tag", answer.tags), pick("only", words("here"))]);
    }

    models(rows) {
      const use = (row) => [
        button(t("tab_train"), () => this.hand("train", { model: row.id }), { kind: "small" }),
        button(t("talk"), () => { UI.send("chat", { model: row.id }); UI.goTab("chat"); }, { kind: "small" }),
        button(t("deploy"), () => this.hand("deploy", { model: row.id }), { kind: "small" }),
      ];
      return this.draw(["model", "size", "input", "infer", "lora", "qlora", "thinking", "tools", "license"], rows, (r) => [
        r.id, r.size, r.input, ...r.memory, r.thinking, r.tools, r.license], use);
    }

    datasets(rows) {
      const use = (row) => button(t("use"), () => this.hand("train", { dataset: row.id }), { kind: "small" });
      return this.draw(["dataset", "rows", "topic", "tags", "license"], rows, (r) => [
        r.here ? [r.id, el("span.sw-state.finished", {}, t("only_here"))] : r.id, r.rows ?? "", r.topic, r.tags.join(" "), r.license], use);
    }

    draw(columns, rows, cells, use) {
      return el("table.sw-table.catalog", {},
        el("thead", {}, el("tr", {}, columns.map((c) => el("th", {}, t(`column_${c}`))), el("th"))),
        el("tbody", {}, rows.map((row) => el("tr", {}, cells(row).map((c, i) => el(i ? "td" : "td.mono", { "data-label": i && c !== "" ? t(`column_${columns[i]}`) : null }, c)), el("td.sw-use", {}, use(row))))));
    }

    // Into a form beside what stands there already.
    hand(tab, fields) {
      UI.send(tab, { fields, merge: true });
      UI.goTab(tab);
    }
  }

  UI.table = (element, server, kind) => new Table(element, server, kind);
})();
