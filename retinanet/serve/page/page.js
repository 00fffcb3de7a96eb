// The page asks once, with threshold 0, and then filters what it was told: slider and classes need no new request.
"use strict";

const PALETTE = ["#ffc33b", "#008df9", "#e20134", "#00c2f9", "#ff6e3a", "#8400cd", "#00fccf", "#ff5aaf", "#009f81", "#a40122", "#ffb2fd", "#9f0162"];
const SVG = "http://www.w3.org/2000/svg";
const KEY = "retinanet-token";
const TRIES = 5;

const $ = (id) => document.getElementById(id);
const main = document.querySelector("main");
const names = []; // of the model's classes, in their order: it gives the colours
const hidden = new Set(); // classes that are not shown
let about = null; // what /model says
let shown = null; // {file, url, answer, seconds} of the image that is on the page
let running = null; // AbortController of the request that is under way
let asking = null; // promise of a token while the dialog is open
let pointed = null; // place of the detection that stands out

// ---- the server

async function call(path, options = {}) {
  for (let tries = 1; ; tries++) {
    const token = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is it still running?");
    }
    if (response.status === 401) {
      if (token === sessionStorage.getItem(KEY)) await (asking ??= askToken(token !== null));
    } else if (response.status === 503 && tries < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      say(`The server has much to do; trying again in ${seconds} s.`);
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      options.signal?.throwIfAborted();
    } else {
      const body = await response.json().catch(() => null);
      if (response.ok && body) return body;
      throw new Error(body?.detail ?? `The server answered ${response.status} ${response.statusText}.`);
    }
  }
}

function askToken(wrong) {
  $("ask-why").textContent = wrong ? "That token is not the right one." : "";
  $("token").value = "";
  return new Promise((resolve, reject) => {
    const dialog = $("ask");
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("token").value.replace(/[^\x21-\x7e]/g, "")); // more than a header can hold would let no request go
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    $("ask-cancel").onclick = () => dialog.close();
    dialog.onclose = () => reject(new Error("Nothing is answered without the token; choose the image again to be asked for it."));
    dialog.showModal();
  }).finally(() => (asking = null));
}

