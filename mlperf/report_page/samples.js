/* The sample browser. Its index is read at once; texts are read, a chunk at a time, when a sample is
   opened or searched. */

const PAGE_ROWS = 50;
const LOOK_MS = 100; // between two updates of the list during a search

const find = (id) => document.getElementById(id);
const controls = ["task", "grade", "finish"];
let samples = []; // all rows, in the file's order
let starts = []; // the first row of each chunk
let invisible; // what `marked` shows as code points
let shown = []; // rows that fit search and filters, in order
let page = 0;
let opened = null; // the open row
let searches = 0; // how many have begun; an older one than the newest ends itself
let recent = { number: -1, texts: null }; // the chunk that was read last

async function readTexts(number) {
  if (recent.number !== number) recent = { number, texts: await block(`sample-texts-${number}`) };
  return recent.texts;
}

function chunkOf(row) {
  let low = 0;
  let high = starts.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

function order(rows) {
  const value = find("order").value;
  const sign = value.startsWith("-") ? -1 : 1;
  const key = value.replace("-", "");
  if (key === "row") return rows;
  // what is not known comes last
  const place = (sample) => (sample[key] === null ? Infinity : sign * sample[key]);
  return rows.toSorted((one, other) => place(one) - place(other) || one.row - other.row);
}

async function update() {
  const search = ++searches;
  const text = find("search").value.trim().toLowerCase();
  const fits = (sample) => controls.every((name) => ["", sample[name]].includes(find(name).value));
  const candidates = samples.filter(fits);
  page = 0;
  if (!text) {
    show(order(candidates), `${count(candidates.length)} of ${count(samples.length)} samples`);
    return;
  }
  const rows = [];
  let last = performance.now();
  for (let position = 0; position < candidates.length; ) {
    const number = chunkOf(candidates[position].row);
    const texts = await readTexts(number);
    if (search !== searches) return;
    for (; position < candidates.length && chunkOf(candidates[position].row) === number; position++) {
      const sample = candidates[position];
      const own = texts[sample.row - starts[number]];
      const all = [...own, sample.extracted, sample.expected, sample.rule, sample.dataset, sample.sample];
      if (all.some((one) => one !== null && String(one).toLowerCase().includes(text))) rows.push(sample);
    }
    if (performance.now() - last > LOOK_MS) {
      show(order(rows), `${count(rows.length)} found in ${count(position)} of ${count(candidates.length)} samples …`);
      await new Promise((resume) => setTimeout(resume));
      if (search !== searches) return;
      last = performance.now();
    }
  }
  show(order(rows), `${count(rows.length)} found in ${count(candidates.length)} samples`);
}

function show(rows, message) {
  shown = rows;
  find("count").textContent = message;
  const pages = Math.max(Math.ceil(rows.length / PAGE_ROWS), 1);
  page = Math.min(page, pages - 1);
  find("page").textContent = `${page + 1} of ${pages}`;
  find("previous").disabled = page === 0;
  find("next").disabled = page === pages - 1;
  find("rows").replaceChildren(...rows.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS).map(line));
}

function line(sample) {
  const graded = !find("grade").closest("label").hidden;
  const button = element("button", { type: "button", "data-row": String(sample.row) }, String(sample.sample ?? sample.row));
  const cells = [
    element("td", {}, button),
    element("td", {}, marked(sample.task, invisible)),
    ...(graded ? [element("td", {}, grade(sample))] : []),
    element("td", { class: "number" }, count(sample.tokens)),
    element("td", { class: "wide" }, brief(graded ? sample.extracted : sample.finish)),
    element("td", { class: "wide" }, brief(sample.expected)),
  ];
  const made = element("tr", {}, ...cells);
  if (sample.row === opened) made.setAttribute("aria-current", "true");
  return made;
}

function grade(sample) {
  const tone = { right: "good", wrong: "bad" }[sample.grade] ?? "doubt";
  return element("span", { class: tone }, sample.grade ?? "–");
}

function brief(text) {
  const short = text === null ? "–" : text.length > 60 ? `${text.slice(0, 59)}…` : text;
  return marked(short, invisible);
}

function count(value) {
  return value === null ? "–" : value.toLocaleString("en-US");
}

function measure(value, unit) {
  return value === null ? "–" : `${value.toLocaleString("en-US", { maximumSignificantDigits: 4 })} ${unit}`;
}

