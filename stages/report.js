// The report's curves, map and pictures. It draws what stages/explore.py put into #data, with Vega-Lite,
// which the page holds; `share` (kept) and `head` are asked once, and everything follows.
const { heads, choices, cases, sets } = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const controls = $("#controls"), dialog = $("#pair"), hover = $("#hover");
const look = new Map(heads.map((head) => [head.name, head]));
const percent = (share, digits = 0) => share === null ? "–" : `${(100 * share).toFixed(digits)} %`;
const count = (number) => number.toLocaleString("en");
const state = { share: 0.8, head: choices[0], set: sets.findIndex((set) => set.pairs.x.some((x) => x !== null)) };
const views = new Map(); // element -> its Vega view

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The risk at the greatest coverage that keeps no more than the share; of the fewest where none does.
function kept(set, head, share) {
  const at = Math.max(0, set.coverage.findLastIndex((coverage) => coverage <= share + 1e-9));
  return { coverage: set.coverage[at], risk: set.risk[head][at] };
}

// --- Charts ---------------------------------------------------------------------------------------

function theme() {
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const [text, soft, line] = ["--ink", "--soft", "--line"].map(ink);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: null, font, view: { stroke: null },
    axis: { labelColor: soft, titleColor: text, titleFontWeight: 500, gridColor: line, domainColor: soft, tickColor: soft },
    title: { color: text, fontSize: 13, anchor: "start" },
    legend: { labelColor: soft, titleColor: text }, rule: { color: soft }, range: { category: { scheme: "tableau20" } },
  };
}

async function draw(place, spec, options = {}) {
  views.get(place)?.finalize();
  const base = { actions: false, ast: true, renderer: "canvas", config: theme() };
  const { view } = await vegaEmbed(place, { width: "container", ...spec }, { ...base, ...options });
  views.set(place, view);
  return view;
}

const params = () => ["share", "head"].map((name) => ({ name, value: state[name] }));
const x = { field: "x", type: "quantitative", scale: { domain: [0, 1] } };
const axis = (title) => ({ title, values: [0, 0.5, 1], format: "~%" });
const line = (filter, extra = {}) => ({
  transform: [{ filter }],
  mark: { type: "line", clip: true },
  encoding: {
    x: { ...x, axis: axis("coverage: share kept") },
    y: { field: "y", type: "quantitative", axis: { title: "risk: share wrong", format: "~%", tickCount: 5 } },
    detail: { field: "head" },
    color: { field: "color", type: "nominal", scale: null },
    strokeDash: { field: "dash", type: "nominal", scale: null },
    tooltip: [{ field: "label", title: "head" }, { field: "x", title: "kept", format: ".0%" }, { field: "y", title: "wrong", format: ".1%" }],
    ...extra,
  },
});
const atShare = { data: { values: [{}] }, mark: { type: "rule", strokeDash: [4, 3] }, encoding: { x: { datum: { expr: "share" }, type: "quantitative" } } };

function riskSpec(set) {
  const values = Object.entries(set.risk).flatMap(([head, risks]) => risks.map(
    (y, at) => ({ head, y, x: set.coverage[at], label: look.get(head).label, color: look.get(head).color ?? theme().title.color, dash: look.get(head).dash })));
  return {
    title: set.name, height: 180, params: params(), data: { values },
    layer: [
      line("datum.head !== head", { opacity: { value: 0.45 }, size: { value: 1 } }),
      line("datum.head === head", { size: { value: 3 } }),
      ...(set.level === null ? [] : [{ data: { values: [{}] }, mark: { type: "rule", opacity: 0.6 }, encoding: { y: { datum: set.level, type: "quantitative" } } }]),
      atShare,
    ],
  };
}