async function introduce() {
  about = await call("model");
  names.splice(0, names.length, ...about.classes.map((one) => one.name));
  const few = names.length <= 6 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`;
  $("about").textContent = `finds ${few}`;
  $("threshold").value = about.threshold;
}

// ---- an image

async function look(file) {
  running?.abort();
  const mine = (running = new AbortController());
  complain("");
  forget();
  say("Looking …");
  main.setAttribute("aria-busy", "true");
  try {
    if (!about) await introduce();
    if (file.size > about.max_bytes) {
      throw new Error(`${file.name} has ${megabytes(file.size)}; this server takes ${megabytes(about.max_bytes)} at the most.`);
    }
    const form = new FormData();
    form.append("files", file, file.name || "image");
    const start = performance.now();
    const { images } = await call("predict?threshold=0", { method: "POST", body: form, signal: mine.signal });
    if (mine !== running) return;
    await show(file, images[0], (performance.now() - start) / 1000, mine);
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    say("");
    complain(error.message);
  } finally {
    if (mine === running) main.removeAttribute("aria-busy");
  }
}

async function show(file, answer, seconds, mine) {
  const url = URL.createObjectURL(file);
  const photo = $("photo");
  const visible = await new Promise((done) => {
    photo.onload = () => done(true);
    photo.onerror = () => done(false);
    photo.src = url;
  });
  if (mine !== running) return URL.revokeObjectURL(url);
  shown = { file, url, answer, seconds };
  const turned = visible && photo.naturalWidth * answer.height !== photo.naturalHeight * answer.width;
  if (!visible) photo.removeAttribute("src");
  $("note").textContent = !visible
    ? "This browser cannot show images of this kind; the boxes are where they belong."
    : turned ? "This browser shows the image in another orientation than the server read it." : "";
  photo.alt = visible ? answer.name : "";
  photo.hidden = !visible;
  $("save-image").disabled = !visible;
  const frame = $("frame").style;
  frame.setProperty("--ratio", answer.width / answer.height);
  frame.setProperty("--widest", `${Math.max(320, 4 * answer.width)}px`);
  frame.aspectRatio = `${answer.width} / ${answer.height}`;
  $("boxes").setAttribute("viewBox", `0 0 ${answer.width} ${answer.height}`);
  $("view").hidden = $("panel").hidden = false;
  main.classList.add("shown");
  $("choose").textContent = "Choose another image";
  listClasses();
  draw();
}

function forget() {
  if (shown) URL.revokeObjectURL(shown.url);
  shown = null;
  $("view").hidden = $("panel").hidden = true;
  main.classList.remove("shown");
  $("boxes").replaceChildren();
  $("choose").textContent = "Choose an image";
}

// ---- what is seen of it

function chosen() {
  const least = Number($("threshold").value);
  return shown.answer.detections.filter((one) => one.score >= least && !hidden.has(one.class_name));
}

function draw() {
  $("least").textContent = Number($("threshold").value).toFixed(2);
  if (!shown) return;
  const found = chosen();
  const { answer } = shown;
  pointed = null;
  drawBoxes();
  listFound(found);
  count(found);
  const all = answer.detections.length;
  say(`${found.length} of ${all} ${all === 1 ? "object" : "objects"} shown · ${answer.width} × ${answer.height} pixels · ${shown.seconds.toFixed(2)} s`);
}

function drawBoxes() { // alone when the window changes: a new list would take the keyboard's focus away
  if (!shown) return;
  const found = chosen();
  const { answer } = shown;
  const unit = answer.width / ($("frame").clientWidth || answer.width); // pixels of the image in one of the screen
  // the best lies on top, and no frame crosses a label
  const groups = found.map((one, place) => {
    const group = make("g", { "data-place": place });
    group.append(make("rect", { class: "box", stroke: colour(one.class_name), ...sides(one.box) }));
    return group;
  }).reverse();
  const tags = $("labels").checked ? found.map((one, place) => tag(one, place, unit, answer)).reverse() : [];
  $("boxes").replaceChildren(...groups, ...tags);
  $("boxes").setAttribute("aria-label", `${found.length} boxes`);
  point(pointed);
}

function tag(one, place, unit, { width }) {
  const words = caption(one);
  const { left, top, across, size, high } = place_of(one, words, 13 * unit, width);
  const group = make("g", { "data-place": place });
  const text = make("text", { x: left + size * 0.35, y: top + high * 0.76, "font-size": size, fill: ink(one.class_name) });
  text.textContent = words;
  group.append(make("rect", { x: left, y: top, width: across, height: high, rx: size * 0.2, fill: colour(one.class_name) }), text);
  return group;
}

const pen = document.createElement("canvas").getContext("2d");

function place_of(one, words, size, width) {
  pen.font = "600 100px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const across = (pen.measureText(words).width / 100 + 0.7) * size;
  const high = size * 1.4;
  const left = Math.max(0, Math.min(one.box[0], width - across));
  const top = one.box[1] >= high ? one.box[1] - high : one.box[1];
  return { left, top, across, size, high };
}

function listFound(found) {
  $("found").replaceChildren(...found.map((one, place) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = place === 0 ? 0 : -1; // one stop for the Tab key; the arrows go on from there
    button.append(swatch(one.class_name), span("name", one.class_name), span("score", one.score.toFixed(2)));
    button.title = `box ${one.box.map((side) => side.toFixed(0)).join(", ")}`;
    button.onmouseenter = button.onfocus = () => point(place);
    button.onmouseleave = button.onblur = () => point(null);
    item.append(button);
    return item;
  }));
}

function point(place) {
  pointed = place;
  for (const group of $("boxes").children) {
    group.classList.toggle("on", place !== null && group.dataset.place === String(place));
    group.classList.toggle("faint", place !== null && group.dataset.place !== String(place));
  }
}

function listClasses() {
  const present = new Set(shown.answer.detections.map((one) => one.class_name));
  $("classes").replaceChildren(...names.filter((name) => present.has(name)).map((name) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const number = span("count", "");
    label.className = "class";
    box.type = "checkbox";
    box.value = name;
    box.checked = !hidden.has(name);
    box.onchange = () => {
      if (box.checked) hidden.delete(name); else hidden.add(name);
      draw();
    };
    label.append(box, swatch(name), span("name", name), number);
    return label;
  }));
}

function count(found) {
  for (const label of $("classes").children) {
    const name = label.querySelector("input").value;
    label.querySelector(".count").textContent = found.filter((one) => one.class_name === name).length;
  }
}

function tick(on) {
  for (const box of $("classes").querySelectorAll("input")) {
    box.checked = on;
    if (on) hidden.delete(box.value); else hidden.add(box.value);
  }
  draw();
}

// ---- to keep

function saveJson() {
  const { name, width, height } = shown.answer;
  const content = { threshold: Number($("threshold").value), images: [{ name, width, height, detections: chosen() }] };
  save(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), name, ".json");
}

function saveImage() {
  const { name, width, height } = shown.answer; // by the time the file is made another image may be on the page
  const canvas = document.createElement("canvas");
  const found = chosen().reverse();
  const line = Math.max(2, Math.round(Math.max(width, height) / 400));
  [canvas.width, canvas.height] = [width, height];
  const brush = canvas.getContext("2d");
  brush.drawImage($("photo"), 0, 0, width, height);
  brush.lineWidth = line;
  for (const one of found) {
    const { x, y, width: across, height: high } = sides(one.box);
    brush.strokeStyle = colour(one.class_name);
    brush.strokeRect(x, y, across, high);
  }
  for (const one of $("labels").checked ? found : []) {
    const { left, top, across, size, high } = place_of(one, caption(one), 6 * line, width);
    brush.fillStyle = colour(one.class_name);
    brush.fillRect(left, top, across, high);
    brush.fillStyle = ink(one.class_name);
    brush.font = `600 ${size}px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif`;
    brush.fillText(caption(one), left + size * 0.35, top + high * 0.76);
  }
  const jpeg = shown.file.type === "image/jpeg";
  const done = (blob) => (blob ? save(blob, name, jpeg ? "-boxes.jpg" : "-boxes.png") : complain("The image is too large for this browser to save."));
  canvas.toBlob(done, jpeg ? "image/jpeg" : "image/png", 0.92);
}

function save(blob, name, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- small things

const say = (text) => ($("status").textContent = text);
const caption = (one) => `${one.class_name} ${one.score.toFixed(2)}`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const sides = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 });

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function colour(name) {
  const place = names.indexOf(name);
  return place < PALETTE.length ? PALETTE[Math.max(0, place)] : `#${[0, 8, 4].map((k) => hue(place * 137.5, k)).join("")}`;
}