async function open(row, focus = true) {
  opened = row;
  const number = chunkOf(row);
  const texts = await readTexts(number);
  if (opened !== row) return;
  const sample = samples[row];
  const [question, output, detail] = texts[row - starts[number]];
  const end = (output ?? "").indexOf("</think>");
  const isProgram = (sample.extracted ?? "").includes("\n");
  const heading = element("h3", { tabindex: "-1" }, `Sample ${sample.sample ?? row}`);
  const facts = [
    ["task", sample.task === sample.dataset ? sample.task : `${sample.task} (${sample.dataset})`],
    ["grade", grade(sample)],
    ["extracted", isProgram ? "a program, see below" : (sample.extracted ?? "–")],
    ["expected", sample.expected ?? "–"],
    ["rule that decided", sample.rule ?? "–"],
    ["status", sample.status ?? "–"],
    ["detail", detail ?? "–"],
    ["tokens", `${count(sample.tokens)}, ended by ${sample.finish ?? "–"}`],
    ["TTFT", measure(sample.ttft_ms, "ms")],
    ["TPOT", measure(sample.tpot_ms, "ms")],
    ["time", measure(sample.latency_s, "s")],
    ["endpoint", sample.endpoint ?? "–"],
  ].filter(([, value]) => value !== "–" && value?.textContent !== "–");
  const list = element("dl", { class: "facts" });
  for (const [name, value] of facts) {
    const text = typeof value === "string" ? marked(value, invisible) : value;
    list.append(element("div", {}, element("dt", {}, name), element("dd", {}, text)));
  }
  find("detail").replaceChildren(
    heading,
    list,
    part("Question", question),
    ...(end < 0
      ? [part("Answer (its reasoning has no end)", output)]
      : [part("Reasoning", output.slice(0, end)), part("Answer", output.slice(end + 8))]),
    ...(isProgram ? [part("Extracted", sample.extracted)] : []),
  );
  for (const current of find("rows").querySelectorAll("[aria-current]")) current.removeAttribute("aria-current");
  button(row)?.closest("tr").setAttribute("aria-current", "true");
  find("detail").scrollTop = 0;
  history.replaceState(null, "", `#row-${row}`);
  if (focus) {
    heading.focus({ preventScroll: true });
    find("detail").scrollIntoView({ block: "nearest" });
  }
}

function part(title, text) {
  const body = element("pre", { dir: "auto" }, highlighted((text ?? "").trim() || "(empty)"));
  return element("details", { open: true }, element("summary", {}, title), body);
}

/* Text in which what was searched for is marked. */
function highlighted(text) {
  const wanted = find("search").value.trim();
  const nodes = document.createDocumentFragment();
  let start = 0;
  if (wanted) {
    const pattern = new RegExp(wanted.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "giu");
    for (const match of text.matchAll(pattern)) {
      nodes.append(marked(text.slice(start, match.index), invisible), element("mark", {}, marked(match[0], invisible)));
      start = match.index + match[0].length;
    }
  }
  nodes.append(marked(text.slice(start), invisible));
  return nodes;
}

function button(row) {
  return find("rows").querySelector(`[data-row="${row}"]`);
}

/* Opens the sample that is `step` places after the open one in the list. */
function openNext(step) {
  const place = shown.findIndex((sample) => sample.row === opened) + step;
  if (place < 0 || place >= shown.length) return;
  const wanted = Math.floor(place / PAGE_ROWS);
  if (wanted !== page) turn(wanted);
  open(shown[place].row);
}

function turn(to) {
  page = to;
  show(shown, find("count").textContent);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (find("detail").contains(event.target) && opened !== null) button(opened)?.focus();
    return;
  }
  if (typing) return;
  const buttons = [...find("rows").querySelectorAll("button")];
  const place = buttons.indexOf(event.target);
  if (event.key === "/") find("search").focus();
  else if (event.key === "j") openNext(1);
  else if (event.key === "k") openNext(-1);
  else if (place >= 0 && event.key === "ArrowDown") buttons[Math.min(place + 1, buttons.length - 1)].focus();
  else if (place >= 0 && event.key === "ArrowUp") buttons[Math.max(place - 1, 0)].focus();
  else return;
  event.preventDefault();
}

function openLinked() {
  const row = /^#row-(\d+)$/.exec(location.hash)?.[1];
  if (row === undefined || Number(row) >= samples.length) return;
  find("samples").scrollIntoView();
  open(Number(row));
}

async function start() {
  const index = await block("sample-index");
  starts = index.starts;
  invisible = new RegExp(index.controls, "gu");
  const names = Object.keys(index.columns);
  samples = Array.from({ length: index.rows }, (_, row) =>
    Object.fromEntries([["row", row], ...names.map((name) => [name, index.columns[name][row]])]),
  );
  let timer;
  find("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(update, 150);
  });
  for (const name of [...controls, "order"]) find(name).addEventListener("change", update);
  find("previous").addEventListener("click", () => turn(page - 1));
  find("next").addEventListener("click", () => turn(page + 1));
  find("rows").addEventListener("click", (event) => {
    const row = event.target.closest("tr")?.querySelector("button").dataset.row;
    if (row !== undefined) open(Number(row));
  });
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", openLinked);
  await update();
  openLinked();
}

start();
