"use strict";
// Everything from the data reaches the page through textContent; nothing is ever parsed as markup.
(function () {
  var MISSING = "\u2013", MINUS = "\u2212", PAGE = 25;

  function make(tag, attributes, words) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    if (words !== undefined) { node.textContent = words; }
    return node;
  }
  function read(id) { return JSON.parse(document.getElementById(id).textContent); }
  function grouped(value, digits) {
    return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", MINUS);
  }
  function percent(share) {
    var size = Math.abs(100 * share), digits = size === 0 || size === 100 ? 0 : size < 1 ? 2 : size < 10 || size > 99 ? 1 : 0;
    return grouped(Number((100 * share).toFixed(digits)), digits).replace(/\.?0+$/, digits ? "" : "$&") + "\u00a0%";
  }
  function probability(p) { return p > 0 && p < 0.0005 ? "<0.001" : p < 1 && p >= 0.9995 ? ">0.999" : p.toFixed(3); }
  function signed(value) {
    var size = Math.abs(value), digits = size >= 0.095 || size === 0 ? 2 : Math.min(6, 1 - Math.floor(Math.log10(size)));
    return (value > 0 ? "+" : "") + grouped(value, digits);
  }
  function shown(column, value) {
    if (value === null) { return MISSING; }
    switch (column.kind) {
      case "text": return value;
      case "word": return column.words[value];
      case "count": return grouped(value, value % 1 ? 1 : 0);
      case "probability": return probability(value);
      case "percent": return percent(value);
      case "ratio": return grouped(value, 2);
      default: return String(value);
    }
  }
  function textual(column) { return column.kind === "text" || column.kind === "word"; }

  // Sections: a link with an anchor blanks MLflow's sandboxed frame, so buttons scroll.
  function drawNavigation() {
    var nav = document.querySelector("nav"), sections = document.querySelectorAll("section[id]");
    if (!nav || sections.length < 2) { return; }
    sections.forEach(function (section) {
      var heading = section.querySelector("h2"), button = make("button", { type: "button" }, heading.textContent);
      button.addEventListener("click", function () {
        section.setAttribute("tabindex", "-1");
        section.scrollIntoView();
        section.focus({ preventScroll: true });
      });
      nav.appendChild(button);
    });
    nav.hidden = false;
  }

  function DataTable(place) {
    var data = read(place.dataset.table), columns = data.columns, label = place.dataset.label;
    var total = columns[0].values.length, order = Array.from({ length: total }, function (_, i) { return i; });
    var sorted = { column: data.sort[0], direction: data.sort[1] }, matching = order, page = 0, open = new Set(), haystack = null;
    var collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

    var controls = make("div", { "class": "controls" }), searchLabel = make("label", {}, "Search the rows");
    var search = make("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    searchLabel.appendChild(search);
    controls.appendChild(searchLabel);
    var filters = columns.map(function (column, at) {
      if (column.kind !== "word" || column.words.length < 2 || column.words.length > 12) { return null; }
      var wrap = make("label", {}, column.label), select = make("select");
      select.appendChild(make("option", { value: "" }, "all"));
      column.words.forEach(function (word, i) { select.appendChild(make("option", { value: i }, word)); });
      select.addEventListener("change", function () { page = 0; choose(); });
      wrap.appendChild(select);
      controls.appendChild(wrap);
      return { at: at, select: select };
    }).filter(Boolean);

    var scroll = make("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": label });
    var table = make("table"), head = make("thead"), headRow = make("tr"), body = make("tbody");
    columns.forEach(function (column, at) {
      var cell = make("th", { scope: "col", "class": textual(column) ? "" : "n" }), button = make("button", { type: "button" }, column.label);
      if (column.hint) { button.title = column.hint; }
      button.addEventListener("click", function () {
        sorted = { column: at, direction: sorted.column === at ? -sorted.direction : 1 };
        page = 0; choose();
      });
      cell.appendChild(button);
      headRow.appendChild(cell);
    });
    head.appendChild(headRow); table.appendChild(head); table.appendChild(body); scroll.appendChild(table);

    var pager = make("div", { "class": "pager" });
    var back = make("button", { type: "button" }, "Previous"), on = make("button", { type: "button" }, "Next");
    var count = make("span", { "class": "count", role: "status" });
    back.addEventListener("click", function () { page -= 1; draw(); });
    on.addEventListener("click", function () { page += 1; draw(); });
    pager.append(back, on, count);
    if (total > 5) { place.appendChild(controls); }
    place.append(scroll, pager);
    search.addEventListener("input", function () { page = 0; choose(); });

    function rowText(i) { return columns.map(function (c) { return shown(c, c.values[i]); }).join("\n").toLowerCase(); }
    function compare(a, b) {
      if (sorted.column === columns.length) { return a - b; }  // as given
      var column = columns[sorted.column], x = column.values[a], y = column.values[b];
      if (x === null || y === null) { return x === y ? a - b : x === null ? 1 : -1; }
      var by = textual(column) ? collator.compare(shown(column, x), shown(column, y)) : x - y;
      return by ? sorted.direction * by : a - b;
    }
    function choose() {
      var wanted = search.value.trim().toLowerCase();
      if (wanted && !haystack) { haystack = order.map(rowText); }
      matching = order.filter(function (i) {
        return (!wanted || haystack[i].indexOf(wanted) >= 0) &&
          filters.every(function (f) { return f.select.value === "" || columns[f.at].values[i] === Number(f.select.value); });
      }).sort(compare);
      draw();
    }
    function draw() {
      var pages = Math.max(1, Math.ceil(matching.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      Array.prototype.forEach.call(headRow.children, function (cell, at) {
        if (at === sorted.column) { cell.setAttribute("aria-sort", sorted.direction > 0 ? "ascending" : "descending"); }
        else { cell.removeAttribute("aria-sort"); }
      });
      body.textContent = "";
      matching.slice(page * PAGE, (page + 1) * PAGE).forEach(drawRow);
      if (!matching.length) {
        var empty = make("td", { colspan: columns.length, "class": "miss" }, "No row matches.");
        body.appendChild(make("tr")).appendChild(empty);
      }
      var first = matching.length ? page * PAGE + 1 : 0, last = Math.min(matching.length, (page + 1) * PAGE);
      count.textContent = grouped(first, 0) + "\u2013" + grouped(last, 0) + " of " + grouped(matching.length, 0) +
        (matching.length < total ? " found, " + grouped(total, 0) + " in all" : "");
      back.disabled = page === 0; on.disabled = page >= pages - 1;
      back.hidden = on.hidden = pages === 1;
    }
    function drawRow(i) {
      var row = make("tr"), detail = data.details[i];
      columns.forEach(function (column, at) {
        var value = column.values[i], cell = make(at ? "td" : "th", at ? {} : { scope: "row" });
        var words = make(textual(column) ? "bdi" : "span", {}, shown(column, value));
        if (!textual(column)) { cell.className = value === null ? "n miss" : "n"; }
        if (at === 0 && detail) {
          var more = make("button", { type: "button", "class": "more", "aria-expanded": String(open.has(i)), title: "Show more about this row" });
          more.appendChild(words);
          more.addEventListener("click", function () {
            if (open.has(i)) { open.delete(i); row.nextSibling.remove(); } else { open.add(i); row.after(detailRow(detail)); }
            more.setAttribute("aria-expanded", String(open.has(i)));
          });
          cell.appendChild(more);
        } else { cell.appendChild(words); }
        row.appendChild(cell);
      });
      body.appendChild(row);
      if (detail && open.has(i)) { body.appendChild(detailRow(detail)); }
    }
    function detailRow(detail) {
      var row = make("tr", { "class": "detail" }), cell = make("td", { colspan: columns.length }), list = make("dl", { "class": "facts" });
      data.detailLabels.forEach(function (name, at) {
        if (!detail[at]) { return; }
        list.appendChild(make("dt", {}, name));
        list.appendChild(make("dd")).appendChild(make("bdi", {}, detail[at]));
      });
      cell.appendChild(list); row.appendChild(cell);
      return row;
    }
    choose();
  }

  // One decision, label by label: ticked influences are added to the margin.
  function Review(place) {
    var data = read(place.dataset.review), total = data.ids.length, size = data.rows.length ? 10 : 25, page = 0;
    var ticked = new Set(), strongest = Math.max.apply(null, data.influence.slice(0, 1000).map(Math.abs)) || 1;
    var list = make("ol", { "class": "labels" }), bar = make("div", { "class": "tally" });
    var says = make("p", { role: "status" }), gauge = make("div", { "class": "gauge", "aria-hidden": "true" }), fill = make("span");
    var buttons = make("div", { "class": "pager" }), count = make("span", { "class": "count" });
    gauge.appendChild(fill); bar.append(says, gauge, buttons);
    function button(words, action) {
      var node = make("button", { type: "button" }, words);
      node.addEventListener("click", action);
      buttons.appendChild(node);
      return node;
    }
    button("Tick all", function () { for (var i = 0; i < total; i += 1) { ticked.add(i); } draw(); });
    button("Untick all", function () { ticked.clear(); draw(); });
    var back = button("Previous", function () { page -= 1; draw(); place.scrollIntoView(); });
    var on = button("Next", function () { page += 1; draw(); place.scrollIntoView(); });
    buttons.appendChild(count);
    place.append(list, bar);

    function shownRow(row, item) {
      (row.texts || []).forEach(function (text) {
        var words = make("p", { "class": "passage" }), isolated = make("bdi");
        text[1].forEach(function (part, at) { isolated.appendChild(at % 2 ? make("mark", {}, part) : document.createTextNode(part)); });
        words.appendChild(isolated);
        item.appendChild(words);
      });
      if (!row.values) { return; }
      var table = make("table", { "class": "beside" }), body = make("tbody"), head = make("tr");
      ["Feature", "This training row", "The decision"].forEach(function (name) { head.appendChild(make("th", { scope: "col" }, name)); });
      table.appendChild(make("thead")).appendChild(head);
      row.values.forEach(function (value) {
        var line = make("tr"), own = make("td");
        line.appendChild(make("th", { scope: "row" })).appendChild(make("bdi", {}, value[0]));
        own.appendChild(make(value[3] ? "mark" : "bdi", {}, value[1]));
        line.appendChild(own);
        line.appendChild(make("td")).appendChild(make("bdi", {}, value[2]));
        body.appendChild(line);
      });
      table.appendChild(body);
      item.appendChild(table);
    }
    function draw() {
      var pages = Math.max(1, Math.ceil(total / size));
      page = Math.min(Math.max(page, 0), pages - 1);
      list.textContent = "";
      list.setAttribute("start", page * size + 1);
      for (var i = page * size; i < Math.min(total, (page + 1) * size); i += 1) { list.appendChild(item(i)); }
      back.disabled = page === 0; on.disabled = page === pages - 1;
      back.hidden = on.hidden = pages === 1;
      count.textContent = pages === 1 ? "" : "page " + (page + 1) + " of " + pages;
      tally();
    }
    function item(i) {
      var node = make("li"), line = make("label"), box = make("input", { type: "checkbox" });
      var words = make("span", { "class": "what" }), effect = make("span", { "class": "effect" }, signed(data.influence[i]));
      var size = make("span", { "class": "bar", style: "width:" + (100 * Math.abs(data.influence[i]) / strongest).toFixed(1) + "%" });
      box.checked = ticked.has(i);
      box.addEventListener("change", function () { if (box.checked) { ticked.add(i); } else { ticked.delete(i); } tally(); });
      words.append("Training row ", make("bdi", {}, data.ids[i]), ": ", make("bdi", {}, data.old[i]), " \u2192 ", make("bdi", {}, data.new[i]));
      effect.title = "moves the margin by, alone";
      line.append(box, words, effect);
      node.append(line, size);
      if (data.rows[i]) { shownRow(data.rows[i], node); }
      return node;
    }
    function tally() {
      var sum = 0, refitted = data.after !== null && ticked.size === total;
      ticked.forEach(function (i) { sum += data.scale * data.influence[i]; });
      var margin = data.margin + sum;
      var after = refitted ? data.after : data.several ? margin : 1 / (1 + Math.exp(-(margin + data.offset)));
      var before = data.margin > 0, now = refitted ? data.positive : margin > 0, flips = now !== before;
      var done = Math.min(1, Math.max(0, refitted ? 1 : -sum / data.margin));
      fill.style.width = (100 * done).toFixed(1) + "%";
      bar.classList.toggle("flips", flips);
      says.textContent = "";
      var verdict = make("strong", {}, ticked.size === 0 ? "Nothing ticked. " : flips ? "It flips. " : "It stands. ");
      if (data.several) {
        says.append(verdict, ticked.size ? grouped(ticked.size, 0) + " of " + grouped(total, 0) + " labels: the lead of " : "The lead of ",
          make("bdi", {}, data.classes[1]), " over ", make("bdi", {}, data.classes[0]), ticked.size ? refitted ? " becomes " : " becomes about " : " is ",
          signed(after), " (log-odds)", refitted ? ", by the refitted model." : ".");
        return;
      }
      says.append(verdict, ticked.size ? grouped(ticked.size, 0) + " of " + grouped(total, 0) + " labels: probability of " : "Probability of ",
        make("bdi", {}, data.classes[1]), ticked.size ? refitted ? " becomes " : " becomes about " : " is ", probability(after), ", that is ",
        make("bdi", {}, data.classes[now ? 1 : 0]), refitted ? " by the refitted model." : ".");
    }
    draw();
  }

  drawNavigation();
  document.querySelectorAll("[data-table]").forEach(DataTable);
  document.querySelectorAll("[data-review]").forEach(Review);
})();
