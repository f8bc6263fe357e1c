"use strict";
// Everything that comes from the data is set as text or as an attribute's value, never as markup.

const PAGE = 40; // pairs that are in the document at a time
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

const farm = {
  about: null,
  pairs: [],
  begin(about) {
    this.about = about;
    byId("count").textContent = "Loading…";
    this.load(0);
  },
  add(pairs) {
    for (const pair of pairs) this.pairs.push(pair);
  },
  load(number) {
    if (number >= this.about.scripts) return start();
    const script = document.createElement("script");
    script.src = `data/${number}.js`;
    script.onload = () => this.load(number + 1);
    script.onerror = () => { byId("count").textContent = `data/${number}.js cannot be read: the folder is not whole`; };
    document.head.append(script);
  },
};

let found = []; // pairs that the filters leave, in order
let page = 0;
let current = -1; // place of the chosen pair on the page

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const stateOf = (pair) => (pair.texts ? "described" : pair.failed ? "failed" : "pending");
const imageOf = (pair) => farm.about.images[pair.image];
const bestSimilarity = (pair) => Math.max(...pair.candidates.map(([, similarity]) => similarity));
const textLength = (pair) => Math.max(-1, ...(pair.texts || []).map(({ text }) => text.length));

function wordsOf(pair) {
  pair.words ??= [String(imageOf(pair).id), ...pair.names, ...pair.candidates.map(([name]) => name),
    ...(pair.texts || []).map(({ text }) => text), pair.failed || "", pair.detail || ""].join("\n").toLowerCase();
  return pair.words;
}

const FILTERS = {
  search: (pair, wanted) => wanted.toLowerCase().split(/\s+/).every((word) => wordsOf(pair).includes(word)),
  image: (pair, wanted) => String(imageOf(pair).id) === wanted,
  class: (pair, wanted) => pair.names.includes(wanted),
  predicate: (pair, wanted) => pair.candidates.some(([name]) => name === wanted),
  state: (pair, wanted) => stateOf(pair) === wanted,
  failure: (pair, wanted) => pair.failed === wanted,
  finish: (pair, wanted) => (pair.texts || []).some(({ finish }) => finish === wanted),
  gt: (pair, wanted) => {
    const rank = pair.candidates.findIndex(([name]) => pair.gt.includes(name));
    return { yes: pair.gt.length > 0, no: pair.gt.length === 0, first: rank === 0, missed: rank > 0 }[wanted];
  },
};

const SCORES = { similarity: bestSimilarity, length: textLength };

function filter() {
  const wanted = Object.entries(FILTERS).map(([id, fits]) => [fits, byId(id).value.trim()]).filter(([, value]) => value);
  found = farm.pairs.filter((pair) => wanted.every(([fits, value]) => fits(pair, value)));
  const sort = byId("sort").value;
  if (sort) {
    const score = SCORES[sort.slice(0, -1)];
    const scored = found.map((pair, at) => [score(pair), at, pair]);
    const sign = sort.endsWith("-") ? -1 : 1;
    scored.sort((a, b) => sign * (a[0] - b[0]) || a[1] - b[1]);
    found = scored.map(([, , pair]) => pair);
  }
  show(0);
}