function safeSpec(set) {
  return {
    title: set.name, height: 180, params: params(), data: { values: set.safe },
    layer: [
      {
        mark: { type: "line", point: true, clip: true },
        encoding: {
          x: { field: "share", type: "quantitative", scale: { domain: [0.45, 1] }, axis: axis("share kept") },
          y: { field: "recall", type: "quantitative", scale: { zero: false }, axis: { title: "R@1", format: ".2f", tickCount: 5 } },
          color: { field: "case", type: "nominal", legend: null, scale: { domain: cases.map((each) => each.name), range: cases.map((each) => each.color ?? theme().title.color) } },
          strokeDash: { field: "case", type: "nominal", legend: null, scale: { domain: cases.map((each) => each.name), range: cases.map((each) => each.dash) } },
          tooltip: [{ field: "case" }, { field: "share", title: "kept", format: ".0%" }, { field: "recall", title: "R@1", format: ".3f" }, { field: "queries", format: "," }],
        },
      },
      atShare,
    ],
  };
}

function calibrationSpec(set) {
  const values = Object.entries(set.calibration).flatMap(([head, bins]) => bins.map((bin) => ({ head, ...bin })));
  const bar = { x: { field: "start", type: "quantitative", scale: { domain: [0, 1] }, axis: axis("percentile") }, x2: { field: "stop" } };
  const middle = { field: "middle", type: "quantitative" };
  const tooltip = [{ field: "start", title: "percentile from", format: ".0%" }, { field: "images", format: "," }, { field: "share", title: "of the set", format: ".1%" }, { field: "wrong", format: ".1%" }];
  return {
    title: set.name, height: 180, params: params(), data: { values }, transform: [{ filter: "datum.head === head" }, { calculate: "(datum.start + datum.stop) / 2", as: "middle" }],
    layer: [
      { mark: { type: "bar", opacity: 0.35, color: "#8a919a" }, encoding: { ...bar, y: { field: "share", type: "quantitative", scale: { domain: [0, 1] }, axis: { title: "share", format: "~%", tickCount: 5 } }, y2: { datum: 0 }, tooltip } },
      { mark: { type: "rule", opacity: 0.8 }, data: { values: [{}] }, encoding: { y: { datum: 0.1, type: "quantitative" } } },
      { mark: { type: "rule", size: 1.5 }, encoding: { x: middle, y: { field: "lower", type: "quantitative" }, y2: { field: "upper" }, color: { value: "#d55e00" } } },
      { mark: { type: "point", filled: true, size: 50, color: "#d55e00" }, encoding: { x: middle, y: { field: "wrong", type: "quantitative" }, tooltip } },
    ],
  };
}

// Each point's rank among the set's points by the head, the most certain first: 0 to 1.
function points(set, colour) {
  const pairs = set.pairs, percentiles = pairs.percentile[state.head];
  const shown = pairs.query.map((_, at) => at).filter((at) => pairs.x[at] !== null && percentiles[at] !== null);
  const order = shown.toSorted((a, b) => percentiles[b] - percentiles[a]); // the most certain on top
  return order.map((at, place) => ({
    at, x: pairs.x[at], y: pairs.y[at], rank: 1 - place / Math.max(1, order.length - 1),
    hue: colour === "class" ? set.classes[pairs.query[at].label] : pairs.hit[at] ? "right" : "wrong",
  }));
}

// One scale for both axes: the range of either, as wide as the drawing's shape asks for.
function ranges(values, width, height) {
  const [x, y] = ["x", "y"].map((axis) => values.map((point) => point[axis])).map((all) => [Math.min(...all), Math.max(...all)]);
  const unit = 1.06 * Math.max((x[1] - x[0]) / width, (y[1] - y[0]) / height, 1e-6);
  return [[x, width], [y, height]].map(([[low, high], length]) => [-1, 1].map((side) => (low + high) / 2 + (side * unit * length) / 2));
}