function hue(degrees, k) { // one channel of hsl(degrees, 60 %, 55 %)
  const turn = (k + degrees / 30) % 12;
  return Math.round(255 * (0.55 - 0.27 * Math.max(-1, Math.min(turn - 3, 9 - turn, 1)))).toString(16).padStart(2, "0");
}

function ink(name) { // black or white, whichever is easier to read on the colour
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour(name).slice(start, start + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
}

function make(kind, attributes) {
  const node = document.createElementNS(SVG, kind);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function span(kind, text) {
  const node = document.createElement("span");
  node.className = kind;
  node.textContent = text;
  return node;
}

function swatch(name) {
  const node = span("swatch", "");
  node.style.background = colour(name);
  return node;
}

// ---- what the user does

const pick = (files) => files?.length && look(files[0]);
$("file").onchange = () => {
  pick($("file").files);
  $("file").value = ""; // or the same file could not be chosen again
};
document.addEventListener("paste", (event) => pick(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
for (const end of ["dragleave", "drop"]) document.addEventListener(end, () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  pick(event.dataTransfer.files);
});
$("threshold").oninput = $("labels").onchange = draw;
$("all").onclick = () => tick(true);
$("none").onclick = () => tick(false);
$("save-json").onclick = saveJson;
$("save-image").onclick = saveImage;
$("found").addEventListener("keydown", (event) => {
  const buttons = [...$("found").querySelectorAll("button")];
  const now = buttons.indexOf(document.activeElement);
  const next = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (next === undefined || !buttons[next]) return;
  event.preventDefault();
  buttons[now].tabIndex = -1;
  buttons[next].tabIndex = 0;
  buttons[next].focus();
});
new ResizeObserver(drawBoxes).observe($("frame"));
introduce().catch((error) => complain(error.message));