function show(number) {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(Math.max(number, 0), pages - 1);
  current = -1;
  byId("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(item));
  const total = farm.pairs.length;
  const of = found.length === total ? "" : ` of ${total.toLocaleString("en")}`;
  byId("count").textContent = `${found.length.toLocaleString("en")}${of} pairs`;
  byId("page").textContent = `Page ${page + 1} of ${pages}`;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === pages - 1;
}

function item(pair) {
  const article = element("article", { tabindex: "-1" }, picture(pair), words(pair));
  article.setAttribute("aria-label", `${pair.names[0]} and ${pair.names[1]} in image ${imageOf(pair).id}`);
  return element("li", {}, article);
}

function picture(pair) {
  const image = imageOf(pair);
  const [width, height] = image.size;
  const frame = element("div", { class: "picture" });
  frame.style.aspectRatio = `${width} / ${height}`;
  if (image.picture) {
    frame.append(element("img", { src: `pictures/${pair.image}.jpg`, alt: `Image ${image.id}`, loading: "lazy", decoding: "async" }));
  } else {
    frame.append(element("p", { class: "no-picture" }, "no picture"));
  }
  const overlay = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  pair.boxes.forEach((box, at) => {
    const [left, right] = [Math.min(box[0], box[2]), Math.max(box[0], box[2])];
    const [top, bottom] = [Math.min(box[1], box[3]), Math.max(box[1], box[3])];
    const place = { x: left, y: top, width: right - left, height: bottom - top };
    overlay.append(drawn("rect", { ...place, class: "under" }), drawn("rect", { ...place, class: at ? "object" : "subject" }));
  });
  frame.append(overlay);
  return element("figure", {}, frame, element("figcaption", {}, `image ${image.id}, ${image.path}`));
}

function words(pair) {
  const ids = pair.ids ? ` (${pair.ids[0]}, ${pair.ids[1]})` : "";
  const title = element("h2", {}, element("span", { class: "subject-name" }, pair.names[0]), " and ",
    element("span", { class: "object-name" }, pair.names[1]), ids);
  const whole = element("div", {}, title);
  if (pair.failed) whole.append(element("p", { class: "failed" }, `failed: ${pair.failed}: ${pair.detail || ""}`));
  else if (!pair.texts) whole.append(element("p", { class: "pending" }, "not described yet"));
  const list = element("dl");
  const together = farm.about.style === "per-pair";
  pair.candidates.forEach(([name, similarity], at) => {
    const chip = element("span", { class: "chip" }, element("b", {}, name), ` ${similarity.toFixed(2)}`);
    chip.style.setProperty("--share", `${Math.min(Math.max(similarity, 0), 1) * 100}%`);
    const term = element("dt", {}, chip);
    if (pair.gt.includes(name)) term.append(element("span", { class: "mark true" }, "✓ ground truth"));
    list.append(term);
    const text = together ? undefined : pair.texts?.[at];
    list.append(text ? description(text) : element("dd"));
  });
  whole.append(list);
  if (together && pair.texts) {
    const said = description(pair.texts[0]);
    whole.append(element("dl", {}, element("dt", {}, "description"), said));
  }
  const unseen = pair.gt.filter((name) => !pair.candidates.some(([candidate]) => candidate === name));
  if (unseen.length) whole.append(element("p", { class: "pending" }, `ground truth that is no candidate: ${unseen.join(", ")}`));
  return whole;
}

function description(text) {
  const said = element("dd", {}, text.text);
  if (text.finish === "length") said.append(element("span", { class: "mark cut" }, ` (cut off after ${text.tokens} tokens)`));
  if (text.reused) said.append(element("span", { class: "mark" }, " (reused)"));
  return said;
}

function choose(step) {
  const articles = document.querySelectorAll("#list article");
  const wanted = current + step;
  if (wanted >= articles.length && page < Math.ceil(found.length / PAGE) - 1) { show(page + 1); return choose(1); }
  if (wanted < 0 && page > 0) { show(page - 1); current = PAGE; return choose(-1); }
  if (wanted < 0 || wanted >= articles.length) return;
  current = wanted;
  articles[current].focus();
  articles[current].scrollIntoView({ block: "nearest" });
}

function toggle(open = byId("more").hidden) {
  byId("more").hidden = !open;
  byId("toggle").setAttribute("aria-expanded", String(open));
  if (open) byId("image").focus();
}

function options(id, values, first = "any") {
  const counted = new Map();
  for (const value of values) counted.set(value, (counted.get(value) || 0) + 1);
  const sorted = [...counted].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const select = byId(id);
  select.append(element("option", { value: "" }, first));
  for (const [value, count] of sorted) select.append(element("option", { value }, `${value} (${count.toLocaleString("en")})`));
  select.disabled = counted.size === 0;
}

function drops() {
  const { dropped } = farm.about;
  if (!dropped.length) return;
  byId("drops").hidden = false;
  const select = byId("drop-reason");
  select.append(element("option", { value: "" }, "all"));
  for (const { reason } of dropped) select.append(element("option", { value: reason }, reason));
  const list = () => byId("drop-list").replaceChildren(...dropped
    .filter(({ reason }) => !select.value || reason === select.value)
    .map(({ reason, count, unit, examples }) => element("li", {}, `${count.toLocaleString("en")} ${unit}: ${reason}`,
      element("ul", {}, ...examples.map((example) => element("li", {}, example))))));
  select.addEventListener("change", list);
  list();
}

function start() {
  const { about, pairs } = farm;
  const { counts } = about;
  document.title = `Relations of run ${about.run}`;
  byId("title").textContent = `Relations of run ${about.run}`;
  const rest = counts.shown < counts.pairs ? ` This page shows the first ${counts.shown.toLocaleString("en")}.` : "";
  byId("about").textContent = `${about.model}, ${about.style}, ${about.state}: ${counts.done} of ${counts.pairs} pairs described, `
    + `${counts.failed} failed, ${counts.pending} pending.${rest}`;
  options("class", pairs.flatMap((pair) => [...new Set(pair.names)]));
  options("predicate", pairs.flatMap((pair) => [...new Set(pair.candidates.map(([name]) => name))]));
  options("state", pairs.map(stateOf));
  options("failure", pairs.flatMap((pair) => pair.failed || []));
  options("finish", pairs.flatMap((pair) => [...new Set((pair.texts || []).map(({ finish }) => finish))]));
  byId("image-ids").append(...about.images.slice(0, 2000).map(({ id }) => element("option", { value: id })));
  drops();
  let waiting;
  byId("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  byId("toggle").addEventListener("click", () => toggle());
  byId("previous").addEventListener("click", () => { show(page - 1); scrollTo(0, 0); });
  byId("next").addEventListener("click", () => { show(page + 1); scrollTo(0, 0); });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return undefined;
    const actions = { j: () => choose(1), k: () => choose(-1), "/": () => byId("search").focus(), f: () => toggle() };
    if (!actions[event.key]) return undefined;
    event.preventDefault();
    return actions[event.key]();
  });
  filter();
  document.body.dataset.ready = "yes";
}