function mapSpec(set, colour, width) {
  const height = Math.min(560, Math.max(320, innerHeight * 0.6)), values = points(set, colour);
  const [across, up] = ranges(values, width, height), bare = (domain) => ({ type: "quantitative", axis: null, scale: { domain, nice: false } });
  const right = { domain: ["right", "wrong"], range: ["#0072b2", "#d55e00"] };
  const many = new Set(values.map((point) => point.hue)).size > 20;
  return {
    height, params: params(), data: { values },
    mark: { type: "circle", stroke: null, tooltip: { content: "data" } },
    encoding: {
      x: { field: "x", ...bare(across) }, y: { field: "y", ...bare(up) },
      color: { field: "hue", type: "nominal", title: null, legend: many ? null : { orient: "bottom", columns: 5, symbolOpacity: 1 }, scale: colour === "class" ? {} : right },
      size: { field: "rank", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [130, 8] } },
      opacity: { condition: { test: "datum.rank <= share", field: "rank", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [0.9, 0.35] } }, value: 0.1 },
    },
  };
}

// --- Pictures -------------------------------------------------------------------------------------

function picture(set, role, image) {
  if (image === null) return element("span", { className: "unreadable", textContent: "no other image" });
  if (image.tile < 0) return element("span", { className: "unreadable", textContent: image.key });
  const text = `${role} ${image.key}, labelled ${set.classes[image.label]}`;
  const made = element("span", { className: "tile", role: "img", ariaLabel: text, title: text });
  made.dataset.set = sets.indexOf(set);
  const { columns, rows, tiny } = set.mosaic, place = (at, of) => `${(100 * at) / Math.max(1, of - 1)}%`;
  made.classList.toggle("tiny", tiny);
  made.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  made.style.backgroundPosition = `${place(image.tile % columns, columns)} ${place(Math.floor(image.tile / columns), rows)}`;
  return made;
}

// A query above what it retrieved, as the galleries, the map's hover and the dialog show them.
function pair(set, at) {
  const { query, neighbour, hit, percentile } = set.pairs, of = percentile[state.head][at], near = neighbour[at];
  const verdict = hit[at] ? "✓ right" : near === null ? "✗ no other image" : `✗ ${set.classes[near.label]}`;
  const mark = element("span", { className: "mark", textContent: hit[at] ? "✓" : "✗", ariaHidden: "true" });
  return element("figure", { className: hit[at] ? "hit" : "miss" }, [
    element("div", { className: "query" }, [picture(set, "query", query[at])]),
    element("div", { className: "neighbour" }, [picture(set, "retrieved", near), mark]),
    element("figcaption", {}, [
      element("b", { textContent: set.classes[query[at].label] }), `rank ${percent(of, 1)}`, element("span", { textContent: verdict }),
    ]),
  ]);
}

function open(set, at) {
  const { query, neighbour, percentile, similarity, hit } = set.pairs, near = neighbour[at];
  const facts = [
    ["Query", query[at].key], ["Retrieved", near?.key ?? "no other image"], ["Right", hit[at] ? "yes" : near === null ? "no: it found nothing" : "no: of another class"],
    ["Similarity", near === null ? "–" : similarity[at].toFixed(3)],
    ...choices.map((head) => [look.get(head).label, percent(percentile[head][at], 1)]),
  ];
  const terms = facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]);
  $("div", dialog).replaceChildren(pair(set, at), element("dl", { className: "terms" }, terms));
  dialog.showModal();
}

function strip(title, set, rows) {
  const buttons = rows.map((at) => {
    const button = element("button", { type: "button" }, [pair(set, at)]);
    button.addEventListener("click", () => open(set, at));
    return element("li", {}, [button]);
  });
  return [element("h4", { textContent: title }), element("ul", { className: "strip" }, buttons)];
}

function gallery(place) {
  const set = sets[place.dataset.set], group = $("select", place).value, { query, percentile } = set.pairs;
  const of = percentile[state.head], ends = set.tenths[state.head];
  const rows = query.map((_, at) => at).filter((at) => of[at] !== null && (group === "" || query[at].label === Number(group)));
  rows.sort((a, b) => of[a] - of[b]); // ties stay in the order of the lot
  const length = Math.min(Number(place.dataset.shown), Math.ceil(rows.length / 2));
  $(".wrong", place).textContent = ends && `Wrong by ${look.get(state.head).label}: ${percent(ends[0])} of the most certain tenth, ` +
    `${percent(ends[1])} of the least certain tenth, ${percent(set.level)} of all.`;
  $(".shown", place).replaceChildren(
    ...strip("Most certain", set, rows.slice(0, length)), ...strip("Least certain", set, rows.slice(rows.length - length).reverse()));
}

// The classes that have pictures, the most uncertain first by the first head.
function listClasses(place) {
  const set = sets[place.dataset.set], { query, percentile } = set.pairs;
  const known = query.map((_, at) => at).filter((at) => percentile[choices[0]][at] !== null);
  const groups = Map.groupBy(known, (at) => query[at].label);
  const means = [...groups].map(([label, rows]) => [label, rows.reduce((sum, at) => sum + percentile[choices[0]][at], 0) / rows.length]);
  means.sort((a, b) => b[1] - a[1]);
  $("select", place).append(...means.map(([label, mean]) => element("option", { value: label, textContent: `${set.classes[label]} (${percent(mean)})` })));
}

// --- What follows the controls --------------------------------------------------------------------

function numbers() {
  const rows = sets.map((set) => {
    const { coverage, risk } = kept(set, state.head, state.share), wrong = element("td", { textContent: percent(risk, 1) });
    const all = kept(set, state.head, 1).risk; // a head with neighbours of its own has a risk of its own
    const cells = [`${count(Math.round(coverage * set.images))} of ${count(set.images)}`, percent(all, 1)];
    return element("tr", {}, [element("th", { scope: "row", textContent: set.name }), element("td", { textContent: cells[0] }), wrong, element("td", { textContent: cells[1] })]);
  });
  $("#kept tbody").replaceChildren(...rows);
  $("output", controls).textContent = percent(state.share);
}

function drawMap() {
  const place = $("#map .chart");
  if (!place) return;
  const set = sets[state.set], colour = $("#colour").value;
  const show = (handler, event, item, value) => {
    hover.hidden = !value;
    if (!value) return;
    hover.replaceChildren(pair(set, value.at ?? item.datum.at));
    const { width, height } = hover.getBoundingClientRect();
    hover.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
    hover.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  };
  return draw(place, mapSpec(set, colour, place.clientWidth), { tooltip: show }).then((view) => view.addEventListener("click", (_, item) => {
    if (item?.datum?.at !== undefined) { hover.hidden = true; open(set, item.datum.at); }
  }));
}

const charts = { risk: riskSpec, safe: safeSpec, calibration: calibrationSpec };
const drawAll = () => Promise.all([...document.querySelectorAll("[data-chart]")]
  .map((place) => draw(place, charts[place.dataset.chart](sets[place.dataset.set]))).concat(drawMap()));

// Charts in sight follow at once, one drawing a frame however fast the slider moves; others when they come into sight.
const insight = new Set();
const refresh = (place) => views.get(place)?.signal("share", state.share).signal("head", state.head).runAsync();
const watch = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  insight[isIntersecting ? "add" : "delete"](target);
  if (isIntersecting) refresh(target);
}), { rootMargin: "200px" });

let waiting = false;
function follow() {
  numbers();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    insight.forEach(refresh);
  });
}

$("#share").addEventListener("input", (event) => { state.share = event.target.valueAsNumber / 100; follow(); });
$("#head").addEventListener("change", (event) => {
  state.head = event.target.value;
  for (const named of document.querySelectorAll("[data-head]")) named.textContent = look.get(state.head).label;
  follow();
  drawMap();
  document.querySelectorAll(".gallery").forEach(gallery);
});
for (const id of ["#colour", "#mapped"]) $(id)?.addEventListener("change", () => { state.set = Number($("#mapped").value); drawMap(); });
for (const place of document.querySelectorAll(".gallery")) {
  listClasses(place);
  gallery(place);
  $("select", place).addEventListener("change", () => gallery(place));
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
controls.addEventListener("submit", (event) => event.preventDefault());
numbers();
document.querySelectorAll(".chart").forEach((place) => watch.observe(place));
drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
